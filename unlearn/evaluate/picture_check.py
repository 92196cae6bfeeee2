"""Whether pictures that were given show the concept: the model that is to unlearn it says so.

A word that takes something away of the loss in its pictures is taken as theirs, which a few draws
tell. Only where it takes nothing away is it looked for what the pictures do show (classifier.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..core.kind import Kind
from ..core.model import DiffusionModel
from ..prompts.vocabulary import VOCABULARY
from .classifier import alone, explained, identify
from .probe import OnProbe

CONCEPTS = 4  # that are asked for, at most
PICTURES = 4  # of each
DRAWS = 4  # of noise for each picture
IDENTIFYING = 16  # draws for the words that are left in the end
SURE = 3.0  # standard errors
LITTLE = 0.25  # of what the right word explains


def check_pictures(
    model: DiffusionModel,
    concepts: Sequence[str],
    images: torch.Tensor,
    kind: Kind,
    way_out: str,
    on_probe: OnProbe | None = None,
) -> list[str]:
    """What is doubtful of the pictures, a sentence for each concept; none where all is well.

    images: (N, H, W, 3), shared out evenly in the concepts' order. way_out: how to leave this check
    out. Raises ValueError where a concept explains nothing of its pictures and a built-in word
    explains much. Styles are not asked for: what is drawn in them is not known.
    """
    if kind == "style":
        return []
    found = []
    for concept, some in list(zip(concepts, images.chunk(len(concepts))))[:CONCEPTS]:
        some = some[:PICTURES]
        x0 = model.encode_images(some)
        contexts = [alone(kind)] * len(some)
        own = explained(model, x0, contexts, [concept], range(DRAWS), kind)
        if _is_positive(own[:, 0]):
            continue
        named = set(concept.lower().split())
        words = [word for word in VOCABULARY[kind] if not named & set(word.lower().split())]
        on_row = None
        if on_probe:
            on_row = lambda done, of, _: on_probe("looking at the pictures", done, of)  # noqa: E731
        best = identify(model, some, words, kind, IDENTIFYING, on_row=on_row, things=()).best
        # In draws that did not choose the word.
        both = explained(model, x0, contexts, [concept, best], range(DRAWS, 3 * DRAWS), kind)
        ours, theirs = both[:, 0], both[:, 1]
        is_much = _is_positive(theirs) and _is_positive(theirs - ours)
        if is_much and ours.mean() < LITTLE * theirs.mean():
            raise ValueError(
                f"To this model the pictures do not show {concept!r}, they look like {best!r}: "
                "there is nothing of them to unlearn under that word. Correct the concept or the "
                f"pictures, or {way_out} to train all the same."
            )
        found.append(
            f"Warning: to this model {concept!r} says nothing of the pictures that are given. "
            "Where it does not know the word, there is nothing to unlearn; Identify Concept says "
            "what it calls them."
        )
    return found


def _is_positive(share: torch.Tensor) -> bool:
    """Whether a mean over pictures and draws is surely above zero."""
    return bool(share.mean() > SURE * share.std() / share.numel() ** 0.5)
