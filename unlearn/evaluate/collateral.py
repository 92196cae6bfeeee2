"""Neighbours: what must stay beside a concept, and the words that an erasure moved along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..core.conditioning import Conditioning
from ..core.kind import ANCHORS, Kind
from ..core.prompt_spread import is_padded
from ..prompts.templates import sentence, templates

Encode = Callable[[Sequence[str]], Conditioning]
ENCODED_AT_ONCE = 32  # prompts
COMMON = ("cat", "house", "apple", "guitar", "car", "umbrella")
STYLES = ("watercolor", "pencil sketch", "photograph")
PROPOSED = 6  # for protection
NOTICEABLE = 0.05  # of a word's own length: less than this needs no protection


def near_prompts(concepts: Sequence[str], kind: Kind) -> list[str]:
    """Of three common things, or of two and two styles beside a style."""
    named = {word for concept in concepts for word in concept.lower().split()}
    things = [word for word in COMMON if word not in named]
    styles = [word for word in STYLES if not named & set(word.split())]
    if kind != "style":
        return [templates("object")[0].format(word) for word in things[:3]]
    return [templates("object")[0].format(word) for word in things[:2]] + [
        templates("style")[0].format(word) for word in styles[:2]
    ]


@dataclass(frozen=True)
class Neighbour:
    word: str
    moved: float
    """How far its conditioning moved; 1 is as far as it was from the empty prompt's, or from the
    neutral word's where the encoder does not pad (see prompt_spread.py)."""


@torch.no_grad()
def neighbours(
    before: Encode, after: Encode, words: Sequence[str], kind: Kind, concepts: Sequence[str] = ()
) -> list[Neighbour]:
    """Words, those first whose conditioning an erasure moves most.

    before and after: `encode` of the original and of the erased model. Of an `Edit` that is open
    they are one model's, `before` under `edit.off()`. concepts: what was erased; words that share a
    word with it are left out.
    """
    named = {word for concept in concepts for word in concept.lower().split()}
    words = [word for word in words if not named & set(word.lower().split())]
    empty, neutral = before([""]), before([sentence(kind, ANCHORS[kind])])
    found = []
    for i in range(0, len(words), ENCODED_AT_ONCE):
        some = words[i : i + ENCODED_AT_ONCE]
        prompts = [sentence(kind, word) for word in some]
        was, now = before(prompts), after(prompts)
        # Where the encoder does not pad, an empty prompt has nothing to be compared with.
        origin = empty if is_padded(was, empty) else neutral
        way = was.distance(origin.repeated(len(some)))
        way = way.where(way > 0, way.max())  # of the neutral word itself, which has none
        moved = now.distance(was) / way.clamp(min=1e-12)
        found += [Neighbour(word, m) for word, m in zip(some, moved.sqrt().tolist())]
    return sorted(found, key=lambda neighbour: -neighbour.moved)


def to_protect(found: Sequence[Neighbour]) -> list[Neighbour]:
    """Those that moved most, and noticeably."""
    return [one for one in found[:PROPOSED] if one.moved >= NOTICEABLE]


def proposal(found: Sequence[Neighbour]) -> str:
    """What to protect, in words; found: by `to_protect`."""
    if not found:
        return "No other candidate is moved noticeably by the erasure: nothing to protect."
    moved = ", ".join(f"{one.word} {one.moved:.0%}" for one in found)
    return f"To protect, with how far the erasure moves each: {moved}."
