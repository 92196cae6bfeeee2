"""What lies around a concept: the prompts that must stay what they are, and the neutral ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.kind import ANCHORS, Kind
from .common_words import COMMON_STYLES, COMMON_WORDS
from .templates import in_context, templates

if TYPE_CHECKING:
    from ..core.model import DiffusionModel


class PromptSampler:
    """The prompts of one run: the concept's own, others to hold in place, and neutral ones.

    anchor: the neutral word; empty: by kind. protect: words to hold in place before all others.
    """

    def __init__(
        self,
        concepts: Sequence[str],
        kind: Kind,
        rng: random.Random,
        anchor: str = "",
        protect: Sequence[str] = (),
    ) -> None:
        self.rng = rng
        self.kind, self.protect = kind, list(protect)
        self.anchor = anchor.strip() or ANCHORS[kind]
        named = {word for concept in concepts for word in concept.lower().split()}

        def unnamed(words: Sequence[str]) -> list[str]:
            return [word for word in words if not named & set(word.lower().split())]

        self.common = unnamed((*COMMON_WORDS, *COMMON_STYLES))
        beside = COMMON_WORDS if kind == "style" else COMMON_STYLES
        self.contexts = unnamed((*beside, *protect))

    def prompt(self, concept: str) -> str:
        """One of the concept's prompts, every second one with something else beside it."""
        word = self.rng.choice(self.contexts) if self.rng.random() < 0.5 else None
        return in_context(self.rng, self.kind, concept, word)

    def sentences(self, count: int = 2) -> list[str]:
        """Sentences with a gap, for the concept and for the neutral word in its place; every second
        one names something else, too.

        Ascent alone leaves the concept's prompts anywhere, and the style they name is lost. A
        neutral word in its place says the rest of the sentence and nothing of the concept.
        """
        # The gap is filled by str.format, which reads a user's braces, too.
        contexts = [word.replace("{", "{{").replace("}", "}}") for word in self.contexts]
        return [
            in_context(self.rng, self.kind, "{}", self.rng.choice(contexts) if i % 2 else None)
            for i in range(count)
        ]

    def neutral(self, concept: str, model: DiffusionModel) -> str:
        """The neutral word, said as often as makes it as many tokens as the concept.

        Where a prompt that names the concept is compared with one that does not, token by token,
        each word behind them then stands beside itself and not beside another one. Not of a style:
        its name is a sentence's last, and so many neutral words would only move others more.
        """
        if self.kind == "style":
            return self.anchor
        wanted, each = model.token_count(concept), model.token_count(self.anchor)
        return " ".join([self.anchor] * max(1, round(wanted / max(1, each))))

    def others(self, count: int = 6) -> list[str]:
        """The empty prompt, and words in templates; every second one a protected word if any."""
        prompts = [""]
        for i in range(1, count):
            word = self.rng.choice(self.protect if self.protect and i % 2 else self.common)
            kind = "style" if word in COMMON_STYLES else "object"
            if self.kind == "style" and word not in self.common:
                # A protected word may be another style, or a thing.
                kind = self.rng.choice(("object", "style"))
            prompts.append(self.rng.choice((word, self.rng.choice(templates(kind)).format(word))))
        return prompts
