"""Which tests run in which tier: `pytest --fast`, `pytest`, `pytest --all`."""

from __future__ import annotations

import pytest

SERVED = ("browser", "server")
"""The folders of tests that need a server."""


def rank(item: pytest.Item) -> int:
    """What a test needs: 0: no ComfyUI, 1: ComfyUI in this process, 2: a server."""
    names, folder = getattr(item, "fixturenames", ()), item.path.parent.name
    if "server" in names or folder in SERVED:
        return 2
    return 1 if "host" in names or folder == "comfy" else 0


def is_slow(item: pytest.Item) -> bool:
    """Whether only --all runs it."""
    return item.get_closest_marker("slow") is not None


def is_fast(item: pytest.Item) -> bool:
    """Whether --fast runs it: it needs no ComfyUI and is cheap."""
    return rank(item) == 0 and not is_slow(item) and item.get_closest_marker("costly") is None
