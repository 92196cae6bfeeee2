"""How a method reports its progress."""

from __future__ import annotations

from collections.abc import Callable

from .edit import Edit

OnStep = Callable[[int, int, float, Edit], None]
"""on_step(step, total, loss, edit), called after every step; it may raise to cancel. One that has a
method preparing(what, done, total) hears of what is done before the first step, too."""


def preparing(on_step: OnStep | None, what: str, done: int, total: int) -> None:
    if hasattr(on_step, "preparing"):
        on_step.preparing(what, done, total)
