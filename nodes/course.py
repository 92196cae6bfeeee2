"""Where a training is in its course: how far the bar is, and how long the rest will take.

How many stages a method has, and how long each takes, shows only while it runs. So each stage gets
a share of what is left of the bar, and the steps of the training nearly all of it.
"""

from __future__ import annotations

import time

OF_A_STAGE, OF_THE_STEPS = 0.15, 0.9
"""Shares of what is left of the bar in a phase."""


class Course:
    """place: how far the bar is, from 0 to 1; it never goes back."""

    def __init__(self) -> None:
        self.place, self.phase, self.later = 0.0, "", 0.0
        self._until = 1.0
        self._now = ""  # the stage
        self._span = (0.0, 1.0)  # its part of the bar
        self._began, self._first, self._last = 0.0, 0, 0  # when it began, and its counts

    def enter(self, phase: str, until: float, later: float) -> None:
        """Begin a phase that ends at `until`; what comes after it is to take `later` seconds."""
        if self.phase:
            self.place = max(self.place, self._until)
        self.phase, self._until, self.later, self._now = phase, until, later, ""

    def stage(self, what: str, done: int, total: int) -> bool:
        """Move the bar. Returns whether this stage begins."""
        is_new = what != self._now or done < self._last
        if is_new:
            self._begin(what, done, OF_A_STAGE)
        self._move(done, total)
        return is_new

    def step(self, step: int, total: int) -> None:
        """Move the bar by the training's steps. A second loop begins anew."""
        if self._now != "steps" or step < self._last:
            self._begin("steps", step, OF_THE_STEPS)
        self._move(step, total)

    def left(self, done: int, total: int) -> str:
        """How long the rest takes by the pace so far; "" as long as there is none."""
        counted = done - self._first
        if counted < 1 or done >= total:
            return ""
        seconds = (time.monotonic() - self._began) * (total - done) / counted
        if self._now != "steps":
            return f", {told(seconds)} left of this"
        return f", at most {told(seconds + self.later)} left"

    def _begin(self, what: str, first: int, share: float) -> None:
        self._now, self._began, self._first = what, time.monotonic(), first
        self._span = self.place, self.place + share * (self._until - self.place)

    def _move(self, done: int, total: int) -> None:
        low, high = self._span
        self._last = done
        self.place = max(self.place, low + (high - low) * min(1.0, done / max(1, total)))


def told(seconds: float) -> str:
    """A time for a user: 40 s, 3 min, 2 h 10 min."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
