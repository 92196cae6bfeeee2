"""Reading a list of concepts of which some name their anchors: fox -> koala."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .typed import COMMAS, one_word, short, split_concepts
from .word_checks import Settings

ARROW = re.compile(r"->|=>|\u2192")


def split_pairs(text: str) -> tuple[list[str], dict[str, str]]:
    """(the concepts of a text, the anchors of those that name one).

    Concepts are separated by commas or line breaks, as for `split_concepts`; each may be followed
    by an arrow and its anchor. Raises ValueError for what cannot be read: an arrow with nothing
    before or after it, two arrows in one item, two anchors for one concept, a concept as its own
    anchor.
    """
    if not ARROW.search(text):
        return split_concepts(text), {}
    concepts: list[str] = []
    anchors: dict[str, str] = {}
    for item in re.split(rf"[{COMMAS}\n\r]", text):
        if not item.strip():
            continue
        if not ARROW.search(item):
            concepts += split_concepts(item)
            continue
        concept, anchor = _pair(item)
        if anchors.setdefault(concept, anchor) != anchor:
            raise ValueError(
                f"{short(concept)} has two anchors, {short(anchors[concept])} and "
                f"{short(anchor)}; leave one of them out."
            )
        concepts.append(concept)
    return list(dict.fromkeys(concepts)), anchors


def with_pairs(settings: Settings, concepts: Sequence[str], anchors: Mapping[str, str]) -> Settings:
    """A method's settings with the anchors that concepts name; the others keep the settings' own.

    Raises ValueError where the method draws nothing in a concept's place.
    """
    if not anchors:
        return settings
    if not settings.uses_anchor:
        raise ValueError(
            "This method draws nothing in a concept's place, so a concept names no anchor; leave "
            "the arrows out."
        )
    return replace(settings, anchor={one: anchors.get(one, settings.anchor) for one in concepts})


def _pair(item: str) -> tuple[str, str]:
    """(concept, anchor) of one item with an arrow."""
    sides = ARROW.split(item)
    if len(sides) > 2:
        raise ValueError(
            f"{short(item)} has more than one arrow; write one concept and its anchor, for "
            "example: fox -> koala"
        )
    concept, anchor = one_word(sides[0], "concept"), one_word(sides[1], "anchor")
    if not concept or not anchor:
        missing = "concept before" if not concept else "anchor behind"
        raise ValueError(
            f"{short(item)} has no {missing} its arrow; write both, for example: fox -> koala"
        )
    if concept.casefold() == anchor.casefold():
        raise ValueError(
            f"The anchor {anchor!r} is the concept itself, so nothing would change; type what "
            "the model should draw in its place, or leave it empty."
        )
    return concept, anchor
