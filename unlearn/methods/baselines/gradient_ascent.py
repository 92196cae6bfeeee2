"""Gradient ascent, a baseline of CPDM: Ma et al., arXiv 2403.12052.

The denoiser is trained to predict the noise in pictures of the concept worse, with nothing that
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
from ...core.erasure import Erasure
from ...core.kind import Kind
from ...core.model import DiffusionModel
from ...core.progress import OnStep, Progress, as_progress
from ...core.token_reading import Read
from ...core.trainable import Baseline, NetworkTrainable
from ...prompts.templates import named
from ...prompts.word_checks import check_words, words_read
from ..parts import shared
from ..parts.concepts import check_concepts, concept_latents, pictures_record
from ..parts.method import Method
from ..parts.retention import EncodeCache
from ..parts.run import run_method
from ..parts.settings import MethodSettings, constant, setting

WEIGHT_DECAY = 1e-2  # AdamW's own


@dataclass(frozen=True)
class GradientAscentSettings(MethodSettings):
    kind: Kind = shared.kind()
    iterations: int = setting(
        40, "How many steps. It does not stop by itself; more of them break the model.", at_least=1
    )
    learning_rate: float = constant(2e-5, "AdamW's, the same for every weight.")
    trainable: NetworkTrainable | Baseline = setting("all", "Which weights are trained.")
    rank: int = shared.rank()
    shots: int = setting(
        4,
        "How many pictures of each concept the model draws where none are given.",
        at_least=1,
    )
    batch: int = setting(2, "Pictures of a step.", at_least=1)
    seed: int = shared.seed()


def gradient_ascent(
    model: DiffusionModel,
    concepts: Sequence[str],
    images: torch.Tensor | None = None,
    settings: GradientAscentSettings = GradientAscentSettings(),
    progress: Progress | OnStep | None = None,
) -> Erasure:
    """Unlearn concepts in the denoiser from a few pictures of them.

    images: (N, H, W, 3) in 0..1, shared out as few_shot does; None lets the model draw them. The
    same seed gives the same erasure on one machine. Raises ValueError for bad input, before any
    work, and Diverged, which carries the last good erasure; `progress` may raise to cancel.
    The model is afterwards what it was.
    """
    progress = as_progress(progress)
    check(concepts, images, settings, model.readings)
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
        lambda edit: ascend(model, edit, list(concepts), pictures, settings, progress),
        kind=settings.kind,
        images=pictures_record(pictures, images),
    )


def check(
    concepts: Sequence[str],
    images: torch.Tensor | None,
    settings: GradientAscentSettings,
    read: Read | None = None,
) -> None:
    """Raises ValueError with one sentence for what cannot be used."""
    check_concepts(concepts, images)
    check_words(concepts, read=read)


def ascend(
    model: DiffusionModel,
    edit: Edit,
    concepts: list[str],
    pictures: list[torch.Tensor],
    settings: GradientAscentSettings,
    progress: Progress,
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
        progress.step(step + 1, settings.iterations, value, edit)


METHOD = Method(
    name="gradient_ascent",
    title="Gradient Ascent",
    about="Predicts the noise in pictures of the concept worse, and holds nothing else.",
    paper="2403.12052",
    part="denoiser",
    settings=GradientAscentSettings,
    train=gradient_ascent,
    check=check,
    takes_pictures=True,
)
