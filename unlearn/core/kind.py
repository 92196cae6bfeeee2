"""The kinds of concept, and the default anchor of each."""

from __future__ import annotations

from typing import Literal

Kind = Literal["object", "style", "character"]

# The anchor: the neutral word that takes the concept's place where the user names none.
ANCHORS: dict[Kind, str] = {"object": "picture", "style": "plain", "character": "person"}
OLD_NAMES = {"instance": "character"}
"""Kinds as earlier versions wrote them into files and workflows."""


def current_kind(kind: str) -> str:
    """A kind by its name of today; any other text stays what it is."""
    return OLD_NAMES.get(kind, kind)
