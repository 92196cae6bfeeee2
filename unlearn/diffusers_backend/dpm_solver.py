"""Drawing in few steps: DPM-Solver++ (2M) (Lu et al., arXiv 2211.01095, algorithm 2) on noise
levels spaced as Karras et al. have them (arXiv 2206.00364, equation 5).

ComfyUI calls the pair dpmpp_2m and karras, and its backend draws with it. With the same noise both
backends draw the same picture.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch

RHO = 7.0  # how much closer together the levels lie towards the clean end


def noise_levels(steps: int, lowest: float, highest: float) -> torch.Tensor:
    """(steps + 1,) sigmas, noisiest first; the last is 0."""
    share = torch.linspace(0, 1, steps)
    ends = highest ** (1 / RHO), lowest ** (1 / RHO)
    return torch.cat([(ends[0] + share * (ends[1] - ends[0])) ** RHO, torch.zeros(1)])


@torch.no_grad()
def draw(
    denoised: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    sigmas: torch.Tensor,
) -> torch.Tensor:
    """x0 from x = x0 + sigmas[0] * noise.

    denoised(x, sigma): the model's guess of x0, sigma a number. Between two levels the guess is
    extrapolated linearly in log sigma from the last two.
    """
    before, step_before = None, None
    for sigma, after in pairwise(sigmas):
        x0 = denoised(x, sigma)
        if after == 0:
            return x0
        step = (sigma / after).log()
        guess = x0
        if before is not None:
            guess = x0 + (x0 - before) * step / (2 * step_before)
        shrink = (after / sigma).to(x)
        x = shrink * x + (1 - shrink) * guess.to(x)
        before, step_before = x0, step
    return x
