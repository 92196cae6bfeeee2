"""Prompts as people type them, and whether an erasure holds for them.

No method is given such prompts, and IconCanvas was not trained on the sentences of the first way.
So they tell whether an erasure generalises. Each asks for the concept in one of the WAYS.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from . import phrases
from .captions import Grammar, article, plural
from .judge import Judge
from .measure import Kind, kind_of
from .vocabulary import CHARACTERS, OBJECTS, STYLES, SYNONYMS

WAYS = ("new sentence", "plural", "synonym", "capitals", "weight", "long", "beside another")
LONG = 30  # words, at least
ALWAYS = phrases.STYLED[:3]  # plain ways to name a style


@dataclass(frozen=True)
class Sentence:
    """A prompt and what its picture should show: one thing, or two of the same style."""

    text: str
    way: str
    names: tuple[str, ...]
    style: str | None

    def shows(self, concept: str, kind: Kind, things: list[dict]) -> bool:
        """Whether one of the things that the judge sees is the concept."""
        return any(thing[kind] == concept for thing in things)

    def shows_all(self, things: list[dict]) -> bool:
        """Whether the judge sees each of the named things, and no other."""
        kind = kind_of(self.names[0])
        return sorted(str(thing[kind]) for thing in things) == sorted(self.names)


def whole(parts: tuple[str, ...]) -> tuple[str, ...]:
    return parts


def sentence(rng: random.Random, way: str, name: str, style: str | None) -> Sentence | None:
    """A prompt for the thing in this way; None for a way that it does not have.

    style: None leaves it open.
    """
    common = name not in CHARACTERS
    grammar = Grammar(part=phrases.held_out if way == "new sentence" else whole)
    grammar.styled, names, text = ALWAYS, (name,), None
    if way == "plural" and common:
        word = plural(name)
        x = rng.choice((word, f"the {word}", f"these {word}"))
        text = rng.choice(grammar.frames[:7]).format(x=x, n=x)
    elif way == "synonym" and name in SYNONYMS:
        word = rng.choice(SYNONYMS[name])
        text = rng.choice(grammar.frames[:7]).format(x=article(word, rng), n=word)
    elif way == "beside another":
        others = [other for other in (OBJECTS if common else CHARACTERS) if other != name]
        names = (name, rng.choice(others))
        names = names if rng.random() < 0.5 else names[::-1]
        text = grammar.core(rng, names, common, weighted=False)
    elif way in ("new sentence", "long", "weight", "capitals"):
        text = grammar.core(rng, names, common, many=False, weighted=way == "weight")
    if text is None:
        return None
    if way == "long":
        text = grammar.dressed(rng, text, style, LONG)
    elif style:
        text = rng.choice(ALWAYS).format(core=text, style=style)
    return Sentence(text.upper() if way == "capitals" else text, way, names, style)


def sentences(concept: str, seed: int = 0, each: int = 2) -> list[Sentence]:
    """`each` prompts for the concept in each way that it has."""
    kind, rng = kind_of(concept), random.Random(f"sentences/{concept}/{seed}")
    found = []
    for way in WAYS:
        for _ in range(each):
            if kind == "style":
                words = list(SYNONYMS) if way == "synonym" else OBJECTS
                one = sentence(rng, way, rng.choice(words), concept)
            else:
                style = rng.choice((*STYLES, None)) if kind == "object" else None
                one = sentence(rng, way, concept, style)
            if one:
                found.append(one)
    return found


def generalised(
    concept: str,
    asked: list[Sentence],
    before: torch.Tensor,
    after: torch.Tensor,
    judge: Judge,
) -> dict[str, float]:
    """{"sentences_drawn", "sentences_ua", "beside_kept"}, shares from 0 to 1.

    before, after: the pictures of the prompts by the unedited and the edited model, with the same
    seeds. sentences_drawn: the share of prompts from which the unedited model draws the concept.
    sentences_ua: of these, the share from which the edited model does not. beside_kept: the share
    of other things beside the concept that stay, of those that were there.
    """
    kind = kind_of(concept)
    saw, sees = judge.things(before), judge.things(after)
    drawn = [s.shows(concept, kind, things) for s, things in zip(asked, saw)]
    gone = [not s.shows(concept, kind, things) for s, things in zip(asked, sees)]
    kept = []
    for one, was, now in zip(asked, saw, sees):
        for name in one.names if len(one.names) == 2 else ():
            named = kind_of(name)
            if name != concept and one.shows(name, named, was):
                kept.append(one.shows(name, named, now))
    return {
        "sentences_drawn": sum(drawn) / len(drawn),
        "sentences_ua": mean_of(g for g, d in zip(gone, drawn) if d),
        "beside_kept": mean_of(kept),
    }


def mean_of(values) -> float:
    """The mean; 1 of nothing, since nothing was lost."""
    values = list(values)
    return sum(values) / len(values) if values else 1.0
