"""Latents drawn from what a VAE says of a picture, where ComfyUI itself takes the mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

GAUSSIAN = "DiagonalGaussianRegularizer"
"""The host's layer that takes the mean. Autoencoders without it have no variance, or hide it."""


@contextmanager
def drawn_from(vae, generator: torch.Generator | None) -> Iterator[None]:
    """Inside, the latents that a VAE encodes are drawn with a generator on the CPU.

    None changes nothing, and so does a VAE without a variance: its latents are the mean.
    """

    def draw(module, given: tuple[torch.Tensor], output: tuple) -> tuple:
        mean, log_variance = given[0].chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        # The bounds are the host's own, as in diffusers.
        return mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise, *output[1:]

    network = getattr(vae, "first_stage_model", None)
    with ExitStack() as stack:
        if generator is not None and isinstance(network, torch.nn.Module):
            for module in network.modules():
                if type(module).__name__ == GAUSSIAN:
                    stack.callback(module.register_forward_hook(draw).remove)
        yield
