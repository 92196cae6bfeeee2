"""DoCo, domain correction with a concept-preserving gradient, plainly: Wu et al., arXiv 2405.15304.

The discriminator is the pack's (unlearn/methods/parts/discriminator.py): the same network begins
with the same weights.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from unlearn.methods.parts.discriminator import Discriminator

from .model import OnStep, PlainModel, trainable


def domain_correction(
    model: PlainModel,
    latents: torch.Tensor,
    prompts: Sequence[tuple[str, str]],
    iterations: int = 2000,
    alone: int | None = None,
    batch: int = 8,
    rate: float = 4.8e-5,
    seed: int = 0,
    on_step: OnStep = lambda step, loss: None,
) -> None:
    """Tune the keys and values of the denoiser's cross-attention in place.

    latents: (N, C, H, W) of the anchor's pictures. prompts: of each the anchor's prompt and the
    same with the concept; they begin again where there are fewer than pictures. alone: the steps
    at first that train the discriminator alone, by default half of them.
    """
    alone = iterations // 2 if alone is None else alone
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    original, student = copy.deepcopy(model.unet), model.unet
    weights = trainable(student, lambda name: "attn2.to_k" in name or "attn2.to_v" in name)
    for name, module in student.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.register_forward_hook(first_token_detached)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        judge = Discriminator(latents.shape[1], min(latents.shape[-2:])).to(model.device)
    judging = torch.optim.Adam(judge.parameters(), 1e-4, betas=(0.5, 0.999))
    optimiser = torch.optim.AdamW(weights, rate, betas=(0.9, 0.999), weight_decay=1e-2)
    for number in range(iterations):
        chosen = [rng.randrange(len(latents)) for _ in range(batch)]
        x0 = latents[chosen]
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        t = torch.randint(0, 1000, (batch,), generator=generator).to(x0.device)
        x = model.add_noise(x0, noise, t)
        pairs = [prompts[i % len(prompts)] for i in chosen]
        with torch.no_grad():
            wanted = model.encode([anchor for anchor, _ in pairs])
            asked = model.encode([concept for _, concept in pairs])
            real = model.predict_x0(x, t, model.predict(original, x, t, wanted))
        with torch.set_grad_enabled(number >= alone):
            fake = model.predict_x0(x, t, model.predict(student, x, t, asked))
        loss = (against(judge(real), 1.0) + against(judge(fake.detach()), 0.0)) / 2
        judging.zero_grad()
        loss.backward()
        judging.step()
        if number >= alone:
            loss = against(judge(fake), 1.0)
            erasing = clipped(torch.autograd.grad(loss, weights))
            denoised = model.predict(student, x, t, wanted)
            kept = (denoised - noise).square().mean()
            keeping = clipped(torch.autograd.grad(kept, weights))
            for weight, erase, keep in zip(weights, erasing, keeping):
                weight.grad = preserved(erase, keep)
            optimiser.step()
        on_step(number + 1, loss.item())


def first_token_detached(module, inputs, output: torch.Tensor) -> torch.Tensor:
    return torch.cat([output[:, :1].detach(), output[:, 1:]], 1)


def against(score: torch.Tensor, truth: float) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(score, torch.full_like(score, truth))


def clipped(gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Gradients whose norm over all of them is 1 at most."""
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return [gradient * (1 / norm.clamp(min=1)) for gradient in gradients]


def preserved(erase: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """The erasing gradient without what is against the keeping one."""
    dot = (erase * keep).sum()
    return erase if dot >= 0 else erase - dot / keep.square().sum() * keep
