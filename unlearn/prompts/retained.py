"""Prompts of other things, which an erasure in closed form must leave as they are.

A solve keeps what it is shown, and little else: words alone let go of plurals, of styles beside
things, and of names that the text encoder hardly knows. So these prompts are of all those shapes,
with all words that the built-in vocabulary has.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from ..core.kind import QUALITIES, Kind
from .names import invented, unnamed
from .paraphrases import plural
from .templates import OBJECT_TEMPLATES, in_context, templates
from .vocabulary import VOCABULARY

PLURALS = ("{}", "the {}", "two {}", "many {}", "a photo of {}", "these {}")
PAIRS = ("a {} and a {}", "a {} next to a {}", "a {} beside a {}")


class Retained:
    """Draws such prompts.

    concepts: what is erased, under all its names; no prompt has a word of them. protect: words that
    are kept first.
    """

    def __init__(
        self,
        concepts: Sequence[str],
        kind: Kind,
        rng: random.Random,
        protect: Sequence[str] = (),
    ) -> None:
        self.rng, self.kind, self.protect = rng, kind, list(protect)
        self.things, self.styles, self.people, self.actions = (
            unnamed(VOCABULARY[one], concepts) for one in ("object", "style", "character", "action")
        )

    def prompts(self, count: int) -> list[str]:
        """`count` prompts: the empty one first, then all shapes in turn. Every second one has a
        protected word if there are any."""
        third = self.acting if self.kind == "action" else self.thing
        shapes: tuple[Callable[[], str], ...] = (
            self.thing,
            self.in_style,
            self.person,
            self.thing,
            self.many,
            self.in_style,
            self.style,
            third,
            self.pair,
            third,
        )
        others = [shapes[i % len(shapes)]() for i in range(count)]
        if self.protect:
            others[1::2] = [self.protected() for _ in others[1::2]]
        return ["", *others[1:]][:count]

    def thing(self) -> str:
        word = self.rng.choice(self.things)
        return self.rng.choice((word, self.rng.choice(OBJECT_TEMPLATES).format(word)))

    def many(self) -> str:
        return self.rng.choice(PLURALS).format(plural(self.rng.choice(self.things)))

    def pair(self) -> str:
        return self.rng.choice(PAIRS).format(*self.rng.sample(self.things, 2))

    def style(self) -> str:
        word = self.rng.choice(self.styles)
        return self.rng.choice((word, self.rng.choice(templates("style")).format(word)))

    def in_style(self) -> str:
        thing, style = self.rng.choice(self.things), self.rng.choice(self.styles)
        return in_context(self.rng, "object", thing, style)

    def acting(self) -> str:
        action = self.rng.choice(self.actions)
        thing = self.rng.choice((None, self.rng.choice(self.things)))
        return in_context(self.rng, "action", action, thing)

    def person(self) -> str:
        """One that everybody knows or one that is invented: a name that the encoder hardly knows is
        read by its letters and by what stands around it, and easily moved along."""
        known = self.rng.random() < 0.5 and self.people
        name = self.rng.choice(self.people) if known else invented(self.rng)
        template = self.rng.choice(("{}", "a portrait of {}", *templates("character")))
        return template.format(name)

    def protected(self) -> str:
        """A protected word alone or in a template. It may name a style, an action or a thing."""
        word = self.rng.choice(self.protect)
        kind = self.rng.choice(("object", self.kind)) if self.kind in QUALITIES else "object"
        return self.rng.choice((word, self.rng.choice(templates(kind)).format(word)))
