"""Verdict: whether an erasure works, measured in a few pictures and seconds.

Each concept's own prompts are drawn before and after, with the same seeds. The original model
judges, as a classifier (classifier.py), which pictures show the concept. It judges the latents, so
no autoencoder is needed. A concept that the original model does not draw has no verdict (known.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from ..core.kind import Kind
from ..core.model import DiffusionModel, Open
from ..core.progress import SILENT, Progress
from .known import CONCEPTS, PICTURES, STEPS, UNKNOWN, Looked, asked_for, look, undrawn
from .probe import drawn

GONE, PARTLY, NOT_GONE = "gone", "partly", "not gone"  # or known.UNKNOWN
SUPPRESSED = "Suppressed, not removed for good: probe it before you rely on it."
UNMEASURED = "What is left was not measured: probe it before you rely on it."

Keep = Callable[[DiffusionModel, str, torch.Tensor, torch.Tensor], None]
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
    looked: Looked | None = None,
    keep: Keep | None = None,
) -> dict:
    """What is left of the concepts, as JSON for a record; `told` makes sentences of it.

    anchor: the word in their place, or of each the word in its. given: whether the user gave
    pictures of them. looked: what `look` found of the same concepts before the run, with this
    anchor or another. keep: is called for each concept that was drawn on both sides. Only the first
    CONCEPTS concepts are measured. Neither model is changed.

    Raises ValueError where a prediction or a latent is not finite; `progress` may raise to cancel.
    """
    began = time.monotonic()
    s, asked = asked_for(concepts, kind, anchor, seed)
    earlier = looked.seconds if looked else 0.0
    if looked is None or (looked.settings, looked.asked) != (s, asked):
        with original() as model:
            looked = look(model, concepts, kind, anchor, seed, progress, looked)
    found = {concept: dict(entry) for concept, entry in looked.found.items()}
    known = [one for one in asked if looked.knows(one.concept)]
    if known:
        with edited() as model:
            left = [
                drawn(model, one.prompts, s, f"drawing {one.concept}, edited", progress)
                for one in known
            ]
        with original() as model:
            for one, x0 in zip(known, left):
                entry = found[one.concept]
                seen = one.seen(model, x0, looked.shows[one.concept], progress)
                entry["verdict"] = word(entry["before"], seen.shown)
                entry["after"] = seen.shown
                entry["explained_after"] = round(seen.explained, 4)
                if keep:
                    keep(model, one.concept, looked.x0[one.concept], x0)
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
        "seconds": round(earlier + time.monotonic() - began, 2),
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
        why = undrawn("it", {**entry, "before": before}, pictures)
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
