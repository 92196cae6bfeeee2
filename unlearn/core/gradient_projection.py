"""Concept-preserving gradients: DoCo's retention (Wu et al., arXiv 2405.15304, section 3.3).

Where the erasing gradient works against the keeping gradient, that component is removed. Any method
may use it.
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
    """The erasing gradients without the component against the keeping ones, tensor by tensor.

    A gradient changes only where the cosine of the two is negative. "orthogonal" (the paper)
    removes the component along the keeping gradient, so the rest is orthogonal to it. "as_released"
    (the authors' code) removes cos * keep / |keep|, which is too much where the erasing gradient is
    shorter than 1. clip > 0 first scales each of the two sets to at most that norm over all its
    tensors. None stands for no gradient.
    """
    erase, keep = _clipped(erase, clip), _clipped(keep, clip)
    return [
        e if e is None or k is None or projection == "off" else _project(e, k, projection)
        for e, k in zip(erase, keep)
    ]


def _project(erase: torch.Tensor, keep: torch.Tensor, projection: Projection) -> torch.Tensor:
    dot = (erase * keep).sum()
    norm = keep.norm()
    if norm == 0 or dot >= 0:
        return erase
    if projection == "orthogonal":
        return erase - dot / norm**2 * keep
    return erase - dot / (erase.norm() * norm) * keep / norm


def _clipped(gradients: Gradients, max_norm: float) -> Gradients:
    present = [g for g in gradients if g is not None]
    if not max_norm or not present:
        return gradients
    total = torch.stack([g.norm() for g in present]).norm()
    scale = (max_norm / total.clamp(min=1e-12)).clamp(max=1.0)
    return [None if g is None else g * scale for g in gradients]
