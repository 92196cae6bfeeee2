"""The anchor's pictures as DoCo's authors load them in each step: arXiv 2405.15304, their code.

A picture is flipped from left to right with p = 0.5. For the erasing loss of a thing it is also
made smaller, on grey, or larger, and cut; the concept's prompt then says so.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ...core.model import DiffusionModel

SMALL, LARGE = ("a far away ", "very small "), ("zoomed in ", "close up ")
GREY = 0.5  # zero in the range from -1 to 1, in which the authors fill their canvas


class Pictures:
    """The pictures of latents, decoded when they are first asked for and kept in eight bits."""

    def __init__(self, model: DiffusionModel, x0: torch.Tensor) -> None:
        self.model, self.x0 = model, x0
        self.kept: dict[int, torch.Tensor] = {}

    def encoded(
        self, chosen: Sequence[int], rng: random.Random, noise: torch.Generator, resize: bool
    ) -> tuple[torch.Tensor, list[str]]:
        """(latents of these pictures, what stands before the concept's prompt of each).

        They are drawn from what the autoencoder says. Without one they are those that were drawn.
        """
        if not self.model.has_autoencoder:
            return self.x0[list(chosen)], [""] * len(chosen)
        pictures, prefixes = [], []
        for i in chosen:
            picture = self._picture(i)
            picture = picture.flip(1) if rng.random() < 0.5 else picture
            rows = drawn_size(rng, len(picture)) if resize else len(picture)
            pictures.append(resized(picture, rows, rng))
            prefixes.append(prefix(rng, rows, len(picture)))
        return self.model.encode_images(torch.stack(pictures), noise), prefixes

    def _picture(self, i: int) -> torch.Tensor:
        if i not in self.kept:
            (picture,) = self.model.decode_latents(self.x0[i : i + 1])
            self.kept[i] = (picture.clamp(0, 1) * 255).round().byte().cpu()
        return self.kept[i].float() / 255


def drawn_size(rng: random.Random, rows: int) -> int:
    """How many rows a picture of so many is made to have: with p = 0.66 a third to all of them,
    else 1.2 to 1.4 times as many."""
    if rng.random() < 0.66:
        return rng.randint(rows // 3, rows)
    low, high = int(1.2 * rows), int(1.4 * rows)
    return rng.randrange(low, max(high, low + 1))


def resized(picture: torch.Tensor, rows: int, rng: random.Random) -> torch.Tensor:
    """A picture (H, W, 3) made to have so many rows: on grey where they are fewer, cut where they
    are more, at a place drawn at random. (H, W, 3)."""
    height, width = picture.shape[:2]
    if rows == height:
        return picture
    columns = round(width * rows / height)
    channels = picture.movedim(-1, 0)[None]
    other = F.interpolate(channels, (rows, columns), mode="bilinear", antialias=True)
    other = other[0].movedim(0, -1)
    top, left = rng.randint(0, abs(height - rows)), rng.randint(0, abs(width - columns))
    if rows > height:
        return other[top : top + height, left : left + width]
    canvas = torch.full_like(picture, GREY)
    canvas[top : top + rows, left : left + columns] = other
    return canvas


def prefix(rng: random.Random, rows: int, full: int) -> str:
    """What stands before a prompt of a picture that was made smaller or larger."""
    if rows < 0.6 * full:
        return rng.choice(SMALL)
    return rng.choice(LARGE) if rows > full else ""
