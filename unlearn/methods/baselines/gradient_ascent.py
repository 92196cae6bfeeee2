"""Gradient ascent, a baseline of CPDM: Ma et al., arXiv 2403.12052.

The network is trained to predict the noise in pictures of the concept worse, with nothing that
holds other prompts. Loss, optimiser and weights are those of the released code; how long and at
which rate it ran was not released, and is ours. Norms and embeddings are left as they are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...core.denoising import NoiseSampler, ascent_loss, denoising_loss
from ...core.edit import Edit
from ...core.erasure import Erasure, images_hash
from ...core.kind import Kind
from ...core.model import DiffusionModel
from ...core.progress import OnStep
from ...core.trainable import Baseline, NetworkTrainable
from ...prompts.templates import named
from ...prompts.word_checks import check_words, words_read
from ..parts.concepts import check_concepts, concept_latents
from ..parts.retention import EncodeCache
from ..parts.run import run_method

WEIGHT_DECAY = 1e-2  # AdamW's own


@dataclass(frozen=True)
class GradientAscentSettings:
    kind: Kind = "object"
    """Which templates name the concept, in place of captions."""
    iterations: int = 40
    """It does not stop by itself, and has no bound: more of them break the model."""
    learning_rate: float = 2e-5
    """AdamW's, the same for every weight."""
    trainable: NetworkTrainable | Baseline = "all"
    rank: int = 0
    """Rank of the deltas; 0 trains full ones."""
    shots: int = 4
    """How many pictures the model draws of each concept where none are given."""
    batch: int = 2
    seed: int = 0


def gradient_ascent(
    model: DiffusionModel,
    concepts: Sequence[str],
    images: torch.Tensor | None = None,
    settings: GradientAscentSettings = GradientAscentSettings(),
    on_step: OnStep | None = None,
) -> Erasure:
    """Unlearn concepts in the network from a few pictures of them.

    images: (N, H, W, 3) in 0..1, shared out as few_shot does; None lets the model draw them. The
    same seed gives the same erasure on one machine. Raises ValueError for bad input, before any
    work, and Diverged, which carries the last good erasure; `on_step` may raise to cancel.
    The model is afterwards what it was.
    """
    check_concepts(concepts, images)
    check_words(concepts, read=model.readings)
    concepts = words_read(concepts, model.readings)
    pictures = concept_latents(
        model, concepts, images, settings.kind, settings.shots, settings.seed
    )
    return run_method(
        model,
        "denoiser",
        settings.trainable,
        "gradient_ascent",
        list(concepts),
        settings,
        lambda edit: ascend(model, edit, list(concepts), pictures, settings, on_step),
        kind=settings.kind,
        images={
            "count": sum(map(len, pictures)),
            "drawn_by_model": images is None,
            "hash": None if images is None else images_hash(images),
        },
    )


def ascend(
    model: DiffusionModel,
    edit: Edit,
    concepts: list[str],
    pictures: list[torch.Tensor],
    settings: GradientAscentSettings,
    on_step: OnStep | None,
) -> None:
    """AdamW up the denoising loss; of several concepts in turn."""
    draw, encoded = NoiseSampler(model, settings.seed), EncodeCache(model)
    rng, prompt_rng = random.Random(settings.seed), random.Random(settings.seed)
    optimiser = edit.adam((0.9, 0.999), 1e-8, rate=settings.learning_rate)
    for step in range(settings.iterations):
        concept, latents = concepts[step % len(concepts)], pictures[step % len(concepts)]
        chosen = [rng.randrange(len(latents)) for _ in range(settings.batch)]
        x_t, t, target = draw.add_noise(latents[chosen])
        prompts = encoded(*named(prompt_rng, settings.kind, concept, len(chosen)))
        loss = ascent_loss(denoising_loss(model, x_t, t, target, prompts))
        edit.shrink(settings.learning_rate * WEIGHT_DECAY)
        value = edit.step(optimiser, loss)
        if on_step:
            on_step(step + 1, settings.iterations, value, edit)
