"""Words that name a concept are left out, and names are made that name nobody."""

from __future__ import annotations

import random
from collections.abc import Iterable


def unnamed(words: Iterable[str], concepts: Iterable[str]) -> list[str]:
    """The words (or phrases) that share no word with a concept. Capitals do not matter."""
    named = {part for concept in concepts for part in concept.lower().split()}
    return [word for word in words if not named & set(word.lower().split())]


def invented(rng: random.Random) -> str:
    """A name of two or three syllables that nobody has, such as Mokar."""
    syllables = (rng.choice("bdfgjklmnprstvwz") + rng.choice("aeiou") for _ in range(3))
    name = "".join(syllables)[: rng.choice((4, 4, 6))] + rng.choice(("", "n", "r", "k"))
    return name.capitalize()
