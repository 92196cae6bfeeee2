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
    pictures: torch.Tensor,
    prompts: Sequence[tuple[str, str]],
    kind: str = "object",
    iterations: int = 2000,
    alone: int | None = None,
    batch: int = 8,
    rate: float = 4.8e-5,
    seed: int = 0,
    on_step: OnStep = lambda step, loss: None,
) -> None:
    """Tune the keys and values of the denoiser's cross-attention in place.

    pictures: (N, 3, H, H) in 0..1, of the anchor; latents where the model has no autoencoder.
    prompts: of each the anchor's prompt and the same with the concept; they begin again where there
    are fewer than pictures. alone: the steps at first that train the discriminator alone, by
    default half of them.
    """
    alone = iterations // 2 if alone is None else alone
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    original, student = copy.deepcopy(model.unet), model.unet
    weights = trainable(student, lambda name: "attn2.to_k" in name or "attn2.to_v" in name)
    for name, module in student.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.register_forward_hook(first_token_detached)
    config = student.config
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        judge = Discriminator(config.in_channels, config.sample_size, padding=1).to(model.device)
    judging_rate = 5e-4 if kind == "style" else 1e-4
    judging = torch.optim.Adam(judge.parameters(), judging_rate, betas=(0.5, 0.999))
    optimiser = torch.optim.AdamW(weights, rate, betas=(0.9, 0.999), weight_decay=1e-2)
    for number in range(iterations):
        chosen = [rng.randrange(len(pictures)) for _ in range(batch)]
        pairs = [prompts[i % len(prompts)] for i in chosen]
        x0, sizes = loaded(model, pictures[chosen], rng, generator, resizes=kind != "style")
        x, t, _ = noised(model, x0, generator)
        with torch.no_grad():
            wanted = model.encode([anchor for anchor, _ in pairs])
            asked = model.encode([size + concept for size, (_, concept) in zip(sizes, pairs)])
            real = model.predict_x0(x, t, model.predict(original, x, t, wanted))
        with torch.set_grad_enabled(number >= alone):
            fake = model.predict_x0(x, t, model.predict(student, x, t, asked))
        if number >= alone:
            loss = against(judge(fake), 1.0)
            erasing = clipped(torch.autograd.grad(loss, weights))
            kept = preserving(model, pictures, prompts, batch, rng, generator)
            keeping = clipped(torch.autograd.grad(kept, weights))
            for weight, erase, keep in zip(weights, erasing, keeping):
                weight.grad = preserved(erase, keep)
            optimiser.step()
        judged = against(judge(real), 1.0) + against(judge(fake.detach()), 0.0)
        judging.zero_grad()
        judged.backward()
        judging.step()
        on_step(number + 1, (loss if number >= alone else judged).item())


def preserving(
    model: PlainModel,
    pictures: torch.Tensor,
    prompts: Sequence[tuple[str, str]],
    batch: int,
    rng: random.Random,
    generator: torch.Generator,
) -> torch.Tensor:
    """The denoising loss of a batch of the anchor's pictures, at their own size."""
    chosen = [rng.randrange(len(pictures)) for _ in range(batch)]
    x0, _ = loaded(model, pictures[chosen], rng, generator, resizes=False)
    x, t, noise = noised(model, x0, generator)
    with torch.no_grad():
        wanted = model.encode([prompts[i % len(prompts)][0] for i in chosen])
    return (model.predict(model.unet, x, t, wanted) - noise).square().mean()


def noised(
    model: PlainModel, x0: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(latents with noise, their timesteps, the noise)."""
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    t = torch.randint(0, 1000, (len(x0),), generator=generator).to(x0.device)
    return model.add_noise(x0, noise, t), t, noise


def loaded(
    model: PlainModel,
    pictures: torch.Tensor,
    rng: random.Random,
    generator: torch.Generator,
    resizes: bool,
) -> tuple[torch.Tensor, list[str]]:
    """(latents of a batch, how each concept's prompt begins). Half of the pictures are flipped."""
    if model.vae is None:
        return pictures, [""] * len(pictures)
    shown, sizes = [], []
    for picture in pictures:
        if rng.random() < 0.5:
            picture = picture.flip(-1)
        picture, size = resized(picture, rng) if resizes else (picture, "")
        shown.append(picture)
        sizes.append(size)
    return model.encode_pictures(torch.stack(shown), generator), sizes


def resized(picture: torch.Tensor, rng: random.Random) -> tuple[torch.Tensor, str]:
    """A picture that is smaller, on grey, or larger, and cut; and the words that say so."""
    full = picture.shape[-1]
    if rng.random() < 0.66:
        side = rng.randint(full // 3, full)
    else:
        side = rng.randrange(int(1.2 * full), int(1.4 * full))
    if side == full:
        return picture, ""
    other = F.interpolate(picture[None], (side, side), mode="bilinear", antialias=True)[0]
    top, left = (rng.randint(0, abs(full - side)) for _ in "yx")
    if side > full:
        cut = other[:, top : top + full, left : left + full]
        return cut, rng.choice(("zoomed in ", "close up "))
    canvas = torch.full_like(picture, 0.5)
    canvas[:, top : top + side, left : left + side] = other
    return canvas, rng.choice(("a far away ", "very small ")) if side < 0.6 * full else ""


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
