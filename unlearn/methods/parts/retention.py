"""Holding other prompts in place while a denoiser is tuned: retention by prediction."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from ...core.conditioning import Conditioning
from ...core.ddim import at
from ...core.edit import Edit
from ...core.kind import Kind
from ...core.model import DiffusionModel
from ...core.progress import SILENT, Progress
from ...core.resume import Resume
from ...prompts.sampler import PromptSampler


class EncodeCache:
    """Conditioning of prompts under a text encoder that stays as it is, each encoded once."""

    LARGEST = 2**28  # bytes kept: T5's of one prompt are eight million

    def __init__(self, model: DiffusionModel, told: dict | None = None) -> None:
        """told: what the denoiser is told beside each prompt, as in Conditioning.extra."""
        self.model, self.told = model, told or {}
        self.kept: dict[str, Conditioning] = {}
        self.size = 0

    @torch.no_grad()
    def __call__(self, *prompts: str) -> Conditioning:
        found = []
        for prompt in prompts:
            if prompt not in self.kept:
                found_now = self.model.encode([prompt])
                self.kept[prompt] = replace(found_now, extra={**found_now.extra, **self.told})
                self.size += self.kept[prompt].cross.nbytes
            found.append(self.kept[prompt])
        while self.size > self.LARGEST:
            self.size -= self.kept.pop(next(iter(self.kept))).cross.nbytes
        return Conditioning.cat(found)


def drawn(
    model: DiffusionModel, prompts: Sequence[str], seed: int, progress: Progress, what: str
) -> torch.Tensor:
    """Latents of prompts, a few at a time, on the CPU; `progress` hears what is being done."""
    parts = []
    for i in range(0, len(prompts), RetentionSet.AT_ONCE):
        progress.stage(what, i, len(prompts))
        parts.append(model.sample(prompts[i : i + RetentionSet.AT_ONCE], seed + i).cpu())
    return torch.cat(parts)


class RetentionSet:
    """Other prompts, and pictures of them by the original model, on which it is to stay as it is.

    Held on their own pictures, since on the concept's a denoiser is seldom asked for anything else.
    """

    COUNT, AT_ONCE = 12, 4

    def __init__(
        self,
        model: DiffusionModel,
        edit: Edit,
        around: tuple[Sequence[str], Kind],
        protect: Sequence[str],
        seed: int,
        resume: Resume,
        progress: Progress = SILENT,
    ) -> None:
        self.model, self.encoded = model, EncodeCache(model)
        words = PromptSampler(*around, random.Random(seed), protect=protect)
        self.prompts = words.others(self.COUNT)

        with edit.off():
            self.x0 = resume.once_latents(
                "held",
                model,
                len(self.prompts),
                lambda: drawn(model, self.prompts, seed, progress, "drawing pictures to hold"),
            ).to(model.device)

    def add_noise(
        self, rng: random.Random, generator: torch.Generator, t: float | torch.Tensor
    ) -> tuple[torch.Tensor, Conditioning]:
        """(x_t, prompts) of some of them; t is one timestep, or one for each (AT_ONCE,)."""
        chosen = rng.sample(range(len(self.prompts)), self.AT_ONCE)
        x0 = self.x0[chosen]
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        t = at(t, x0) if isinstance(t, float) else t
        return self.model.add_noise(x0, noise, t), self.encoded(*(self.prompts[i] for i in chosen))
