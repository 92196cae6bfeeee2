"""Which motion word a clip shows, estimated from its pixels alone.

For every two neighbouring frames, least squares finds the similarity (shift, turn, growth) that
maps one to the other best (Lucas and Kanade's registration). Together these give the clip's course,
which is compared with the course of each motion word.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..model.vocabulary import MOTIONS
from .clips import courses

GRIDS = (16, 32)  # pixels a side, from coarse to fine; on a coarse grid the movements are short
ITERATIONS = 8  # on each grid
RADIUS = 35.0  # pixels of 128: the distance of an average point of a thing from the middle
LIKENESS = 0.75  # the smallest cosine between a clip's course and that of its word
SHARE = 0.3  # the smallest share of the word's movement that a clip must make


def steps(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(turn, shift), complex (N,), that map pictures (N, 3, 128, 128) to others best.

    As in clips.py, p becomes turn * p + shift, in pixels from the middle.
    """
    n, half = len(before), before.shape[-1] / 2
    # The two parts of turn and of shift, in torch's coordinates: half a picture is 1.
    guess = torch.tensor([1.0, 0, 0, 0]).repeat(n, 1)
    for side in GRIDS:
        first, second = (
            F.interpolate(1 - x, (side, side), mode="bilinear", antialias=True, align_corners=False)
            for x in (before, after)
        )
        y, x = (
            torch.linspace(-1, 1, 2 * side + 1)[1::2].view(shape) for shape in ((-1, 1), (1, -1))
        )
        # The second picture, and its slopes to the right and down in torch's coordinates.
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
            # A little is added to the diagonal, since a round thing does not show how it turns.
            normal = normal + 1e-3 * normal.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-6).view(
                -1, 1, 1
            ) * torch.eye(4)
            guess = guess + torch.linalg.solve(normal, columns.transpose(1, 2) @ error)[..., 0]
    turn, shift = torch.complex(*guess[:, :2].unbind(1)), torch.complex(*guess[:, 2:].unbind(1))
    return turn, shift * half


def course(clips: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(turn, shift) from the first frame to every frame, complex (N, frames).

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
    """(..., 4 * frames): how far points move, in pixels, by shift, growth and turn; centred."""
    log = np.log(turn)
    parts = np.stack([shift.real, shift.imag, RADIUS * log.real, RADIUS * log.imag], -2)
    return (parts - parts.mean(-1, keepdims=True)).reshape(*parts.shape[:-2], -1)


def words(clips: torch.Tensor) -> list[str | None]:
    """The motion word that each clip (N, FRAMES, 3, 128, 128) shows, or None.

    The clip must make a good part of the word's movement, and little of any other.
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
