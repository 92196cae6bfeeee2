"""What a training node shows: progress, a live picture, the loss curve."""

from __future__ import annotations

import time

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from PIL import Image, ImageDraw
from server import PromptServer


def tell(node_id: str | None, text: str) -> None:
    """Show a text in a node on the canvas."""
    if node_id is not None:
        PromptServer.instance.send_progress_text(text, node_id)


class Progress:
    """on_step of a method: progress bar, status text and a live picture of what the concept is now.

    draw() gives one picture (1, H, W, 3); it may take a fifth of the time and no more. Every step
    asks the host whether the user cancelled: its own progress bar does so too rarely.
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
        if step == 1 or now - self.drawn > max(1.0, 5 * self.cost):
            picture = Image.fromarray((self.draw()[0].numpy() * 255).round().astype(np.uint8))
            preview = ("JPEG", picture, 512)
            self.drawn = time.monotonic()
            self.cost = self.drawn - now
        self.bar.update_absolute(step, total, preview)
        tell(self.node_id, f"{self.what}\nstep {step} of at most {total}, loss {loss:.4f}")


def loss_curve(losses: list[float], width: int = 512, height: int = 256) -> torch.Tensor:
    """The losses as a picture, (1, height, width, 3): each step thin, their running mean bold."""
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    margin = 34
    low, high = (min(losses), max(losses)) if losses else (0.0, 1.0)
    high = high if high > low else low + 1.0

    def point(i: int, value: float) -> tuple[float, float]:
        x = margin + (width - margin - 10) * i / max(1, len(losses) - 1)
        return x, 10 + (height - margin - 10) * (high - value) / (high - low)

    pen.line(
        [(margin, 10), (margin, height - margin + 4), (width - 10, height - margin + 4)],
        fill="black",
    )
    for value in (low, high):
        pen.text((2, point(0, value)[1] - 6), f"{value:.3g}", fill="black")
    pen.text((width // 2 - 60, height - 22), f"loss over {len(losses)} steps", fill="black")
    # Of the steps around each one, so that the line does not lag behind a falling loss.
    around = [losses[max(0, i - 4) : i + 5] for i in range(len(losses))]
    mean = [sum(some) / len(some) for some in around]
    if len(losses) > 1:
        pen.line([point(i, v) for i, v in enumerate(losses)], fill=(170, 190, 220))
        pen.line([point(i, v) for i, v in enumerate(mean)], fill=(20, 60, 150), width=2)
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)[None]
