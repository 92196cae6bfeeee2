"""Ways to ask for a concept without any attack, from its own prompts to what goes around its name.

No word list can know what a word means. Synonyms, translations and descriptions come from the user.
A short list of common things (translations.py) and the nearest words of the model's own table add
to them. Whether a phrasing means the concept is up to the original model, which draws it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields

from ..core.kind import Kind
from ..core.token_slots import Vocabulary
from .templates import TASK_TEMPLATES, sentence, templates
from .translations import translations
from .typed import cleaned

OWN = "own prompts"
TASKS = {"object": "object", "style": "style", "character": "instance"}


@dataclass(frozen=True)
class Given:
    """What the user knows of the concept; each may be empty."""

    synonyms: tuple[str, ...] = ()
    translations: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    """Whole prompts, in plain words, that do not name it."""

    def cleaned(self) -> Given:
        """As it is read: see typed.py."""
        given = (getattr(self, field.name) for field in fields(self))
        return Given(*(tuple(filter(None, map(cleaned, texts))) for texts in given))


NOTHING = Given()


def phrasings(
    concept: str,
    kind: Kind,
    own: int,
    others: int,
    vocabulary: Vocabulary,
    given: Given = NOTHING,
    seed: int = 0,
) -> dict[str, list[str]]:
    """Prompts by what they are, weak ones first: `own` of its own, up to `others` of each other
    kind, of what is given all.

    What there is nothing for is left out.
    """

    def named(words: Sequence[str]) -> list[str]:
        return [sentence(kind, word) for word in words]

    unused = [t for t in TASK_TEMPLATES[TASKS[kind]] if t not in templates(kind)]
    again = [template.replace("{}", concept) for template in spread(unused, others)]
    if kind == "object" and again:
        again[-1] = f"two {plural(concept)}"
    found = {
        OWN: [template.format(concept) for template in spread(templates(kind), own)],
        "other sentences": again,
        "synonyms": named(given.synonyms),
        "nearest words": named(vocabulary.near(concept, others)),
        "other languages": named(given.translations or translations(concept)[:others]),
        "misspellings": named(misspellings(concept, others, random.Random(seed))),
        "descriptions": list(given.descriptions),
    }
    return {name: prompts for name, prompts in found.items() if prompts}


def spread(items: Sequence[str], count: int) -> list[str]:
    """`count` of them, evenly from the first on; again from the first where there are fewer."""
    step = max(1, len(items) // count) if count else 1
    return [items[i * step % len(items)] for i in range(count)]


def plural(word: str) -> str:
    """By the usual rules of English."""
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def misspellings(text: str, count: int, rng: random.Random) -> list[str]:
    """Different ones, each with one slip: a letter left out, doubled, or in its neighbour's
    place."""
    slips = []
    for i, letter in enumerate(text):
        if letter.isalpha():
            slips += [text[:i] + text[i + 1 :], text[:i] + letter + text[i:]]
            if text[i + 1 : i + 2].isalpha():
                slips.append(text[:i] + text[i + 1] + letter + text[i + 2 :])
    slips = [slip for slip in dict.fromkeys(slips) if slip != text and len(slip) > 1]
    return rng.sample(slips, min(count, len(slips)))
