"""The kinds of concept, and the neutral word of each."""

from __future__ import annotations

from typing import Literal

Kind = Literal["object", "style", "character", "action"]

QUALITIES: tuple[Kind, ...] = ("style", "action")
"""Kinds that a thing has, as it has a style. Where one is erased, the thing should remain."""

# The neutral word, which takes the concept's place where no other anchor is named or chosen.
ANCHORS: dict[Kind, str] = {
    "object": "picture",
    "style": "plain",
    "character": "person",
    "action": "standing still",
}
NEUTRAL, CLOSEST = "neutral", "closest"
"""What may be typed for an anchor beside a word: the neutral word, or one that is chosen."""
OLD_NAMES = {"instance": "character"}
"""Kinds as earlier versions wrote them into files and workflows."""


def current_kind(kind: str) -> str:
    """A kind by its name of today; any other text stays what it is."""
    return OLD_NAMES.get(kind, kind)
