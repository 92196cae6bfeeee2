"""Few-shot encoder unlearning, plainly: Fuchi and Takagi, arXiv 2405.07288."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import torch

from unlearn.prompts.templates import paper_templates

from .model import OnStep, PlainModel, trainable


def few_shot(
    model: PlainModel,
    latents: Sequence[torch.Tensor],
    concept: str,
    kind: str = "object",
    epochs: int = 4,
    batch: int = 2,
    rate: float = 1e-5,
    seed: int = 0,
    on_step: OnStep = lambda step, loss: None,
) -> None:
    """Gradient ascent on the denoising loss of a few pictures, into the text encoder in place.

    latents: of the pictures, (C, H, W) each. The authors flip half of the pictures and draw the
    latents once, before the loop.
    """
    rng, prompt_rng = random.Random(seed), random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    weights = [weight for encoder, _ in model.text for weight in mlp_and_final_attention(encoder)]
    optimiser = torch.optim.Adam(weights, rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=1e-8)
    latents, step = list(latents), 0
    for _ in range(epochs):
        rng.shuffle(latents)
        for first in range(0, len(latents), batch):
            x0 = torch.stack(latents[first : first + batch])
            t = torch.randint(0, 1000, (len(x0),), generator=generator).to(x0.device)
            noise = torch.randn(x0.shape, generator=generator).to(x0)
            prompts = [prompt_rng.choice(paper_templates(kind)).format(concept) for _ in x0]
            x, context = model.add_noise(x0, noise, t), model.encode(prompts)
            predicted = model.predict(model.unet, x, t, context)
            loss = -(predicted - noise).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            on_step(step, loss.item())


def mlp_and_final_attention(encoder: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The feed-forward layers, and the last layer's attention."""
    last = encoder.config.num_hidden_layers - 1
    pattern = re.compile(rf"layers\.(\d+\.mlp\.fc|{last}\.self_attn\.)")
    return trainable(encoder, lambda name: bool(pattern.search(name)))
