"""The prompt sampler: prompts of the concept, prompts for retention, and neutral prompts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..core.kind import ANCHORS, QUALITIES, Kind
from .common_words import COMMON_ACTIONS, COMMON_STYLES, COMMON_WORDS
from .names import unnamed
from .templates import in_context, templates

if TYPE_CHECKING:
    from ..core.model import TextModel


class PromptSampler:
    """The prompts of one run: the concept's own, others for retention, and neutral ones.

    anchor: what takes the concepts' place, or of each concept what takes its; "" takes the neutral
    word of the kind. protect: the words that retention holds first.
    """

    def __init__(
        self,
        concepts: Sequence[str],
        kind: Kind,
        rng: random.Random,
        anchor: str | Mapping[str, str] = "",
        protect: Sequence[str] = (),
    ) -> None:
        self.rng = rng
        self.kind, self.protect = kind, list(protect)
        self.anchors = {
            concept: anchor_of(anchor, concept) or ANCHORS[kind] for concept in concepts
        }
        actions = COMMON_ACTIONS if kind == "action" else ()
        self.common = unnamed((*COMMON_WORDS, *COMMON_STYLES, *actions), concepts)
        context_words = COMMON_WORDS if kind in QUALITIES else COMMON_STYLES
        self.contexts = unnamed((*context_words, *protect), concepts)

    def prompt(self, concept: str) -> str:
        """A random prompt of the concept; half of them name something else, too."""
        word = self.rng.choice(self.contexts) if self.rng.random() < 0.5 else None
        return in_context(self.rng, self.kind, concept, word)

    def sentences(self, count: int = 2) -> list[str]:
        """Sentences with a slot, for the concept or the neutral word. Every second one names
        something else, too.

        Gradient ascent alone moves the concept's prompts anywhere, and loses the style that they
        name. The same sentence with the neutral word keeps its other words and not the concept.
        """
        # str.format fills the slot, and would also read the braces in a user's words.
        contexts = [word.replace("{", "{{").replace("}", "}}") for word in self.contexts]
        return [
            in_context(self.rng, self.kind, "{}", self.rng.choice(contexts) if i % 2 else None)
            for i in range(count)
        ]

    def neutral(self, concept: str, model: TextModel) -> str:
        """The concept's anchor, repeated until it has about as many tokens as the concept.

        The prompts with the concept and with the anchor are compared token by token. With
        equal lengths, the words after them stand at the same positions. Not for a style or an
        action: its name mostly ends the sentence, so no word follows, and repeated neutral words
        would only change other prompts more.
        """
        anchor = self.anchors[concept]
        if self.kind in QUALITIES:
            return anchor
        concept_tokens, anchor_tokens = model.token_count(concept), model.token_count(anchor)
        return " ".join([anchor] * max(1, round(concept_tokens / max(1, anchor_tokens))))

    def others(self, count: int = 6) -> list[str]:
        """`count` prompts for retention: the empty one, and words alone or in templates. Every
        second one has a protected word if there are any."""
        prompts = [""]
        for i in range(1, count):
            word = self.rng.choice(self.protect if self.protect and i % 2 else self.common)
            kind = kind_of(word)
            if self.kind in QUALITIES and word not in self.common:
                # A protected word may be another style or action, or an object.
                kind = self.rng.choice(("object", self.kind))
            prompts.append(self.rng.choice((word, self.rng.choice(templates(kind)).format(word))))
        return prompts


def kind_of(word: str) -> Kind:
    """The kind of a common word."""
    return "style" if word in COMMON_STYLES else "action" if word in COMMON_ACTIONS else "object"


def anchor_of(anchor: str | Mapping[str, str], concept: str) -> str:
    """The anchor of one concept, "" for none. anchor: one for all concepts, or one of each."""
    return (anchor if isinstance(anchor, str) else anchor.get(concept, "")).strip()
