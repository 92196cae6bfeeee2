"""Collateral damage: prompts that an erasure should not change, and the words that it changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..core.conditioning import Conditioning
from ..core.kind import ANCHORS, Kind
from ..core.prompt_spread import is_padded
from ..prompts.names import unnamed
from ..prompts.templates import sentence, templates

Encode = Callable[[Sequence[str]], Conditioning]
ENCODED_AT_ONCE = 32  # prompts in one batch of the text encoder
COMMON = ("cat", "house", "apple", "guitar", "car", "umbrella")
OWN = {
    "style": ("watercolor", "pencil sketch", "photograph"),
    "action": ("walking", "sitting", "jumping"),
}
PROPOSED = 6  # words at most that are proposed for protection
NOTICEABLE = 0.05  # words that moved less, in `Neighbour.moved`, need no protection


def near_prompts(concepts: Sequence[str], kind: Kind) -> list[str]:
    """Prompts of three common objects; for a style or an action, of two objects and two of it."""
    things, own = unnamed(COMMON, concepts), unnamed(OWN.get(kind, ()), concepts)
    if not own:
        return [templates("object")[0].format(word) for word in things[:3]]
    return [templates("object")[0].format(word) for word in things[:2]] + [
        templates(kind)[0].format(word) for word in own[:2]
    ]


@dataclass(frozen=True)
class Neighbour:
    """A word and how far an erasure moved it."""

    word: str
    moved: float
    """How far its conditioning moved. 1 is its distance to the empty prompt, or to the neutral word
    where the encoder does not pad (see prompt_spread.py)."""


@torch.no_grad()
def neighbours(
    before: Encode, after: Encode, words: Sequence[str], kind: Kind, concepts: Sequence[str] = ()
) -> list[Neighbour]:
    """The words in order of how far an erasure moves their conditioning, the furthest first.

    before, after: `encode` of the original and of the erased model. With an open `Edit` both are
    one model's, and `before` runs under `edit.off()`. concepts: the erased ones; words that share a
    word with them are left out.
    """
    words = unnamed(words, concepts)
    empty, neutral = before([""]), before([sentence(kind, ANCHORS[kind])])
    found = []
    for i in range(0, len(words), ENCODED_AT_ONCE):
        batch = words[i : i + ENCODED_AT_ONCE]
        prompts = [sentence(kind, word) for word in batch]
        was, now = before(prompts), after(prompts)
        # Where the encoder does not pad, an empty prompt has too few tokens to compare.
        origin = empty if is_padded(was, empty) else neutral
        scale = was.distance(origin.repeated(len(batch)))
        scale = scale.where(scale > 0, scale.max())  # 0 only for the neutral word itself
        moved = now.distance(was) / scale.clamp(min=1e-12)
        found += [Neighbour(word, m) for word, m in zip(batch, moved.sqrt().tolist())]
    return sorted(found, key=lambda neighbour: -neighbour.moved)


def to_protect(found: Sequence[Neighbour]) -> list[Neighbour]:
    """The first PROPOSED words, if they moved noticeably. found: by `neighbours`."""
    return [neighbour for neighbour in found[:PROPOSED] if neighbour.moved >= NOTICEABLE]


def proposal(found: Sequence[Neighbour]) -> str:
    """A sentence on what to protect. found: by `to_protect`."""
    if not found:
        return "The erasure moves no other candidate noticeably, so there is nothing to protect."
    moved = ", ".join(f"{neighbour.word} {neighbour.moved:.0%}" for neighbour in found)
    return f"Words to protect, with how far the erasure moves each: {moved}."
