"""Sampling in few steps: DPM-Solver++ (2M) (Lu et al., arXiv 2211.01095, algorithm 2) with the
noise levels of Karras et al. (arXiv 2206.00364, equation 5).

ComfyUI calls the two dpmpp_2m and karras, and its backend samples with them. So both backends draw
the same picture from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch

RHO = 7.0  # the larger, the more levels are at the clean end


def noise_levels(steps: int, lowest: float, highest: float) -> torch.Tensor:
    """(steps + 1,) noise levels sigma from `highest` down to `lowest`, and then 0."""
    share = torch.linspace(0, 1, steps)
    ends = highest ** (1 / RHO), lowest ** (1 / RHO)
    return torch.cat([(ends[0] + share * (ends[1] - ends[0])) ** RHO, torch.zeros(1)])


@torch.no_grad()
def draw(
    denoised: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    sigmas: torch.Tensor,
) -> torch.Tensor:
    """Sample x0, starting from the noisy latents x at the noise level sigmas[0].

    denoised(x, sigma): the model's estimate of x0; sigma is a scalar tensor. Each step extrapolates
    the last two estimates linearly in log sigma.
    """
    before, step_before = None, None
    for sigma, after in pairwise(sigmas):
        x0 = denoised(x, sigma)
        if after == 0:
            return x0
        step = (sigma / after).log()
        estimate = x0
        if before is not None and step_before is not None:
            estimate = x0 + (x0 - before) * step / (2 * step_before)
        shrink = (after / sigma).to(x)
        x = shrink * x + (1 - shrink) * estimate.to(x)
        before, step_before = x0, step
    return x
