"""How a method reports its progress."""

from __future__ import annotations

from collections.abc import Callable

from .edit import Edit

OnStep = Callable[[int, int, float, Edit], None]
"""on_step(step, total, loss, edit), called after every step; it may raise to cancel. If it has a
method preparing(what, done, total), that is called during the work before the first step."""


def preparing(on_step: OnStep | None, what: str, done: int, total: int) -> None:
    """Report work before the first step. what: its name for the user."""
    if report := getattr(on_step, "preparing", None):
        report(what, done, total)
