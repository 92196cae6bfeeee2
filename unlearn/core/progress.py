"""How a run reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from .edit import Edit

OnStep = Callable[[int, int, float, Edit], object]
"""on_step(step, total, loss, edit)"""


class Progress:
    """What a run tells of itself. This one is silent: override what is shown.

    Every call may raise, which cancels the run.
    """

    def step(self, step: int, total: int, loss: float, edit: Edit) -> None:
        """Called after every training step. total: the most steps there can be."""

    def phase(self, what: str) -> None:
        """Says what the steps that follow do, where not all do the same."""

    def stage(self, what: str, done: int, total: int, leader: str = "") -> None:
        """Called during a stage of work. leader: the word that leads, while words are ranked."""

    def named(self, what: str) -> Progress:
        """This progress, with every stage called `what`."""
        return _Named(self, what)

    def part(self, part: int, parts: int, total: int | None = None) -> Progress:
        """This progress, told of one of several equally long parts of a stage.

        part: its number from 0. total: the length of the whole stage; None: that of the `parts`.
        """
        return _Part(self, part, parts, total)


class _Named(Progress):
    def __init__(self, inner: Progress, what: str) -> None:
        self.inner, self.what = inner, what

    def stage(self, what: str, done: int, total: int, leader: str = "") -> None:
        self.inner.stage(self.what, done, total, leader)


class _Part(Progress):
    def __init__(self, inner: Progress, part: int, parts: int, total: int | None) -> None:
        self.inner, self.number, self.parts, self.total = inner, part, parts, total

    def stage(self, what: str, done: int, total: int, leader: str = "") -> None:
        whole = self.parts * total if self.total is None else self.total
        self.inner.stage(what, self.number * total + done, whole, leader)


class _Steps(Progress):
    def __init__(self, on_step: OnStep) -> None:
        self.on_step = on_step

    def step(self, step: int, total: int, loss: float, edit: Edit) -> None:
        self.on_step(step, total, loss, edit)


SILENT = Progress()


def as_progress(told: Progress | OnStep | None) -> Progress:
    """The Progress that a caller means: one, a function to call after every step, or None."""
    if told is None:
        return SILENT
    # By what it can do, not by its class: ComfyUI loads this package under another name.
    return cast(Progress, told) if hasattr(told, "stage") else _Steps(cast(OnStep, told))
