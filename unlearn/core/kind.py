"""The kinds of concept, and the default anchor of each."""

from __future__ import annotations

from typing import Literal

Kind = Literal["object", "style", "character"]

# The anchor: the neutral word that takes the concept's place where the user names none.
ANCHORS: dict[Kind, str] = {"object": "picture", "style": "plain", "character": "person"}
