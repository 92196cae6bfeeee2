"""The denoising loss, and the random noise and timesteps for it."""

from __future__ import annotations

import math

import torch

from .conditioning import Conditioning
from .model import DiffusionModel

# The golden ratio minus 1. Its multiples modulo 1 cover 0..1 evenly, however many one takes.
GOLDEN = (math.sqrt(5) - 1) / 2


class NoiseSampler:
    """Draws noise and timesteps from its own seed."""

    def __init__(self, model: DiffusionModel, seed: int) -> None:
        self.model = model
        self.noise = torch.Generator().manual_seed(seed)

    def add_noise(self, x0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(x_t, t, target) for clean latents x0, (N, ...). t, (N,), is uniform over 0..999.

        The random numbers come from the CPU, so they are the same on every device.
        """
        t = torch.randint(0, 1000, (len(x0),), generator=self.noise).float().to(x0.device)
        noise = torch.randn(x0.shape, generator=self.noise).to(x0)
        return self.model.add_noise(x0, noise, t), t, self.model.target(x0, noise, t)


def denoising_loss(
    model: DiffusionModel,
    x_t: torch.Tensor,
    t: torch.Tensor,
    target: torch.Tensor,
    conditioning: Conditioning,
) -> torch.Tensor:
    """(N,) mean squared error of the denoiser's prediction."""
    error = model.predict(x_t, t, conditioning).float() - target.float()
    return error.square().flatten(1).mean(1)


def ascent_loss(losses: torch.Tensor) -> torch.Tensor:
    """Minus the mean of denoising losses, (N,): gradient ascent (arXiv 2405.07288).

    It has no lower bound.
    """
    return -losses.mean()
