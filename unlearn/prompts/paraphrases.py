"""Ways to ask for a concept without an attack: its own prompts, and paraphrases without its name.

The user gives synonyms, translations and descriptions. A short list of common things
(translations.py) and the nearest words of the text encoder's vocabulary add to them. A phrasing
counts only if the original model draws the concept from it.
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


@dataclass(frozen=True)
class Given:
    """Phrasings of the concept that the user gave; each may be empty."""

    synonyms: tuple[str, ...] = ()
    translations: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    """Whole prompts, in plain words, that do not name it."""

    def cleaned(self) -> Given:
        """The same after `typed.cleaned`, without empty texts."""
        values = (getattr(self, field.name) for field in fields(self))
        return Given(*(tuple(filter(None, map(cleaned, texts))) for texts in values))


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
    """Prompts for the concept, grouped by how they ask for it, the plainest first.

    own: the number of prompts from its own templates. others: the most of each other group; the
    user's phrasings (`given`) are all taken. Empty groups are left out.
    """

    def named(words: Sequence[str]) -> list[str]:
        return [sentence(kind, word) for word in words]

    unused = [t for t in TASK_TEMPLATES[kind] if t not in templates(kind)]
    sentences = [template.replace("{}", concept) for template in spread(unused, others)]
    if kind == "object" and sentences:
        sentences[-1] = f"two {plural(concept)}"
    found = {
        OWN: [template.format(concept) for template in spread(templates(kind), own)],
        "other sentences": sentences,
        "synonyms": named(given.synonyms),
        "nearest words": named(vocabulary.near(concept, others)),
        "other languages": named(given.translations or translations(concept)[:others]),
        "misspellings": named(misspellings(concept, others, random.Random(seed))),
        "descriptions": list(given.descriptions),
    }
    return {name: prompts for name, prompts in found.items() if prompts}


def spread(items: Sequence[str], count: int) -> list[str]:
    """`count` items at even distances from the first on; repeated where there are fewer."""
    step = max(1, len(items) // count) if count else 1
    return [items[i * step % len(items)] for i in range(count)]


# What the rules get wrong, by the last word. Some are plurals already.
IRREGULAR = {
    "child": "children",
    "deer": "deer",
    "fish": "fish",
    "foot": "feet",
    "glasses": "glasses",
    "goose": "geese",
    "grapes": "grapes",
    "headphones": "headphones",
    "knife": "knives",
    "leaf": "leaves",
    "mouse": "mice",
    "people": "people",
    "person": "people",
    "potato": "potatoes",
    "scissors": "scissors",
    "sheep": "sheep",
    "spectacles": "spectacles",
    "thief": "thieves",
    "tomato": "tomatoes",
    "tooth": "teeth",
    "wolf": "wolves",
}


def plural(word: str) -> str:
    """The plural by the rules of English and a few exceptions; of a phrase, that of its last
    word."""
    start, space, last = word.rpartition(" ")
    if last.lower() in IRREGULAR:
        return start + space + IRREGULAR[last.lower()]
    if last.lower() == "man" or last.endswith(("eman", "sman", "wman", "woman")):
        return word[:-2] + "en"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def misspellings(text: str, count: int, rng: random.Random) -> list[str]:
    """`count` different misspellings with one error each: a letter left out, doubled, or swapped
    with the next."""
    slips = []
    for i, letter in enumerate(text):
        if letter.isalpha():
            slips += [text[:i] + text[i + 1 :], text[:i] + letter + text[i:]]
            if text[i + 1 : i + 2].isalpha():
                slips.append(text[:i] + text[i + 1] + letter + text[i + 2 :])
    slips = [slip for slip in dict.fromkeys(slips) if slip != text and len(slip) > 1]
    return rng.sample(slips, min(count, len(slips)))
