"""Charts that a training node returns as pictures."""

from __future__ import annotations

from math import ceil, floor, log10

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..unlearn.render.fonts import font_for
from ..unlearn.render.sheet import DARK, PALE, wrapped


class Chart:
    """A picture with two axes, lines, and sentences below. x and y: the ranges of the axes.

    across, up: what the axes show. below: sentences on what is to be seen.
    """

    MARGIN, LINE = 34, 17
    SIZE = (512, 256)  # without the sentences

    def __init__(
        self,
        across: str,
        up: str,
        x: tuple[float, float],
        y: tuple[float, float],
        below: str = "",
    ) -> None:
        self.x, self.y = x, y
        width, height = self.SIZE
        font, small = font_for([below], 12), font_for([across, up], 10)
        pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
        lines = wrapped(pen, below, width - 2 * self.LINE, font) if below else []
        self.image = Image.new("RGB", (width, height + self.LINE * len(lines)), "white")
        self.pen = pen = ImageDraw.Draw(self.image)
        left, bottom = self.MARGIN, height - self.MARGIN + 4
        for value in ticks(*x, 6):
            at = self.place(value, y[0])[0]
            pen.line([(at, bottom), (at, bottom + 3)], fill="black")
            pen.text((at, bottom + 4), f"{value:g}", fill="black", anchor="mt", font=small)
        for value in ticks(*y, 4):
            at = self.place(x[0], value)[1]
            pen.line([(left - 3, at), (left, at)], fill="black")
            pen.text((left - 5, at), f"{value:g}", fill="black", anchor="rm", font=small)
        pen.line([(left, 10), (left, bottom), (width - 10, bottom)], fill="black")
        pen.text((width // 2, height - 14), across, fill="black", anchor="mt", font=small)
        pen.text((left + 5, 0), up, fill="black", font=small)
        for number, line in enumerate(lines):
            pen.text((self.LINE, height + self.LINE * number), line, fill="dimgray", font=font)

    def place(self, x: float, y: float) -> tuple[float, float]:
        width, height = self.SIZE
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


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers from low to high: multiples of 1, 2 or 5 times a power of ten.

    low is below high.
    """
    rough = (high - low) / (most - 1)
    power = 10.0 ** floor(log10(rough))
    step = next(one * power for one in (1, 2, 5, 10) if one * power >= rough * (1 - 1e-9))
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [float(f"{number * step:.6g}") for number in range(first, last + 1)]


def loss_curve(losses: list[float], counts: str = "steps", below: str = "") -> torch.Tensor:
    """The losses as a picture, (1, 256 and more, 512, 3): a thin line, and their running mean in
    bold.

    counts: what they are counted in. below: a sentence on what is to be expected.
    """
    low, high = (min(losses), max(losses)) if losses else (0.0, 1.0)
    chart = Chart(
        f"{len(losses)} {counts}",
        "loss",
        (1, max(2, len(losses))),
        (low, high if high > low else low + 1.0),
        below,
    )
    # Centred on each step, so that the mean does not lag behind a falling loss.
    around = [losses[max(0, i - 4) : i + 5] for i in range(len(losses))]
    chart.line(list(enumerate(losses, 1)), PALE)
    chart.line([(i, sum(some) / len(some)) for i, some in enumerate(around, 1)], DARK, 2)
    return chart.tensor()


def key_steps_plot(start: int, steps: int, found: dict | None) -> torch.Tensor:
    """The sampling steps that were trained on, as a picture (1, 256 and more, 512, 3).

    found: a key_step_search.KeySteps as a dict, whose curve is drawn. None if nothing was measured.
    """
    below = f"Band: the steps that were trained on, {start} to {steps - 1}."
    if found:
        below += " Line: what is left of the concept if the steps from there on lack it."
    up = "share left" if found else ""
    chart = Chart("sampling step, from noise to picture", up, (0, steps), (0.0, 1.0), below)
    left, top = chart.place(start, 1.0)
    right, bottom = chart.place(steps, 0.0)
    # One pixel to the right, so that it does not cover the axis.
    chart.pen.rectangle([left + 1, top, right, bottom], fill=(235, 240, 250))
    if found:
        chart.line(list(zip(found["points"], found["left"])), DARK, 2)
    return chart.tensor()
