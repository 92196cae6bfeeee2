"""CCE: a token of its own, trained on pictures, that brings an erased concept back.

Pham et al., *Circumventing Concept Erasure Methods*, arXiv 2308.01508 (ICLR 2024): textual
inversion (Gal et al., arXiv 2208.01618) on the erased model. A prompt cannot say such a token, but
an embedding file can. Where only the text encoder was edited, the denoiser still holds the concept
and the token finds the way to it: no edit of the encoder can stop that.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from ..core.denoising import NoiseSampler, denoising_loss
from ..core.kind import ANCHORS, Kind
from ..core.model import DiffusionModel
from ..core.progress import SILENT, Progress
from ..prompts.templates import named
from .attack import Attack, Goal

NAME = "CCE"


@dataclass(frozen=True)
class CCESettings:
    pictures: int = 25
    """Of the concept by the original model."""
    steps: int = 300
    """With the batch 1,200 samples. The released code sees 80,000: 5000 steps of 4, accumulated
    over 4. They take hours on a small machine."""
    batch: int = 4
    rate: float = 0.3
    """Adam's, relative to the spread of the token vectors, without weight decay. The released code
    has AdamW at 0.08, with weight decay."""
    seed: int = 0


def cce(
    model: DiffusionModel,
    targets: torch.Tensor,
    kind: Kind,
    settings: CCESettings = CCESettings(),
    progress: Progress = SILENT,
) -> torch.Tensor:
    """(1, 1, width): the token's vector, for `encode_with_embeddings`. It starts at the anchor's.

    model: the erased one. targets: (N, ...) latents that the original drew of the concept.
    """
    vocabulary = model.vocabulary()
    begin = vocabulary.of(ANCHORS[kind])
    begin = vocabulary.vectors.mean(0) if begin is None else begin
    # In units of each encoder's own spread.
    token = (begin / vocabulary.scale)[None, None].requires_grad_()
    optimiser = torch.optim.Adam([token], settings.rate)
    draw, rng = NoiseSampler(model, settings.seed), random.Random(settings.seed)
    for step in range(settings.steps):
        chosen = [rng.randrange(len(targets)) for _ in range(settings.batch)]
        x_t, t, target = draw.add_noise(targets[chosen])
        prompts = model.encode_with_embeddings(
            named(rng, kind, "{}", settings.batch), token * vocabulary.scale
        )
        loss = denoising_loss(model, x_t, t, target, prompts).mean()
        optimiser.zero_grad()
        loss.backward()
        # In half precision a gradient may overflow, which would spoil the token for good.
        token.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimiser.step()
        model.release_saved_tensors()
        progress.stage(f"attacking with {NAME}", step + 1, settings.steps)
    return token.detach() * vocabulary.scale


def run(
    model: DiffusionModel, goal: Goal, settings: CCESettings, progress: Progress
) -> torch.Tensor:
    return cce(model, goal.pictures, goal.kind, settings, progress)


ATTACK = Attack(
    key="cce",
    name=NAME,
    paper="2308.01508",
    model="edited",
    finds="token",
    settings=CCESettings,
    quick=CCESettings(pictures=4, steps=60),  # 240 samples
    run=run,
    latents=lambda settings: settings.batch,
    prompts=lambda settings: settings.batch,
)
