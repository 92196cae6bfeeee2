"""The closed form with fewer prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


def few(science: Any) -> Any:
    """The method. science: the package `unlearn`, the pack's or one's own."""
    from_file = science.methods.closed_form
    constant = science.methods.parts.settings.constant

    @dataclass(frozen=True)
    class Few(from_file.ClosedFormSettings):
        sentences: int = constant(8, "Prompts of each concept.")
        others: int = constant(24, "Prompts of other things.")

    return replace(from_file.METHOD, settings=Few)
