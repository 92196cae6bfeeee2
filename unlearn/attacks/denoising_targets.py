"""Pictures that an attack wants back, and how far a conditioning is from drawing them."""

from __future__ import annotations

import torch

from ..core.conditioning import Conditioning
from ..core.denoising import GOLDEN, denoising_loss
from ..core.kind import Kind
from ..core.model import DiffusionModel

# Timesteps that tell most of a concept: what a thing is shows in much noise, how it is drawn in
# less.
TIMES = {"object": (400.0, 1000.0), "style": (100.0, 800.0), "character": (400.0, 1000.0)}


class Targets:
    """A fixed set of draws of noise and timestep for each picture, so that losses compare.

    x0: (N, ...) clean latents. The timesteps lie evenly in TIMES.
    """

    def __init__(
        self, model: DiffusionModel, x0: torch.Tensor, kind: Kind, draws: int, seed: int
    ) -> None:
        self.model, self.count, self.draws = model, len(x0), draws
        self.x0 = x0.repeat_interleave(draws, 0)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.x0.shape, generator=generator).to(x0)
        low, high = TIMES[kind]
        share = (0.5 + torch.arange(len(self.x0)) * GOLDEN) % 1
        self.t = (low + (high - low) * share).to(x0.device)
        self.x_t = model.add_noise(self.x0, noise, self.t)
        self.target = model.target(self.x0, noise, self.t)

    def losses(self, conditioning: Conditioning) -> torch.Tensor:
        """(N * draws,) denoising losses, picture by picture; conditioning: one for each picture."""
        rows = torch.arange(self.count, device=conditioning.cross.device)
        each = conditioning[rows.repeat_interleave(self.draws)]
        return denoising_loss(self.model, self.x_t, self.t, self.target, each)

    def relative(self, conditioning: Conditioning, before: torch.Tensor) -> torch.Tensor:
        """(N,) losses as shares of what they were: a clean and a noisy latent differ a hundredfold,
        and each draw shall count alike."""
        return (self.losses(conditioning) / before).view(self.count, self.draws).mean(1)
