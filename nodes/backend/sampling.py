"""Draws with the host's sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import comfy.model_management as management
import comfy.sample
import torch

from ...unlearn.core.conditioning import Conditioning
from .differentiable import untracked

if TYPE_CHECKING:
    from .model import ComfyModel


def sampled(
    model: ComfyModel,
    prompts: Sequence[str] | Conditioning,
    seed: int,
    steps: int,
    guidance: float,
) -> torch.Tensor:
    """Clean latents of one picture for each prompt, by the host's dpmpp_2m sampler.

    The pictures have the model's `size`; picture i has the seed seed + i. Models that get their
    guidance as a number, such as Flux dev and HunyuanVideo 1, draw without classifier-free
    guidance, since both together oversaturate the pictures.
    """
    if model.told_guidance:
        guidance = 1.0
    with torch.no_grad():
        positive = prompts if isinstance(prompts, Conditioning) else model.encode(prompts)
        if len(positive) > 1 and (positive.tokens is not None or positive.extra):
            # The host takes a mask, and a number of tokens, for one prompt only.
            each = [
                sampled(model, positive.single(i), seed + i, steps, guidance)
                for i in range(len(positive))
            ]
            return torch.cat(each)
        negative = model.encode([""]).repeated(len(prompts))
    noise = torch.cat(
        [
            model.denoiser.noise(1, model.size, torch.Generator().manual_seed(seed + i))
            for i in range(len(prompts))
        ]
    )
    with untracked():
        latents = comfy.sample.sample(
            model.patcher,
            noise,
            steps,
            guidance,
            "dpmpp_2m",
            "karras",
            _listed(positive),
            _listed(negative),
            torch.zeros_like(noise),
            callback=lambda *_: management.throw_exception_if_processing_interrupted(),
            disable_pbar=True,
            seed=seed,
        )
    model.residency.make_room()
    return model.network.process_latent_in(latents.float()).to(model.device)


def _listed(conditioning: Conditioning) -> list:
    """The conditioning in the form that the host passes between nodes."""
    return [[conditioning.cross, {**conditioning.extra, "pooled_output": conditioning.pooled}]]
