"""Whether pictures still show a concept, by the original model as a classifier.

The concept is compared with a neutral word and about a dozen others. A picture shows the concept if
it wins and explains the picture better than an empty prompt. A style only needs to win: with any
style's name a denoiser may predict worse than with an empty prompt, even for pictures in that
style, but the right name is still the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..core.kind import ANCHORS, Kind
from ..core.model import DiffusionModel
from ..core.progress import SILENT, Progress
from ..prompts.names import unnamed
from ..prompts.vocabulary import VOCABULARY
from .classifier import identify

DRAWS = 24  # of the classifier, for a picture
OTHERS = 11  # words that a concept is compared with, beside the neutral one
THINGS = VOCABULARY["object"][::20]  # objects that a picture may show, beside those named


@dataclass(frozen=True)
class Seen:
    """What a judge sees in one picture."""

    shown: bool
    """Whether it shows one of the concepts."""
    explained: float | None
    """By what share the best of the concepts lowers the loss (see classifier.Word); None where
    another judge than the original model looked."""


def rivals(concepts: Sequence[str], kind: Kind) -> list[str]:
    """The words to compare with: the neutral word, and words spread evenly over the built-in ones
    that share no word with a concept."""
    words = unnamed(VOCABULARY[kind], concepts)
    return [ANCHORS[kind], *words[:: -(-len(words) // OTHERS)]]


def remains(
    model: DiffusionModel,
    images: torch.Tensor,
    concepts: Sequence[str],
    kind: Kind = "object",
    others: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    progress: Progress = SILENT,
    things: Sequence[str] = (),
) -> list[Seen]:
    """Whether each of the pictures shows one of the concepts.

    model: the original one. images: (N, H, W, 3) in 0..1. others: the words to compare with; None
    takes `rivals`. things: for kind "style", the objects that the pictures may show; empty for
    pictures of prompts that name only the style. Raises what `identify` raises.
    """
    compared = rivals(concepts, kind) if others is None else others
    words = list(dict.fromkeys([*concepts, *compared]))
    # A picture from a style's own prompt often shows no object, and a wrong one misleads.
    things = list(dict.fromkeys([*things, *THINGS])) if things else []
    seen = []
    for i in range(len(images)):
        # A broken model may draw NaN, which shows nothing.
        if not images[i].isfinite().all():
            seen.append(Seen(False, 0.0))
            continue
        on_part = progress.part(i, len(images))
        ranking = identify(model, images[[i]], words, kind, draws, seed, on_part, things)
        explained = max(word.explained for word in ranking.words if word.word in concepts)
        shown = ranking.best in concepts and (kind == "style" or explained > 0)
        seen.append(Seen(shown, explained))
    return seen
