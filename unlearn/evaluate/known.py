"""Whether the original model draws a concept from its own prompts, judging by itself.

A model draws something from any word, and then that word explains the picture. So the model counts
as knowing a word only if the word explains enough of its pictures, compared with a common word and
its own. And the word must not be a misspelling of a known word from which the model draws something
else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch

from ..core.kind import Kind
from ..core.model import DiffusionModel, TextModel
from ..core.progress import SILENT, Progress
from ..prompts.common_words import COMMON_WORDS
from ..prompts.names import unnamed
from ..prompts.paraphrases import spread
from ..prompts.sampler import anchor_of
from ..prompts.templates import sentence, templates
from ..prompts.typed import short
from ..prompts.vocabulary import VOCABULARY
from .classifier import Asking, Context, alone, beside, explained
from .collateral import COMMON
from .detection import THINGS, rivals
from .probe import ProbeSettings, drawn

PICTURES = 4  # of each concept, before and after
CONCEPTS = 4  # the most that are measured
STEPS = 8  # sampling steps of a picture
DRAWS = (4, 12)  # of noise for each picture, and for a picture that the first leave unclear
RIVALS = 2  # words that a concept is compared with, beside its anchor
USUAL = 2  # common words that are measured; the better one sets the scale
# The share of a common word's score that a concept must reach in most of its own pictures.
LEAST = 0.4
# The share of a concept's median score on its own pictures from which a picture shows it. On a
# picture of something else the score is about 0. It varies with the style, so this is not near 1.
SHOWS = 0.35
STYLES = ("flat", "glossy", "ink")  # styles of three of an object's four prompts
SURE = 2.0  # standard errors
ALIKE = 0.8  # the similarity from which a spelling counts as a misspelling (difflib); 1 is equal

UNKNOWN = "unknown"
"""The original model does not draw the concept, so there is no verdict."""


@dataclass(frozen=True)
class Looked:
    """What the original model makes of the concepts, which no erasure changes."""

    settings: ProbeSettings
    asked: list[Asked]
    found: dict[str, dict]
    """Of each concept what its entry in the record begins with."""
    shows: dict[str, float]
    """Of each concept the share of the loss from which a picture shows it."""
    usual: float
    """How much a common word explains of its own pictures."""
    x0: dict[str, torch.Tensor]
    """Of each concept the latents of its pictures."""
    seconds: float

    def knows(self, concept: str) -> bool:
        """Whether the original model draws it from its own prompts."""
        entry = self.found[concept]
        return entry["before"] > PICTURES / 2 and "meant" not in entry

    def unknown(self, way_out: str) -> str:
        """A sentence about the first concept that the model does not draw, "" where there is none.

        way_out: how to switch this check off.
        """
        for concept, entry in self.found.items():
            if not self.knows(concept):
                return (
                    f"The unedited model {undrawn(short(concept), entry, PICTURES)}, so there is "
                    "nothing to unlearn. Check the spelling, ask Identify Concept what it calls "
                    f"pictures of it, or {way_out} to train anyway."
                )
        return ""


def asked_for(
    concepts: Sequence[str], kind: Kind, anchor: str | Mapping[str, str], seed: int
) -> tuple[ProbeSettings, list[Asked]]:
    """How the concepts are drawn, and what is asked of their pictures."""
    s = ProbeSettings(kind, prompts=PICTURES, steps=STEPS, seed=seed)
    return s, [Asked.of(concept, kind, anchor) for concept in list(concepts)[:CONCEPTS]]


def look(
    model: DiffusionModel,
    concepts: Sequence[str],
    kind: Kind,
    anchor: str | Mapping[str, str] = "",
    seed: int = 0,
    progress: Progress = SILENT,
    earlier: Looked | None = None,
) -> Looked:
    """Whether the original model draws the concepts. Arguments and errors as for
    `verdict.measured`.

    earlier: the same with another anchor, whose pictures are judged again.
    """
    began = time.monotonic()
    s, asked = asked_for(concepts, kind, anchor, seed)
    found, shows, pictures = {}, {}, {}
    usual = usually_explained(model, concepts, s, progress) if earlier is None else earlier.usual
    for one in asked:
        if earlier is None:
            x0 = drawn(model, one.prompts, s, f"drawing {one.concept}, original", progress)
        else:
            x0 = earlier.x0[one.concept]
        pictures[one.concept] = x0
        seen = one.seen(model, x0, LEAST * usual, progress, SHOWS)
        shows[one.concept] = seen.least
        found[one.concept] = {
            "verdict": UNKNOWN,
            "before": seen.shown,
            "explained_before": round(seen.explained, 4),
        }
        if meant := one.meant(model, x0, seen.explained):
            found[one.concept]["meant"] = meant
    seconds = time.monotonic() - began
    return Looked(s, asked, found, shows, usual, pictures, seconds)


def undrawn(concept: str, entry: Mapping, pictures: int) -> str:
    """Why a concept counts as unknown, after "the unedited model"."""
    if entry.get("meant"):
        return f"does not take {concept} for {entry['meant']}, and draws something else from it"
    return (
        f"does not draw {concept} from its own prompts ({entry['before']} of {pictures} pictures)"
    )


@dataclass(frozen=True)
class Seen:
    """What the original model sees in a concept's pictures."""

    shown: int
    """How many pictures show it."""
    explained: float
    """By what share the word lowers the loss on average; see classifier.Word."""
    least: float
    """The share from which a picture shows it."""


@dataclass(frozen=True)
class Asked:
    """A concept's prompts, and the words that it is compared with."""

    concept: str
    kind: Kind
    prompts: list[str]
    contexts: list[Context]
    """One per picture."""
    words: list[str]
    """The concept, then its rivals."""

    @staticmethod
    def of(concept: str, kind: Kind, anchor: str | Mapping[str, str]) -> Asked:
        """The prompts and rivals of a concept."""
        others = [anchor_of(anchor, concept), *spread(rivals([concept], kind), RIVALS)]
        words = list(dict.fromkeys([concept, *filter(None, others)]))
        if kind == "style":
            # A style without an object draws nothing clear, and then any style explains it.
            contexts = [beside(thing) for thing in usual([concept], PICTURES)]
            prompts = [context.sentence.format(concept) for context in contexts]
        else:
            contexts = [alone(kind)] * PICTURES
            prompts = [t.format(concept) for t in spread(templates(kind), PICTURES)]
            if kind == "object":
                # An object may be gone from its plain prompt and still appear beside other words.
                plain = sentence(kind, concept)
                prompts = [plain, *(f"{plain}, {style} style" for style in STYLES)]
        return Asked(concept, kind, prompts, contexts, words)

    def seen(
        self,
        model: DiffusionModel,
        x0: torch.Tensor,
        least: float,
        progress: Progress,
        shows: float | None = None,
    ) -> Seen:
        """Judge the latents x0, one of each prompt.

        least: the share of the loss that the concept must explain. shows: if given, and the
        concept's median share on these pictures is not below `least`, that share of the median
        replaces `least`.
        """
        judging = progress.named("judging")
        asking = Asking(model, x0, self.contexts, self.words, DRAWS[1], self.kind, progress=judging)
        pictures, rivals = list(range(len(x0))), range(1, len(self.words))
        own = asking.shares(pictures, [0], range(DRAWS[0])).mean((1, 2))
        if shows is not None and own.median() >= least:  # torch takes the smaller middle value
            least = shows * own.median().item()
        shown = above(lambda which, draws: asking.shares(which, [0], draws)[:, 0] - least, pictures)
        # Only pictures that pass are compared with rivals.
        if shown and rivals:
            shares = asking.shares(shown, rivals, range(DRAWS[0]))
            best = [rivals[place] for place in shares.mean(2).argmax(1).tolist()]
            shown = [i for i, rival in zip(shown, best) if above(_lead(asking, rival), [i])]
        return Seen(len(shown), own.mean().item(), least)

    def meant(self, model: DiffusionModel, x0: torch.Tensor, own: float) -> str:
        """The known word that the concept may be a misspelling of, if it does not explain the
        concept's pictures: then the model does not read it so. "" otherwise. own: how much the
        concept explains."""
        known = spelt_like(model, self.concept)
        if not known:
            return ""
        share = explained(model, x0, self.contexts, [known], range(DRAWS[0]), self.kind)
        return known if share.mean() < LEAST * own else ""


Margins = Callable[[list[int], range], torch.Tensor]
"""Called with the numbers of pictures and of draws; returns their margins, (pictures, draws)."""


def above(margins: Margins, pictures: list[int]) -> list[int]:
    """The pictures whose mean margin is above zero. Unclear ones get more draws."""
    found = dict(zip(pictures, margins(pictures, range(DRAWS[0]))))
    doubtful = [i for i in pictures if not is_sure(found[i])]
    if doubtful:
        found.update(zip(doubtful, margins(doubtful, range(DRAWS[1]))))
    return [i for i in pictures if found[i].mean() > 0]


def is_sure(margin: torch.Tensor) -> bool:
    """Whether more draws are unlikely to change the sign of the mean."""
    return bool(margin.mean().abs() > SURE * margin.std() / len(margin) ** 0.5)


def _lead(asking: Asking, rival: int) -> Margins:
    """By how much more the concept explains than a rival."""

    def margins(pictures: list[int], draws: range) -> torch.Tensor:
        own, other = asking.shares(pictures, [0, rival], draws).unbind(1)
        return own - other

    return margins


def usual(concepts: Sequence[str], count: int) -> list[str]:
    """Common objects that share no word with the concepts."""
    return unnamed(dict.fromkeys((*COMMON, *THINGS)), concepts)[:count]


def usually_explained(
    model: DiffusionModel, concepts: Sequence[str], s: ProbeSettings, progress: Progress
) -> float:
    """How much a common object's word explains of its own picture: the best of USUAL."""
    things = usual(concepts, USUAL)
    prompts = [alone("object").sentence.format(thing) for thing in things]
    x0 = drawn(model, prompts, s, "drawing usual things, original", progress)
    shares = [
        explained(model, one, [alone("object")], [thing], range(DRAWS[0])).mean().item()
        for thing, one in zip(things, x0.split(1))
    ]
    return max(0.0, *shares)


def misspelt(model: TextModel, concepts: Sequence[str], way_out: str) -> str:
    """A sentence about the first concept that the text encoder reads as letters, where a word that
    it knows is spelt alike; "" where there is none. All that can be said without a denoiser.

    way_out: how to switch this check off.
    """
    for concept in concepts:
        if known := spelt_like(model, concept):
            return (
                f"The text encoder reads {short(concept)} in pieces, as a name that it may not "
                f"know, and it knows {known!r}. Correct the concept, or {way_out} to unlearn it as "
                "it is typed."
            )
    return ""


def spelt_like(model: TextModel, concept: str) -> str:
    """The known word that a concept may be a misspelling of. "" where there is none, and where each
    of its words is known or is one token."""
    known = {word.lower() for words in (*VOCABULARY.values(), COMMON_WORDS) for word in words}
    known |= {part for word in known for part in word.split()}
    parts = concept.lower().split()
    meant = [
        part
        if part in known or model.token_count(part) < 2
        else next(iter(get_close_matches(part, sorted(known), 1, ALIKE)), part)
        for part in parts
    ]
    return "" if meant == parts else " ".join(meant)
