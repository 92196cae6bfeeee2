"""The terms of KSCU's loss at one step: Zhang et al., arXiv 2507.06526."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...core.conditioning import Conditioning
from ...core.ddim import at
from ...core.model import DiffusionModel


def erase_term(
    student: torch.Tensor, own: torch.Tensor, neutral: torch.Tensor, beyond: float
) -> torch.Tensor:
    """mse(e*(x, c'), e(x, 0) - g (e(x, c) - e(x, 0))): the concept's prediction, turned away."""
    return (student - (neutral - beyond * (own - neutral))).square().mean()


def empty_term(
    student: torch.Tensor, own: torch.Tensor, empty: torch.Tensor, beyond: float
) -> torch.Tensor:
    """mse(e*(x, 0), e(x, 0) - l1 (e(x, c) - e(x, 0))): the empty prompt's, turned a little."""
    return erase_term(student, own, empty, beyond)


def empty_weights(variant: str, noise: float, step: int) -> tuple[float, float]:
    """(l2, l1): the second term's weight, and how far it turns.

    noise: how far a latent is on its way to noise, in 0..1: the timestep, or a flow's sigma. step:
    of the trajectory, 0 the noisiest, by which the authors' older script goes.
    """
    if variant == "paper":
        return 1e-4, 0.02 * (1 - noise)
    return 2e-5, step / 10000


def predictions(
    model: DiffusionModel, x: torch.Tensor, t: float, *prompts: Conditioning
) -> tuple[torch.Tensor, ...]:
    """The denoiser's prediction at the same x_t for each of several prompts, in one pass."""
    together = torch.cat([x] * len(prompts))
    return model.predict(together, at(t, together), Conditioning.cat(prompts)).chunk(len(prompts))


def noise_share(model: DiffusionModel, t: float) -> float:
    """How far a latent at a timestep in 0..1000 is on its way to noise, in 0..1.

    Of a flow, which predicts noise less latents, the share that its own shift makes of the
    timestep; of diffusion the timestep's.
    """
    if not is_flow(model):
        return t / 1000
    one = torch.ones(1, 1, 1, 1, device=model.device)
    return model.add_noise(torch.zeros_like(one), one, at(t, one)).item()


def is_flow(model: DiffusionModel) -> bool:
    """Whether it is a flow: whether it predicts noise less latents."""
    one = torch.ones(1, 1, 1, 1, device=model.device)
    return abs(model.target(one, torch.zeros_like(one), at(500.0, one)).item() + 1) < 1e-3


def noisy(prompt: Conditioning, deviation: float, generator: torch.Generator) -> Conditioning:
    noise = torch.randn(prompt.cross.shape, generator=generator).to(prompt.cross)
    return replace(prompt, cross=prompt.cross + deviation * noise)
