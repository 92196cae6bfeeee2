"""The denoising loss, and the random draws of noise and timestep that it is taken on."""

from __future__ import annotations

import math

import torch

from .conditioning import Conditioning
from .model import DiffusionModel

# The golden ratio's fraction. Its multiples modulo 1 lie evenly, however many there are.
GOLDEN = (math.sqrt(5) - 1) / 2


class NoiseSampler:
    """Noise and timesteps at random, from a seed of its own."""

    def __init__(self, model: DiffusionModel, seed: int) -> None:
        self.model = model
        self.noise = torch.Generator().manual_seed(seed)

    def add_noise(self, x0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(x_t, t, target), t uniform over 0..999; drawn on the CPU, so alike on every device."""
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
    """(N,) mean squared error of the network's prediction."""
    error = model.predict(x_t, t, conditioning).float() - target.float()
    return error.square().flatten(1).mean(1)


def ascent_loss(d: torch.Tensor) -> torch.Tensor:
    """The paper's: minus the denoising loss. It has no lower bound."""
    return -d.mean()
