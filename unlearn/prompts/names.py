"""The filter that leaves out words which name a concept."""

from __future__ import annotations

from collections.abc import Iterable


def unnamed(words: Iterable[str], concepts: Iterable[str]) -> list[str]:
    """The words (or phrases) that share no word with a concept. Capitals do not matter."""
    named = {part for concept in concepts for part in concept.lower().split()}
    return [word for word in words if not named & set(word.lower().split())]
