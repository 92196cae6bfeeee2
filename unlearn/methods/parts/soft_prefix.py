"""Soft tokens before a prompt that make a loss small: the inner attack of hardening.

AdvUnlearn (Zhang et al., arXiv 2405.15234, NeurIPS 2024) seeks one such token with Adam, 30 steps
at 1e-3. Ours are as many as an attacker has words, and a step is a share of the size that the token
vectors have, which differs from encoder to encoder.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

STEPS = 10
STEP = 0.3  # of the size of a token vector, at first; it falls to nothing


def soft_prefix(
    losses_of: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    steps: int = STEPS,
    scale: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """The vectors that `steps` steps of normalised gradient descent lead to from `start`.

    losses_of: (N, tokens, width) to (N,) losses, each of its own vectors. start: token vectors of
    words. scale: Vocabulary.scale, so that one encoder's larger numbers do not outweigh another's.
    Gradients go to the vectors alone; what is being trained gets none.
    """
    vectors = start.detach() / scale
    size = vectors.square().mean().sqrt() * start.shape[-1] ** 0.5
    for step in range(steps):
        vectors.requires_grad_()
        (gradient,) = torch.autograd.grad(losses_of(vectors * scale).sum(), vectors)
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)  # of what overflowed in half precision
        length = gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        vectors = (vectors - STEP * (1 - step / steps) * size * gradient / length).detach()
    return vectors * scale
