"""Other names of a concept, under which people ask for it: its plural, synonyms, translations.

An erasure of "fox" alone leaves "foxes" and "vixen": to a text encoder they are other words. Which
names it reads as the concept is asked of the encoder itself. A name that it does not know brings
nothing back, and one that means something else should stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from ..core.kind import Kind
from ..core.progress import SILENT, Progress
from .anchor_choice import SAMPLE, SENTENCES, effects, listed
from .paraphrases import plural
from .synonyms import synonyms
from .translations import translations
from .vocabulary import VOCABULARY

if TYPE_CHECKING:
    from ..core.model import TextModel

# The sentences in which a name is read. An action has none: it has no list of synonyms.
READ_IN: dict[Kind, tuple[str, str]] = {
    **SENTENCES,
    "style": ("a painting in the style of {}", "a house in the rain at night, {} style"),
}
# The cosine of two meanings from which one word is taken for another name of the other. Two things
# of one kind are farther apart, and no word is asked but those that a list calls a synonym.
ALIKE = 0.4
MOST = 6  # names of one concept, beside itself


@torch.no_grad()
def other_names(
    model: TextModel, concepts: Sequence[str], kind: Kind, progress: Progress = SILENT
) -> dict[str, list[str]]:
    """Of each concept its other names, the closest first; only concepts that have some.

    The plural of an object is always one. `progress` may raise to cancel.
    """
    asked = {concept: candidates(concept, kind) for concept in concepts}
    taken = {concept.casefold() for concept in concepts}
    asked = {
        concept: [name for name in names if name.casefold() not in taken]
        for concept, names in asked.items()
    }
    words = list(dict.fromkeys(name for names in asked.values() for name in names))
    if not words:
        return {}
    some = VOCABULARY[kind]
    sample = [w for w in some[:: max(1, len(some) // SAMPLE)] if w not in words]
    every = [*sample, *words, *(concept for concept in concepts if concept not in words)]
    read = [
        effects(model, sentence, every, range(len(sample)), progress, "reading its other names")
        for sentence in READ_IN[kind]
    ]
    meaning = dict(zip(every, sum(read)))
    found = {}
    for concept, names in asked.items():
        closeness = {
            name: torch.cosine_similarity(meaning[concept], meaning[name], dim=0).item()
            for name in names
        }
        closest = sorted(closeness, key=lambda name: -round(closeness[name], 4))
        many = [name for name in plurals(concept, kind) if name in names]
        alike = [name for name in closest if closeness[name] >= ALIKE]
        if kept := list(dict.fromkeys([*many, *alike]))[:MOST]:
            found[concept] = kept
    return found


def candidates(concept: str, kind: Kind) -> list[str]:
    """Words that may be other names of the concept."""
    if kind not in READ_IN:
        return []
    same = synonyms(concept)
    if kind == "object":
        same += [plural(name) for name in same] + list(translations(concept))
    names = dict.fromkeys((*plurals(concept, kind), *same))
    return [name for name in names if name.casefold() != concept.casefold()]


def plurals(concept: str, kind: Kind) -> list[str]:
    """The plural of an object; nothing where it is the concept itself."""
    many = plural(concept)
    return [many] if kind == "object" and many != concept else []


def told_names(record: Mapping) -> str:
    """The other names in a record, as a sentence; "" where there are none."""
    names = record.get("other_names") or {}
    every = [name for some in names.values() for name in some]
    return f"Also taken out: {listed(every)}." if every else ""
