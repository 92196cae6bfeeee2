"""What a training node shows: progress, a live picture, the loss curve."""

from __future__ import annotations

import time

import comfy.model_management
import comfy.utils
import numpy as np
from PIL import Image
from server import PromptServer


def tell(node_id: str | None, text: str) -> None:
    """Show a text in a node on the canvas."""
    if node_id is not None:
        PromptServer.instance.send_progress_text(text, node_id)


class Progress:
    """on_step of a method: progress bar, status text and a live picture of what the concept is now.

    draw() gives one picture (1, H, W, 3), None draws none; it may take a fifth of the time and no
    more, and is given up where there is no memory for it. Every step asks the host whether the user
    cancelled: its own progress bar does so too rarely.
    """

    def __init__(self, node_id: str | None, what: str, draw) -> None:
        self.node_id, self.what, self.draw = node_id, what, draw
        self.bar = comfy.utils.ProgressBar(1, node_id)
        self.drawn = time.monotonic()
        self.cost = 0.0

    def __call__(self, step: int, total: int, loss: float, edit) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        preview = None
        now = time.monotonic()
        if self.draw and (step == 1 or now - self.drawn > max(1.0, 5 * self.cost)):
            preview = self._preview()
            self.drawn = time.monotonic()
            self.cost = self.drawn - now
        self.bar.update_absolute(step, total, preview)
        tell(self.node_id, f"{self.what}\nstep {step} of at most {total}, loss {loss:.4f}")

    def _preview(self) -> tuple[str, Image.Image, int] | None:
        try:
            picture = self.draw()[0]
        except (comfy.model_management.OOM_EXCEPTION, MemoryError):
            # The run was planned without it, and must not be lost to it.
            self.draw = None
            self.what += " (no memory for a live picture)"
            comfy.model_management.soft_empty_cache()
            return None
        return "JPEG", Image.fromarray((picture.numpy() * 255).round().astype(np.uint8)), 512

    def preparing(self, what: str, done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        tell(self.node_id, f"{self.what}\n{what}: {done} of {total}")


class Counting:
    """on_row of the classifier: progress bar and status text; asks the host whether to stop."""

    def __init__(self, node_id: str | None, what: str = "asking the model") -> None:
        self.node_id, self.what = node_id, what
        self.bar = comfy.utils.ProgressBar(1, node_id)
        self.told = 0.0

    def __call__(self, done: int, total: int, leader: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(done, total)
        if done == total or time.monotonic() - self.told > 0.5:
            self.told = time.monotonic()
            ahead = f", ahead: {leader}" if leader else ""
            tell(self.node_id, f"{self.what}\n{done} of {total} rows{ahead}")


class Asking:
    """on_probe of the probe: progress bar and status text; asks the host whether to stop."""

    def __init__(self, node_id: str | None, concept: str) -> None:
        self.node_id, self.concept = node_id, concept
        self.bar = comfy.utils.ProgressBar(1, node_id)
        self.told, self.what = 0.0, ""

    def __call__(self, what: str, done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(done, total)
        if what != self.what or done == total or time.monotonic() - self.told > 0.5:
            self.told, self.what = time.monotonic(), what
            tell(self.node_id, f"probing {self.concept}: {what}\n{done} of {total}")
