"""Charts that a training node returns as pictures."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..unlearn.render.sheet import DARK, PALE


class Chart:
    """A picture with two axes and lines. x and y: the ranges of the axes."""

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
    """The losses as a picture, (1, 256, 512, 3): a thin line, and their running mean in bold."""
    low, high = (min(losses), max(losses)) if losses else (0.0, 1.0)
    chart = Chart(
        f"loss over {len(losses)} steps",
        (0, max(1, len(losses) - 1)),
        (low, high if high > low else low + 1.0),
    )
    # Centred on each step, so that the mean does not lag behind a falling loss.
    around = [losses[max(0, i - 4) : i + 5] for i in range(len(losses))]
    chart.line(list(enumerate(losses)), PALE)
    chart.line([(i, sum(some) / len(some)) for i, some in enumerate(around)], DARK, 2)
    return chart.tensor()


def key_steps_plot(start: int, steps: int, found: dict | None) -> torch.Tensor:
    """The sampling steps that were trained on, as a picture (1, 256, 512, 3).

    found: a key_step_search.KeySteps as a dict, whose curve is drawn. None if nothing was measured.
    """
    what = "; line: what is left if the steps from there on lack the concept" if found else ""
    chart = Chart(f"trained on steps {start} to {steps - 1}{what}", (0, steps), (0.0, 1.0))
    left, top = chart.place(start, 1.0)
    right, bottom = chart.place(steps, 0.0)
    # One pixel to the right, so that it does not cover the axis.
    chart.pen.rectangle([left + 1, top, right, bottom], fill=(235, 240, 250))
    if found:
        chart.line(list(zip(found["points"], found["left"])), DARK, 2)
    return chart.tensor()
