"""Keeps a few of the pictures that a verdict draws, for whoever looks at the erasure later."""

from __future__ import annotations

from typing import Any

import torch

from ..core.model import DiffusionModel
from ..render.thumbnails import packed

KEPT = 2  # pictures of each concept, before and after


class Thumbnails:
    """To be given to `verdict.measured` as `keep`."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, list[str]]] = {}
        """By concept {"before", "after"}, as in Erasure.pictures."""

    def __call__(
        self, model: DiffusionModel, concept: str, before: torch.Tensor, after: torch.Tensor
    ) -> None:
        """Keep pictures of the latents. Without an autoencoder, or memory for it, none are kept."""
        if not model.has_autoencoder:
            return
        try:
            self.found[concept] = {
                name: packed(model.decode_latents(latents[:KEPT]))
                for name, latents in (("before", before), ("after", after))
            }
        except (MemoryError, RuntimeError):  # the verdict counts, not its pictures
            return


def may_be_shown(settings: Any) -> bool:
    """Whether pictures of the concept may be kept in the file. Nudity's are not: it may be sent on.

    settings: the method's.
    """
    return getattr(settings, "kind", "") != "nudity"
