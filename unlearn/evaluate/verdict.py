"""Verdict: whether an erasure did what it was trained for, in a few pictures and seconds.

Each concept's own prompts are drawn before and after with the same seeds, and the original model
says, as a classifier (classifier.py), which of the pictures show the concept. Latents are judged as
they were drawn, so no autoencoder is needed.

A model draws something from any word, and that word then explains it. So a word counts as one that
the model draws only where it explains a good part of what a usual word explains of its own picture,
and where it is not spelt almost like a known word that the model draws otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch

from ..core.kind import Kind
from ..core.model import DiffusionModel, Open
from ..prompts.common_words import COMMON_WORDS
from ..prompts.paraphrases import spread
from ..prompts.templates import sentence, templates
from ..prompts.vocabulary import VOCABULARY
from .classifier import Asking, Context, alone, beside, explained
from .collateral import COMMON
from .detection import THINGS, rivals
from .probe import OnProbe, ProbeSettings, drawn

PICTURES = 4  # of each concept, before and after
CONCEPTS = 4  # that are measured, at most
STEPS = 8  # of drawing a picture
DRAWS = (4, 12)  # of noise for each picture, and for one where the first do not tell
RIVALS = 2  # words that a concept is weighed against, beside its anchor
USUAL = 2  # words of which the better one tells how much a known word explains of its own picture
# A concept must explain so much of that in most of its own pictures.
LEAST = 0.4
# Then a picture shows it if it explains so much as of its own: of what shows something else it
# explains nothing, and in one style less than in another.
SHOWS = 0.35
STYLES = ("flat", "glossy", "ink")  # that a thing is asked for in, three times of four
SURE = 2.0  # standard errors
ALIKE = 0.8  # of two spellings, where 1 is the same; see difflib

GONE, PARTLY, NOT_GONE, UNKNOWN = "gone", "partly", "not gone", "unknown"
"""unknown: nothing can be said, since the original model does not draw the concept."""
SUPPRESSED = "Suppressed, not removed for good: probe it before you rely on it."
UNMEASURED = "What is left was not measured: probe it before you rely on it."


def measured(
    original: Open,
    edited: Open,
    concepts: Sequence[str],
    kind: Kind,
    anchor: str = "",
    seed: int = 0,
    given: bool = False,
    on_probe: OnProbe | None = None,
) -> dict:
    """What is left of the concepts, for a record: JSON-like, told in words by `told`.

    anchor: what is drawn in their place. given: whether they were learnt from given pictures. Of
    several concepts the first CONCEPTS are measured. Raises ValueError where what is predicted or
    drawn is not finite; `on_probe` may raise to cancel. The models stay what they are.
    """
    began = time.monotonic()
    s = ProbeSettings(kind, prompts=PICTURES, steps=STEPS, seed=seed)
    asked = [Asked.of(concept, kind, anchor) for concept in list(concepts)[:CONCEPTS]]
    found: dict[str, dict] = {}
    shows: dict[str, float] = {}
    with original() as model:
        least = LEAST * usually_explained(model, concepts, s, on_probe)
        for one in asked:
            x0 = drawn(model, one.prompts, s, f"drawing {one.concept}, original", on_probe)
            seen = one.seen(model, x0, least, on_probe, SHOWS)
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
                drawn(model, one.prompts, s, f"drawing {one.concept}, edited", on_probe)
                for one in known
            ]
        with original() as model:
            for one, x0 in zip(known, left):
                of = found[one.concept]
                seen = one.seen(model, x0, shows[one.concept], on_probe)
                of["verdict"] = word(of["before"], seen.shown)
                of["after"] = seen.shown
                of["explained_after"] = round(seen.explained, 4)
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
    """The verdict of how many pictures show a concept; as a probe puts it."""
    return GONE if after == 0 else NOT_GONE if after > before / 2 else PARTLY


def told(record: Mapping) -> str:
    """What an erasure's record says was measured, in a line; empty where it says nothing, or
    nothing that can be read: files come from anybody."""
    try:
        found = record["measured"]["verdict"]
        some = list(found["concepts"].items())[:CONCEPTS]
        sentences = [_sentence(concept, of, found) for concept, of in some]
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
    """What to rely on, in a line; empty where nothing of the concepts was taken away."""
    if not told(record):
        return UNMEASURED
    some = list(record["measured"]["verdict"]["concepts"].values())[:CONCEPTS]
    return SUPPRESSED if any(of["verdict"] in (GONE, PARTLY) for of in some) else ""


def doubts(record: Mapping) -> list[str]:
    """What was doubtful of the pictures that were given; see picture_check.py."""
    measured = record.get("measured", {})
    found = measured.get("doubts", []) if isinstance(measured, Mapping) else []
    return [line for line in found if isinstance(line, str)] if isinstance(found, list) else []


NOT_MEASURED = (MemoryError, RuntimeError, ValueError)
"""What measuring may fail with, by which the erasure must not be lost: no memory (of which the CPU
and Apple's devices have no error of their own), and a network whose predictions are not finite."""


def not_measured(error: Exception) -> str:
    """That there is no verdict, and why."""
    what = str(error).strip().partition("\n")[0]
    if isinstance(error, MemoryError) or not what or "memory" in what:
        what = "there was too little memory for it"
    return f"Not measured: {what.rstrip('.')}. The erasure is kept."


def _sentence(concept: str, of: Mapping, found: Mapping) -> str:
    pictures, before = int(found["pictures"]), int(of["before"])
    if of["verdict"] == UNKNOWN:
        why = f"does not draw it from its own prompts ({before} of {pictures} pictures)"
        if of.get("meant"):
            why = f"does not take it for {of['meant']}, and draws something else from it"
        more = "ask Identify Concept what it calls your" if found["given"] else "connect"
        return (
            f"Nothing can be said of {concept}, which is no success: the unedited model {why}. "
            f"Check the spelling, or {more} pictures of it."
        )
    how = {GONE: "gone", PARTLY: "partly gone", NOT_GONE: "not gone"}[of["verdict"]]
    return (
        f"{concept} is {how}: its own prompts show it in {int(of['after'])} of {pictures} "
        f"pictures, {before} before."
    )


@dataclass(frozen=True)
class Seen:
    """What the original model sees in a concept's pictures."""

    shown: int
    """How many show it."""
    explained: float
    """Mean share of the loss that the word takes away; see identify.Word."""
    least: float
    """The share from which on a picture shows it."""


@dataclass(frozen=True)
class Asked:
    """What is drawn of a concept, and what it is weighed against."""

    concept: str
    kind: Kind
    prompts: list[str]
    contexts: list[Context]
    """Of each picture."""
    words: list[str]
    """The concept, and its rivals."""

    @staticmethod
    def of(concept: str, kind: Kind, anchor: str) -> Asked:
        against = [anchor.strip(), *spread(rivals([concept], kind), RIVALS)]
        words = list(dict.fromkeys([concept, *filter(None, against)]))
        if kind == "style":
            # Asked for by itself a style draws nothing clear, and then any name explains it.
            contexts = [beside(thing) for thing in usual([concept], PICTURES)]
            prompts = [context.sentence.format(concept) for context in contexts]
        else:
            contexts = [alone(kind)] * PICTURES
            prompts = [t.format(concept) for t in spread(templates(kind), PICTURES)]
            if kind == "object":
                # Alone a thing may be gone where it is still drawn beside other words.
                plain = sentence(kind, concept)
                prompts = [plain, *(f"{plain}, {style} style" for style in STYLES)]
        return Asked(concept, kind, prompts, contexts, words)

    def seen(
        self,
        model: DiffusionModel,
        x0: torch.Tensor,
        least: float,
        on_probe: OnProbe | None,
        shows: float | None = None,
    ) -> Seen:
        """x0: latents, one of each prompt. least: share of the loss that the concept must explain;
        shows: of what it explains of most of these pictures, where that is not below `least`."""
        on_row = (lambda done, of, _: on_probe("judging", done, of)) if on_probe else None
        asking = Asking(model, x0, self.contexts, self.words, DRAWS[1], self.kind, on_row=on_row)
        pictures, rivals = list(range(len(x0))), range(1, len(self.words))
        own = asking.shares(pictures, [0], range(DRAWS[0])).mean((1, 2))
        if shows is not None and own.median() >= least:  # of two in the middle the smaller one
            least = shows * own.median().item()
        shown = above(lambda some, draws: asking.shares(some, [0], draws)[:, 0] - least, pictures)
        # What says too little needs no rival.
        if shown and rivals:
            shares = asking.shares(shown, rivals, range(DRAWS[0]))
            best = [rivals[place] for place in shares.mean(2).argmax(1).tolist()]
            shown = [i for i, rival in zip(shown, best) if above(_lead(asking, rival), [i])]
        return Seen(len(shown), own.mean().item(), least)

    def meant(self, model: DiffusionModel, x0: torch.Tensor, own: float) -> str:
        """The known word that the concept is spelt almost like, where that word does not explain
        the concept's pictures: the model does not read it so. own: how much the concept does."""
        known = spelt_like(model, self.concept)
        if not known:
            return ""
        share = explained(model, x0, self.contexts, [known], range(DRAWS[0]), self.kind)
        return known if share.mean() < LEAST * own else ""


Margins = Callable[[list[int], range], torch.Tensor]
"""(pictures, draws) margins of some pictures in some draws, by their numbers."""


def above(margins: Margins, pictures: list[int]) -> list[int]:
    """The pictures with a margin above zero, on average; with more draws where the first do not
    tell."""
    found = dict(zip(pictures, margins(pictures, range(DRAWS[0]))))
    doubtful = [i for i in pictures if not is_sure(found[i])]
    if doubtful:
        found.update(zip(doubtful, margins(doubtful, range(DRAWS[1]))))
    return [i for i in pictures if found[i].mean() > 0]


def is_sure(margin: torch.Tensor) -> bool:
    """Whether more draws would hardly change the sign of the mean of these."""
    return bool(margin.mean().abs() > SURE * margin.std() / len(margin) ** 0.5)


def _lead(asking: Asking, rival: int) -> Margins:
    """By how much the concept explains more than a rival."""

    def margins(pictures: list[int], draws: range) -> torch.Tensor:
        own, other = asking.shares(pictures, [0, rival], draws).unbind(1)
        return own - other

    return margins


def usual(concepts: Sequence[str], count: int) -> list[str]:
    """Common things that share no word with the concepts."""
    named = {part for concept in concepts for part in concept.lower().split()}
    things = dict.fromkeys((*COMMON, *THINGS))
    return [thing for thing in things if not named & set(thing.split())][:count]


def usually_explained(
    model: DiffusionModel, concepts: Sequence[str], s: ProbeSettings, on_probe: OnProbe | None
) -> float:
    """How much a common thing's word explains of a picture of its own; the best of USUAL."""
    things = usual(concepts, USUAL)
    prompts = [alone("object").sentence.format(thing) for thing in things]
    x0 = drawn(model, prompts, s, "drawing usual things, original", on_probe)
    shares = [
        explained(model, one, [alone("object")], [thing], range(DRAWS[0])).mean().item()
        for thing, one in zip(things, x0.split(1))
    ]
    return max(0.0, *shares)


def spelt_like(model: DiffusionModel, concept: str) -> str:
    """The known word that a concept is spelt almost like; empty where there is none, or where each
    of its words is known or has a token of its own."""
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
