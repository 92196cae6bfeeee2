"""The real page of the real server, in a real Chromium: one for the tests of each node style."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.host import chromium
from testbed.host.frontend import STYLES, Frontend
from testbed.host.server import Server

SAVED = Path(__file__).resolve().parents[1] / "data" / "saved_by_0.1.0"


# Playwright's loop must end before another folder's tests call asyncio.run.
@pytest.fixture(scope="package")
def browser() -> Iterator:
    if why := chromium.missing():
        pytest.skip(f"not run: {why}")
    with chromium.launched() as launched:
        yield launched


@pytest.fixture(scope="package")
def saved_erasures(server: Server) -> None:
    """The files that the templates for a saved erasure name: as after those that write them.

    A page reads the list of files when it opens.
    """
    folder = server.output / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    for made_by, part in (("few_shot", "clip"), ("key_step", "model")):
        file = folder / f"erased_{part}_00001_.safetensors"
        if not file.exists():
            shutil.copy(SAVED / f"{made_by}.safetensors", file)


@pytest.fixture(scope="package", params=STYLES)
def page(
    request: pytest.FixtureRequest, browser, server: Server, saved_erasures: None
) -> Iterator[Frontend]:
    opened = Frontend(browser, server, request.param)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def nothing_is_thrown(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of the page ends without an error in its console."""
    yield
    if "page" in request.fixturenames:
        assert request.getfixturevalue("page").errors() == []
