"""Concepts and their pictures, as every method takes them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from ...core.erasure import images_hash
from ...core.images import check_images
from ...core.kind import Kind
from ...core.model import DiffusionModel
from ...core.progress import SILENT, Progress
from ...prompts.templates import named

DRAWN_AT_ONCE = 4  # pictures
STOP_WINDOW = 10  # steps over which the concept's loss is averaged for stopping


def check_concepts(concepts: Sequence[str], images: torch.Tensor | None) -> None:
    """Raises ValueError with one sentence where concepts or images cannot be used."""
    if isinstance(concepts, str):
        raise ValueError(
            f"The concepts are a list, but this is one text; give [{concepts!r}] for one concept."
        )
    if not concepts or not all(concept.strip() for concept in concepts):
        raise ValueError(
            "No concept is named: type the word or name to unlearn, for example: Zorvik"
        )
    check_images(images)
    if images is not None and len(images) % len(concepts):
        raise ValueError(
            f"{len(images)} images cannot be shared evenly among {len(concepts)} "
            "concepts; give the same number of each, in the concepts' order, or none and the model "
            "draws them."
        )


def concept_latents(
    model: DiffusionModel,
    concepts: Sequence[str],
    images: torch.Tensor | None,
    kind: Kind,
    shots: int,
    seed: int,
    progress: Progress = SILENT,
) -> list[torch.Tensor]:
    """(N, ...) clean latents of each concept's pictures.

    images: (N, H, W, 3), shared out evenly. None: the model draws `shots` of each concept from its
    own prompts.
    """
    if images is not None:
        return list(model.encode_images(images).chunk(len(concepts)))
    rng = random.Random(seed)
    drawn = []
    for concept in concepts:
        prompts = named(rng, kind, concept, shots)
        parts = []
        for i in range(0, len(prompts), DRAWN_AT_ONCE):
            progress.stage(f"drawing pictures of {concept}", i, len(prompts))
            parts.append(model.sample(prompts[i : i + DRAWN_AT_ONCE], seed + i))
        drawn.append(torch.cat(parts))
    return drawn


def pictures_record(
    pictures: Sequence[torch.Tensor], images: torch.Tensor | None
) -> dict[str, int | bool | str | None]:
    """What a record says of the pictures. pictures: the latents of each concept; images: those that
    were given, or None."""
    return {
        "count": sum(map(len, pictures)),
        "drawn_by_model": images is None,
        "hash": None if images is None else images_hash(images),
    }
