"""What a training node shows: progress, a live picture, the loss curve."""

from __future__ import annotations

import time

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from PIL import Image, ImageDraw
from server import PromptServer

from ..unlearn.render.sheet import DARK, PALE


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


class Chart:
    """A picture with two axes and lines on it."""

    MARGIN = 34

    def __init__(
        self,
        title: str,
        x: tuple[float, float],
        y: tuple[float, float],
        size: tuple[int, int] = (512, 256),
    ) -> None:
        self.x, self.y, self.size = x, y, size
        self.image = Image.new("RGB", size, "white")
        self.pen = ImageDraw.Draw(self.image)
        width, height = size
        self.pen.line(
            [
                (self.MARGIN, 10),
                (self.MARGIN, height - self.MARGIN + 4),
                (width - 10, height - self.MARGIN + 4),
            ],
            fill="black",
        )
        for value in y:
            self.pen.text((2, self.place(x[0], value)[1] - 6), f"{value:.3g}", fill="black")
        self.pen.text((width // 2, height - 22), title, fill="black", anchor="mt")

    def place(self, x: float, y: float) -> tuple[float, float]:
        width, height = self.size
        across = (x - self.x[0]) / max(1e-12, self.x[1] - self.x[0])
        up = (y - self.y[0]) / max(1e-12, self.y[1] - self.y[0])
        return (
            self.MARGIN + (width - self.MARGIN - 10) * across,
            10 + (height - self.MARGIN - 10) * (1 - up),
        )

    def line(self, points, colour: tuple[int, int, int], width: int = 1) -> None:
        if len(points) > 1:
            self.pen.line([self.place(x, y) for x, y in points], fill=colour, width=width)

    def tensor(self) -> torch.Tensor:
        """(1, height, width, 3)."""
        return torch.from_numpy(np.asarray(self.image).astype(np.float32) / 255)[None]


def loss_curve(losses: list[float]) -> torch.Tensor:
    """The losses as a picture, (1, 256, 512, 3): each step thin, their running mean bold."""
    low, high = (min(losses), max(losses)) if losses else (0.0, 1.0)
    chart = Chart(
        f"loss over {len(losses)} steps",
        (0, max(1, len(losses) - 1)),
        (low, high if high > low else low + 1.0),
    )
    # Of the steps around each one, so that the line does not lag behind a falling loss.
    around = [losses[max(0, i - 4) : i + 5] for i in range(len(losses))]
    chart.line(list(enumerate(losses)), PALE)
    chart.line([(i, sum(some) / len(some)) for i, some in enumerate(around)], DARK, 2)
    return chart.tensor()


def key_steps_plot(start: int, steps: int, found: dict | None) -> torch.Tensor:
    """Which sampling steps were trained on, (1, 256, 512, 3).

    found: a unlearn.methods.parts.key_step_search.KeySteps as a dict, whose curve is drawn; None where nothing was
    measured.
    """
    what = "; line: what is left when later steps know nothing of it" if found else ""
    chart = Chart(f"trained on steps {start} to {steps - 1}{what}", (0, steps), (0.0, 1.0))
    left, top = chart.place(start, 1.0)
    right, bottom = chart.place(steps, 0.0)
    # Beside the axis, where it begins at the first step.
    chart.pen.rectangle([left + 1, top, right, bottom], fill=(235, 240, 250))
    if found:
        chart.line(list(zip(found["points"], found["left"])), DARK, 2)
    return chart.tensor()
