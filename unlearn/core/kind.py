"""The kinds of concept, and the neutral word of each."""

from __future__ import annotations

from typing import Literal

Kind = Literal["object", "style", "character"]

# The neutral word that a concept is drawn to where the user names none.
ANCHORS: dict[Kind, str] = {"object": "picture", "style": "plain", "character": "person"}
