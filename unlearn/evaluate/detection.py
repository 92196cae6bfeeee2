"""What is left of a concept in pictures. The original model is the judge, as a classifier.

The concept is weighed against a neutral word and a dozen others. A picture shows it if it comes
first among them and says more about the picture than an empty prompt does. A style need only come
first: under any style's name a network may err more than under none, of pictures in that very style
too, and still the right name errs least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..core.kind import ANCHORS, Kind
from ..core.model import DiffusionModel
from ..prompts.vocabulary import VOCABULARY
from .classifier import OnRow, identify

OTHERS = 11  # words that a concept is weighed against, beside the neutral one
THINGS = VOCABULARY["object"][::20]  # what a picture may show beside the things that are given


@dataclass(frozen=True)
class Seen:
    """What the model sees in one picture."""

    shown: bool
    """Whether one of the concepts came first, and a thing or name with something to say."""
    explained: float
    """Share of the loss that the best of the concepts takes away; see identify.Word."""


def rivals(concepts: Sequence[str], kind: Kind) -> list[str]:
    """The neutral word, and words spread over the built-in ones that share none with a concept."""
    named = {word for concept in concepts for word in concept.lower().split()}
    words = [word for word in VOCABULARY[kind] if not named & set(word.lower().split())]
    return [ANCHORS[kind], *words[:: -(-len(words) // OTHERS)]]


def remains(
    model: DiffusionModel,
    images: torch.Tensor,
    concepts: Sequence[str],
    kind: Kind = "object",
    others: Sequence[str] | None = None,
    draws: int = 24,
    seed: int = 0,
    on_row: OnRow | None = None,
    things: Sequence[str] = (),
) -> list[Seen]:
    """Whether each of the pictures shows one of the concepts.

    model: the original one. images: (N, H, W, 3) in 0..1. others: words to weigh the concepts
    against; None: see `rivals`. things: what the pictures may show, where the concept is a style;
    none: the style is asked for by itself, which suits prompts that name nothing else. Raises what
    `identify` raises.
    """
    against = rivals(concepts, kind) if others is None else others
    words = list(dict.fromkeys([*concepts, *against]))
    # One drawn from a style's own prompt is often of no thing at all, and a wrong one misleads.
    things = list(dict.fromkeys([*things, *THINGS])) if things else []
    seen = []
    for i in range(len(images)):
        # A broken model draws those, too, and they show nothing.
        if not images[i].isfinite().all():
            seen.append(Seen(False, 0.0))
            continue

        def on(done: int, total: int, leader: str, i: int = i) -> None:
            on_row(i * total + done, len(images) * total, leader)

        ranking = identify(
            model, images[[i]], words, kind, draws, seed, on if on_row else None, things
        )
        explained = max(word.explained for word in ranking.words if word.word in concepts)
        shown = ranking.best in concepts and (kind == "style" or explained > 0)
        seen.append(Seen(shown, explained))
    return seen
