"""Which of the motion words a clip shows, estimated from its pixels alone.

From frame to frame the similarity (shift, turn, growth) that best carries one picture into the
next is found by least squares (Lucas and Kanade's registration); the course that they make up is
held against the course of each motion word.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..model.vocabulary import MOTIONS
from .clips import courses

GRIDS = (16, 32)  # pixels a side: from coarse, where the ways are short, to fine
ITERATIONS = 8  # on each grid
RADIUS = 35.0  # pixels of 128: how far an average point of a thing lies from the middle
LIKENESS = 0.75  # the least cosine between a course and a word's
SHARE = 0.3  # of a word's way, the least that must be gone


def steps(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(turn, shift), two complex (N,), that carry pictures (N, 3, 128, 128) into others best.

    As in `clips`: p becomes turn * p + shift, in pixels from the middle.
    """
    n, half = len(before), before.shape[-1] / 2
    guess = torch.tensor([1.0, 0, 0, 0]).repeat(n, 1)  # turn's two parts, shift's two; half = 1
    for side in GRIDS:
        first, second = (
            F.interpolate(1 - x, (side, side), mode="bilinear", antialias=True, align_corners=False)
            for x in (before, after)
        )
        y, x = (
            torch.linspace(-1, 1, 2 * side + 1)[1::2].view(shape) for shape in ((-1, 1), (1, -1))
        )
        # The second picture and its slopes to the right and down, a picture's half as one.
        slopes = torch.gradient(second, dim=(3, 2))
        sampled = torch.cat([second, *(side / 2 * slope for slope in slopes)], 1)
        for _ in range(ITERATIONS):
            real, imag, right, down = guess.unbind(1)
            theta = torch.stack([real, -imag, right, imag, real, down], 1).view(n, 2, 3)
            grid = F.affine_grid(theta, list(second.shape), align_corners=False)
            warped, dx, dy = F.grid_sample(sampled, grid, align_corners=False).chunk(3, 1)
            columns = torch.stack([dx * x + dy * y, dy * x - dx * y, dx, dy], -1).flatten(1, 3)
            error = (first - warped).flatten(1)[..., None]
            normal = columns.transpose(1, 2) @ columns
            # A little of the diagonal: a round thing does not say how it turns.
            normal = normal + 1e-3 * normal.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-6).view(
                -1, 1, 1
            ) * torch.eye(4)
            guess = guess + torch.linalg.solve(normal, columns.transpose(1, 2) @ error)[..., 0]
    turn, shift = torch.complex(*guess[:, :2].unbind(1)), torch.complex(*guess[:, 2:].unbind(1))
    return turn, shift * half


def course(clips: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(turn, shift) of every frame from the first, complex (N, frames).

    clips: (N, frames, 3, 128, 128) in 0..1.
    """
    count = clips.shape[1] - 1
    turn, shift = steps(clips[:, :-1].flatten(0, 1), clips[:, 1:].flatten(0, 1))
    turns, shifts = turn.view(-1, count).numpy(), shift.view(-1, count).numpy()
    whole, moved = [np.ones(len(clips), complex)], [np.zeros(len(clips), complex)]
    for k in range(count):
        whole.append(turns[:, k] * whole[-1])
        moved.append(turns[:, k] * moved[-1] + shifts[:, k])
    return np.stack(whole, 1), np.stack(moved, 1)


def _way(turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """(..., 4 * frames) what points move, in pixels, by shift, growth and turn, less its mean."""
    log = np.log(turn)
    parts = np.stack([shift.real, shift.imag, RADIUS * log.real, RADIUS * log.imag], -2)
    return (parts - parts.mean(-1, keepdims=True)).reshape(*parts.shape[:-2], -1)


def words(clips: torch.Tensor) -> list[str | None]:
    """The motion word that each clip (N, FRAMES, 3, 128, 128) shows; None where it shows none.

    It must go the word's way for a good part and not go others much.
    """
    ways = _way(*course(clips))
    known = []
    for motion in MOTIONS:
        turn, shift = courses()[motion]
        known.append(_way(turn / turn[0], shift - turn / turn[0] * shift[0]))
    known = np.stack(known)
    lengths = np.linalg.norm(known, axis=1)
    along = ways @ known.T / lengths
    likeness = along / np.maximum(np.linalg.norm(ways, axis=1, keepdims=True), 1e-6)
    best = likeness.argmax(1)
    return [
        MOTIONS[i] if likeness[n, i] >= LIKENESS and along[n, i] >= SHARE * lengths[i] else None
        for n, i in enumerate(best)
    ]
