"""Pictures as the authors of few-shot unlearning load them: arXiv 2405.07288."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from ...core.kind import Kind
from ...core.model import DiffusionModel
from ...core.progress import SILENT, Progress
from .concepts import concept_latents


def paper_latents(
    model: DiffusionModel,
    concepts: Sequence[str],
    images: torch.Tensor | None,
    kind: Kind,
    shots: int,
    seed: int,
    progress: Progress = SILENT,
) -> list[torch.Tensor]:
    """(N, ...) clean latents of each concept's pictures, as the authors' code loads them.

    Each picture is flipped from left to right with p = 0.5 and encoded, and its latent is drawn
    from what the autoencoder says of it; both once for all epochs. The authors are given pictures.
    Those that the model draws are decoded and go the same way; without an autoencoder they stay as
    drawn.

    images: (N, H, W, 3), shared out evenly. None: the model draws `shots` of each concept.
    """
    if images is None:
        latents = concept_latents(model, concepts, None, kind, shots, seed, progress)
        if not model.has_autoencoder:
            return latents
        images = model.decode_latents(torch.cat(latents))
    rng = random.Random(seed)
    # Not the latents: a mirrored latent does not decode to the mirrored picture.
    pictures = [one.flip(1) if rng.random() < 0.5 else one for one in images]
    noise = torch.Generator().manual_seed(rng.getrandbits(63))
    return list(model.encode_images(torch.stack(pictures), noise).chunk(len(concepts)))
