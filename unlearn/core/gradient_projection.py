"""Concept-preserving gradients: DoCo's retention (Wu et al., arXiv 2405.15304, section 3.3).

Where erasing pulls a weight against what keeping asks of it, that part of the pull is left out. It
belongs to no method: each may switch it on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

Projection = Literal["off", "orthogonal", "as_released"]
Gradients = Sequence[torch.Tensor | None]


def project_gradients(
    erase: Gradients, keep: Gradients, projection: Projection, clip: float = 0.0
) -> list[torch.Tensor | None]:
    """The erasing gradients without what works against the keeping ones, tensor by tensor.

    Only where the two point apart (their cosine is negative) is anything taken away. "orthogonal",
    the paper: the component along the keeping gradient, so that the rest is orthogonal to it.
    "as_released", the authors' code: cos * keep / |keep|, which takes away too much where the
    erasing gradient is shorter than 1. clip > 0 first scales each of the two sets, as a whole, to
    at most that norm. None stands for no gradient.
    """
    one, other = _clipped(erase, clip), _clipped(keep, clip)
    return [
        a if a is None or b is None or projection == "off" else _apart(a, b, projection)
        for a, b in zip(one, other)
    ]


def _apart(a: torch.Tensor, b: torch.Tensor, projection: Projection) -> torch.Tensor:
    along = (a * b).sum()
    length = b.norm()
    if length == 0 or along >= 0:
        return a
    if projection == "orthogonal":
        return a - along / length**2 * b
    return a - along / (a.norm() * length) * b / length


def _clipped(gradients: Gradients, largest: float) -> Gradients:
    present = [g for g in gradients if g is not None]
    if not largest or not present:
        return gradients
    total = torch.stack([g.norm() for g in present]).norm()
    scale = (largest / total.clamp(min=1e-12)).clamp(max=1.0)
    return [None if g is None else g * scale for g in gradients]
