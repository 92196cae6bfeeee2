"""Checks that a user's pictures show the concept, according to the model that is to unlearn it.

If the concept's word lowers the loss on its pictures, they show it; a few draws tell. Only if it
does not, the classifier looks for what the pictures do show (classifier.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..core.kind import Kind
from ..core.model import DiffusionModel
from ..core.progress import SILENT, Progress
from ..prompts.names import unnamed
from ..prompts.vocabulary import VOCABULARY
from .classifier import alone, explained, identify

CONCEPTS = 4  # the most that are checked
PICTURES = 4  # the most for each concept
DRAWS = 4  # of noise for each picture
IDENTIFYING = 16  # draws for each word in the classifier's last round
SURE = 3.0  # standard errors
LITTLE = 0.25  # the concept must explain at least this share of what the best word explains


def check_pictures(
    model: DiffusionModel,
    concepts: Sequence[str],
    images: torch.Tensor,
    kind: Kind,
    way_out: str,
    progress: Progress = SILENT,
) -> list[str]:
    """Warnings about the pictures, a sentence for each doubtful concept.

    images: (N, H, W, 3), an equal number for each concept, in their order. way_out: how to switch
    this check off, for the message. Raises ValueError where a concept does not explain its pictures
    and a built-in word does. Styles are not checked, since the objects in the pictures are not
    known.
    """
    if kind == "style":
        return []
    found = []
    for concept, pictures in list(zip(concepts, images.chunk(len(concepts))))[:CONCEPTS]:
        pictures = pictures[:PICTURES]
        x0 = model.encode_images(pictures)
        contexts = [alone(kind)] * len(pictures)
        own = explained(model, x0, contexts, [concept], range(DRAWS), kind)
        if _is_positive(own[:, 0]):
            continue
        words = unnamed(VOCABULARY[kind], [concept])
        looking = progress.named("looking at the pictures")
        best = identify(model, pictures, words, kind, IDENTIFYING, progress=looking, things=()).best
        # Other draws than those that chose the word, which would favour it.
        both = explained(model, x0, contexts, [concept, best], range(DRAWS, 3 * DRAWS), kind)
        ours, theirs = both[:, 0], both[:, 1]
        is_much = _is_positive(theirs) and _is_positive(theirs - ours)
        if is_much and ours.mean() < LITTLE * theirs.mean():
            raise ValueError(
                f"To this model the pictures do not show {concept!r} but {best!r}, so training on "
                f"them would not unlearn {concept!r}. Correct the concept or the pictures, or "
                f"{way_out} to train anyway."
            )
        found.append(
            f"Warning: to this model {concept!r} does not describe the given pictures. If it does "
            "not know the word, there is nothing to unlearn; Identify Concept shows which word it "
            "uses for them."
        )
    return found


def _is_positive(share: torch.Tensor) -> bool:
    """Whether the mean over pictures and draws is above zero by SURE standard errors."""
    return bool(share.mean() > SURE * share.std() / share.numel() ** 0.5)
