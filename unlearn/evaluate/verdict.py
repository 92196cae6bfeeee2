"""Verdict: whether an erasure works, measured in a few pictures and seconds.

Each concept's own prompts are drawn before and after, with the same seeds. The original model
judges, as a classifier (classifier.py), which pictures show the concept. It judges the latents, so
no autoencoder is needed.

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
from ..core.model import DiffusionModel, Open
from ..core.progress import SILENT, Progress
from ..prompts.common_words import COMMON_WORDS
from ..prompts.names import unnamed
from ..prompts.paraphrases import spread
from ..prompts.sampler import anchor_of
from ..prompts.templates import sentence, templates
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

GONE, PARTLY, NOT_GONE, UNKNOWN = "gone", "partly", "not gone", "unknown"
"""unknown: the original model does not draw the concept, so there is no verdict."""
SUPPRESSED = "Suppressed, not removed for good: probe it before you rely on it."
UNMEASURED = "What is left was not measured: probe it before you rely on it."


Look = Callable[[DiffusionModel, str, torch.Tensor, torch.Tensor], None]
"""Called with the original model, a concept, and the latents drawn before and after."""


def measured(
    original: Open,
    edited: Open,
    concepts: Sequence[str],
    kind: Kind,
    anchor: str | Mapping[str, str] = "",
    seed: int = 0,
    given: bool = False,
    progress: Progress = SILENT,
    look: Look | None = None,
) -> dict:
    """What is left of the concepts, as JSON for a record; `told` makes sentences of it.

    anchor: the word in their place, or of each the word in its. given: whether the user gave
    pictures of them. Only the first CONCEPTS concepts are measured. Neither model is changed.
    look: is called for each concept that was drawn on both sides.

    Raises ValueError where a prediction or a latent is not finite; `progress` may raise to cancel.
    """
    began = time.monotonic()
    s = ProbeSettings(kind, prompts=PICTURES, steps=STEPS, seed=seed)
    asked = [Asked.of(concept, kind, anchor) for concept in list(concepts)[:CONCEPTS]]
    found: dict[str, dict] = {}
    shows: dict[str, float] = {}
    was: dict[str, torch.Tensor] = {}
    with original() as model:
        least = LEAST * usually_explained(model, concepts, s, progress)
        for one in asked:
            x0 = drawn(model, one.prompts, s, f"drawing {one.concept}, original", progress)
            was[one.concept] = x0
            seen = one.seen(model, x0, least, progress, SHOWS)
            shows[one.concept] = seen.least
            found[one.concept] = {
                "verdict": UNKNOWN,
                "before": seen.shown,
                "explained_before": round(seen.explained, 4),
            }
            if meant := one.meant(model, x0, seen.explained):
                found[one.concept]["meant"] = meant
    known = [
        one
        for one in asked
        if found[one.concept]["before"] > PICTURES / 2 and "meant" not in found[one.concept]
    ]
    if known:
        with edited() as model:
            left = [
                drawn(model, one.prompts, s, f"drawing {one.concept}, edited", progress)
                for one in known
            ]
        with original() as model:
            for one, x0 in zip(known, left):
                entry = found[one.concept]
                seen = one.seen(model, x0, shows[one.concept], progress)
                entry["verdict"] = word(entry["before"], seen.shown)
                entry["after"] = seen.shown
                entry["explained_after"] = round(seen.explained, 4)
                if look:
                    look(model, one.concept, was[one.concept], x0)
    return {
        "judge": "the original model",
        "concepts": found,
        "of": len(concepts),
        "pictures": PICTURES,
        "prompts": PICTURES,
        "given": given,
        "steps": STEPS,
        "guidance": s.guidance,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 2),
    }


def word(before: int, after: int) -> str:
    """The verdict, by the same rule as a probe's. before, after: how many pictures show it."""
    return GONE if after == 0 else NOT_GONE if after > before / 2 else PARTLY


def told(record: Mapping) -> str:
    """The verdict in a record, as sentences on one line.

    "" where there is none, or none that can be read: files come from anybody.
    """
    try:
        found = record["measured"]["verdict"]
        entries = list(found["concepts"].items())[:CONCEPTS]
        sentences = [_sentence(concept, entry, found) for concept, entry in entries]
        left_out = int(found["of"]) - len(sentences)
        seconds = float(found["seconds"])
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return ""
    if not sentences:
        return ""
    if left_out > 0:
        sentences.append(f"{left_out} more concepts were not measured.")
    return f"{' '.join(sentences)} The original model judged, in {seconds:.1f} s."


def advice(record: Mapping) -> str:
    """A sentence on how far to rely on the erasure; "" where nothing was suppressed."""
    if not told(record):
        return UNMEASURED
    entries = list(record["measured"]["verdict"]["concepts"].values())[:CONCEPTS]
    return SUPPRESSED if any(entry["verdict"] in (GONE, PARTLY) for entry in entries) else ""


def doubts(record: Mapping) -> list[str]:
    """The warnings about the user's pictures; see picture_check.py."""
    measured = record.get("measured", {})
    found = measured.get("doubts", []) if isinstance(measured, Mapping) else []
    return [line for line in found if isinstance(line, str)] if isinstance(found, list) else []


NOT_MEASURED = (MemoryError, RuntimeError, ValueError)
"""The errors at which a verdict is skipped and the erasure kept: too little memory (a plain
RuntimeError on the CPU and on Apple's devices), and predictions that are not finite."""


def not_measured(error: Exception) -> str:
    """A sentence: there is no verdict, and why."""
    what = str(error).strip().partition("\n")[0]
    if isinstance(error, MemoryError) or not what or "memory" in what:
        what = "there was too little memory for it"
    return f"Not measured: {what.rstrip('.')}. The erasure is kept."


def _sentence(concept: str, entry: Mapping, found: Mapping) -> str:
    pictures, before = int(found["pictures"]), int(entry["before"])
    if entry["verdict"] == UNKNOWN:
        why = f"does not draw it from its own prompts ({before} of {pictures} pictures)"
        if entry.get("meant"):
            why = f"does not take it for {entry['meant']}, and draws something else from it"
        more = "ask Identify Concept what it calls your" if found["given"] else "connect"
        return (
            f"Nothing can be said of {concept}, which is no success: the unedited model {why}. "
            f"Check the spelling, or {more} pictures of it."
        )
    how = {GONE: "gone", PARTLY: "partly gone", NOT_GONE: "not gone"}[entry["verdict"]]
    return (
        f"{concept} is {how}: its own prompts show it in {int(entry['after'])} of {pictures} "
        f"pictures, {before} before."
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


def spelt_like(model: DiffusionModel, concept: str) -> str:
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
