"""What a node shows while it works: a progress bar, a status text and a live picture.

All reporters below share `_Reporter`. Each of them asks the host at every call whether the user
cancelled, because the host's own progress bar asks too rarely.
"""

from __future__ import annotations

import math
import time

import comfy.model_management
import comfy.utils
import numpy as np
from PIL import Image
from server import PromptServer

from ..unlearn.core import progress as reports
from ..unlearn.core.edit import Edit
from .course import Course

SECONDS_BETWEEN_TEXTS = 0.5
WHOLE = 1000  # where the bar of a training ends


def tell(node_id: str | None, text: str) -> None:
    """Show a text in a node on the canvas."""
    if node_id is not None:
        PromptServer.instance.send_progress_text(text, node_id)


class _Reporter:
    """A node's progress bar, and a status text of two lines: what it does, and how far it is."""

    def __init__(self, node_id: str | None, what: str) -> None:
        self.node_id, self.what = node_id, what
        self.bar = comfy.utils.ProgressBar(1, node_id)
        self.told, self.last = 0.0, what  # when a text was shown, and its first line

    def show(self, text: str) -> None:
        self.told, self.last = time.monotonic(), self.what
        tell(self.node_id, f"{self.what}\n{text}")

    def count(self, done: int, total: int, text: str) -> None:
        """Move the bar. The text follows at the end, when `what` changed, and twice a second."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(done, total)
        due = time.monotonic() - self.told > SECONDS_BETWEEN_TEXTS
        if due or done == total or self.what != self.last:
            self.show(text)


class Progress(_Reporter, reports.Progress):
    """Of a training: one bar for the whole run, and a live picture of what the model makes of the
    concept.

    draw() returns one picture (1, H, W, 3); None draws none. The first comes at once, and all may
    take a fifth of the time at most. It is given up when there is no memory for it.
    """

    def __init__(self, node_id: str | None, what: str, draw) -> None:
        super().__init__(node_id, what)
        self.draw = draw
        self.drawn, self.cost = -math.inf, 0.0  # when the last picture was drawn, and how long
        self.course = Course()
        self.done = 0

    def enter(self, phase: str, until: float, later: float = 0.0) -> None:
        """Begin a phase, at whose end the bar stands at `until`, of 1.

        later: the seconds that what comes after it is expected to take.
        """
        self.course.enter(phase, until, later)
        self._move(None)
        if phase:
            self.show(phase)

    def phase(self, what: str) -> None:
        self.course.phase = what

    def step(self, step: int, total: int, loss: float, edit: Edit) -> None:
        self.course.step(step, total)
        self._move(self._due())
        phase = f"{self.course.phase}: " if self.course.phase else ""
        left = self.course.left(step, total)
        self.show(f"{phase}step {step} of at most {total}, loss {loss:.4f}{left}")

    def stage(self, what: str, done: int, total: int, leader: str = "") -> None:
        is_new = self.course.stage(what, done, total)
        # The model is still the original, or has nothing new to show: one picture is enough.
        self._move(self._due() if self.drawn == -math.inf else None)
        if is_new or done == total or time.monotonic() - self.told > SECONDS_BETWEEN_TEXTS:
            phase = f"{self.course.phase}: " if self.course.phase else ""
            self.show(f"{phase}{what}, {done} of {total}{self.course.left(done, total)}")

    def _move(self, preview: tuple[str, Image.Image, int] | None) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.done = max(self.done, round(WHOLE * self.course.place))
        self.bar.update_absolute(self.done, WHOLE, preview)

    def _due(self) -> tuple[str, Image.Image, int] | None:
        """A picture, if it is time for one."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        now = time.monotonic()
        if not self.draw or now - self.drawn < max(1.0, 5 * self.cost):
            return None
        preview = self._preview()
        self.drawn = time.monotonic()
        self.cost = self.drawn - now
        return preview

    def _preview(self) -> tuple[str, Image.Image, int] | None:
        try:
            picture = self.draw()[0]
        except (comfy.model_management.OOM_EXCEPTION, MemoryError):
            # The memory plan of the run does not include the picture. The run must go on.
            self.draw = None
            self.what += " (no memory for a live picture)"
            comfy.model_management.soft_empty_cache()
            return None
        return "JPEG", Image.fromarray((picture.numpy() * 255).round().astype(np.uint8)), 512

    def finish(self) -> None:
        """Move the bar to its end."""
        self.course.place = 1.0
        self.enter("", 1.0)

    def look(self) -> None:
        """Show a picture now."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._move(self._preview())


class RowProgress(_Reporter, reports.Progress):
    """Of the classifier."""

    def __init__(self, node_id: str | None, what: str = "asking the model") -> None:
        super().__init__(node_id, what)

    def stage(self, what: str, done: int, total: int, leader: str = "") -> None:
        ahead = f", ahead: {leader}" if leader else ""
        self.count(done, total, f"{done} of {total} rows{ahead}")


class ProbeProgress(_Reporter, reports.Progress):
    """Of the probe of one concept."""

    def __init__(self, node_id: str | None, concept: str) -> None:
        super().__init__(node_id, f"probing {concept}")
        self.concept = concept

    def stage(self, what: str, done: int, total: int, leader: str = "") -> None:
        self.what = f"probing {self.concept}: {what}"
        self.count(done, total, f"{done} of {total}")


class PairProgress(_Reporter):
    """How many pictures the copyright metric has compared."""

    def __call__(self, done: int, total: int) -> None:
        self.count(done, total, f"{done} of {total}")
