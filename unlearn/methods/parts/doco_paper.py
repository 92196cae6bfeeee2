"""DoCo's own step, mode "paper" of domain correction: Wu et al., arXiv 2405.15304."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...core.conditioning import Conditioning
from .anchor_pictures import Anchors
from .doco_pictures import Pictures
from .retention import EncodeCache


@dataclass(frozen=True)
class Batch:
    """Noised anchor pictures and what was predicted for them; all (N, ...)."""

    number: int
    """Of the iteration."""
    x_t: torch.Tensor
    t: torch.Tensor
    wanted: Conditioning
    """Of the anchor's prompts."""
    asked: Conditioning
    """Of the same with the concept in them."""
    anchor: torch.Tensor
    """The original's prediction for the anchor's prompts."""
    student: torch.Tensor
    """The tuned denoiser's for the concept's."""


class Paper:
    """The paper's step: deceive the discriminator without harm to the anchor's own pictures."""

    WEIGHT_DECAY, CLIP = 1e-2, 1.0
    FIRST = True  # the denoiser's step comes before the discriminator's, as in the authors' code
    JUDGED = 2.0  # the discriminator's two losses are added there, and ours is their mean

    def __init__(self, model, edit, anchors: Anchors, concepts, settings, resume, progress) -> None:
        self.model, self.edit, self.settings, self.anchors = model, edit, settings, anchors
        self.pictures, self.encoded = Pictures(model, anchors.x0), EncodeCache(model)
        self.optimiser = edit.adam((0.9, 0.999), 1e-8, rate=settings.learning_rate)

    def shown(
        self, chosen: Sequence[int], named: Sequence[str], rng: random.Random, noise
    ) -> tuple[torch.Tensor, list[str]]:
        """(latents of these pictures, the concept's prompts of them). The authors resize pictures
        of things, not those of styles."""
        resize = self.settings.kind != "style"
        x0, prefixes = self.pictures.encoded(chosen, rng, noise, resize)
        return x0, [before + prompt for before, prompt in zip(prefixes, named)]

    def step(self, batch: Batch, deceived: torch.Tensor, rng, noise) -> float:
        projection, keep = self.settings.projection, None
        if projection != "off":
            keep = self._preserving(batch.number, len(batch.t), rng, noise)
        self.edit.shrink(self.settings.learning_rate * self.WEIGHT_DECAY)
        return self.edit.step(
            self.optimiser, deceived, keep=keep, projection=projection, clip=self.CLIP
        )

    def _preserving(self, number: int, count: int, rng, noise) -> torch.Tensor:
        """The denoising loss of anchor pictures of its own, with noise and timesteps of its own."""
        model, anchors = self.model, self.anchors
        chosen = [rng.randrange(anchors.count) for _ in range(count)]
        x0, _ = self.pictures.encoded(chosen, rng, noise, resize=False)
        fresh = torch.randn(x0.shape, generator=noise).to(x0)
        t = torch.randint(0, 1000, (count,), generator=noise).float().to(x0.device)
        prompts = self.encoded(*(anchors.pair(i, number)[0] for i in chosen))
        denoised = model.predict(model.add_noise(x0, fresh, t), t, prompts)
        return (denoised - model.target(x0, fresh, t)).square().mean()

    def begin(self) -> None:
        """It begins from nothing."""

    def reached(self, more: dict) -> bool:
        return False
