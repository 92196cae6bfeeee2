"""Receipt: a few figures of what an erasure does, and whether they come out again.

Whoever has the base can draw the same prompts with the same seeds and ask the original model what
it sees, so that what a record says need not be believed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..core.erasure import Erasure, ErasureError
from ..core.kind import Kind
from ..core.model import Open
from ..core.record import PROBE, RECEIPT, Check, Unfit
from ..prompts.paraphrases import spread
from ..prompts.templates import sentence, templates
from .collateral import near_prompts
from .detection import Seen, remains, rivals
from .probe import ATTACKS, OnProbe, ProbeSettings, drawn, painted

PROTECTED = 4  # words at most, of which others are drawn beside the usual ones
TOKEN = ATTACKS[-1]  # whose prompts cannot be drawn again: it trains a token
SETTINGS = ("kind", "draws", "rivals", "steps", "guidance", "seed")
# What is measured, with how far it may differ when another machine measures it again. None: a
# count of pictures.
FIGURES = {
    "shown_before": ("its own prompts show it, before", None),
    "shown_after": ("its own prompts show it, after", None),
    "explained_before": ("share of the loss it explains, before", 0.02),
    "explained_after": ("share of the loss it explains, after", 0.02),
    "own_changed": ("its own pictures changed", 0.01),
    "near_changed": ("other pictures changed", 0.01),
}


@dataclass(frozen=True)
class Asked:
    """What is drawn and how it is judged."""

    concepts: list[str]
    own: list[str]
    """Prompts of the concepts."""
    near: list[str]
    """Prompts that must draw what they drew."""
    settings: ProbeSettings


@dataclass(frozen=True)
class Figure:
    """One number as it was recorded and as it came out again."""

    name: str
    recorded: float
    measured: float
    tolerance: float
    of: int = 0
    """How many pictures it is a count of; 0: it is a share."""

    @property
    def agrees(self) -> bool:
        # In floating point 0.12 is more than 0.02 above 0.1.
        return abs(self.measured - self.recorded) <= self.tolerance + 1e-9


def count_tolerance(pictures: int) -> int:
    """One picture of eight, and at least one: the verdict on a doubtful one is chance."""
    return math.ceil(pictures / 8)


def receipt(
    original: Open,
    edited: Open,
    concepts: Sequence[str],
    settings: ProbeSettings,
    protect: Sequence[str] = (),
    on_probe: OnProbe | None = None,
) -> dict:
    """What an erasure does, JSON-like: figures, and all that it takes to measure them again.

    Draws each concept's own prompts and some others, before and after with the same seeds. Changed:
    mean absolute difference of a pixel's value, which lies in 0..1. The models stay what they are.
    `on_probe` may raise to cancel.
    """
    kind = settings.kind
    own = [t.format(c) for c in concepts for t in spread(templates(kind), settings.prompts)]
    asked = Asked(list(concepts), own, near(concepts, kind, protect), settings)
    return {
        "concepts": asked.concepts,
        "own": asked.own,
        "near": asked.near,
        "settings": {name: getattr(settings, name) for name in SETTINGS},
        **_measured(original, edited, asked, on_probe),
    }


def near(concepts: Sequence[str], kind: Kind, protect: Sequence[str] = ()) -> list[str]:
    """Prompts that must draw what they drew: of protected words, and usual ones."""
    protected = [sentence(kind, word) for word in list(protect)[:PROTECTED]]
    return list(dict.fromkeys([*protected, *near_prompts(concepts, kind)]))


def measured_again(
    original: Open, edited: Open, record: Mapping, on_probe: OnProbe | None = None
) -> list[Figure]:
    """The figures of a recorded `receipt`, drawn and judged anew."""
    record = _used(RECEIPT, record, "receipt")
    asked = Asked(record["concepts"], record["own"], record["near"], _settings(record))
    found, of = _measured(original, edited, asked, on_probe), len(asked.own)
    return [
        Figure(name, record[key], found[key], count_tolerance(of), of)
        if allowed is None
        else Figure(name, record[key], found[key], allowed)
        for key, (name, allowed) in FIGURES.items()
    ]


def probed_again(
    original: Open, edited: Open, record: Mapping, on_probe: OnProbe | None = None
) -> list[Figure]:
    """The counts of a recorded probe, from its own prompts: those that an attack found, too.

    Nothing is searched for again. CCE is left out: a token that was trained is in no record.
    """
    record = _used(PROBE, record, "probe")
    s, concept = _settings(record), record["concept"]
    rows = {row["name"]: row for row in record["asked"] if row["name"] != TOKEN}
    plain = [name for name in rows if name not in ATTACKS]
    groups = {("before", name): rows[name]["prompts"] for name in plain}
    groups |= {("after", name): row["prompts"] for name, row in rows.items()}
    was = {(when, name): rows[name][f"shown_{when}"] for when, name in groups}
    if not groups:
        raise ErasureError("The probe in the record has no prompts that can be drawn again.")
    pictures = []
    for (when, name), prompts in groups.items():
        way = original if when == "before" else edited
        pictures.append(_pictures(way, prompts, s, f"drawing {name}, {when}", on_probe))
    seen = iter(_seen(original, torch.cat(pictures), [concept], s, on_probe))
    return [
        Figure(
            f"{concept}: {name}, {when}",
            was[when, name],
            sum(next(seen).shown for _ in prompts),
            count_tolerance(len(prompts)),
            len(prompts),
        )
        for (when, name), prompts in groups.items()
    ]


def recorded(erasure: Erasure) -> list[tuple[str, Mapping]]:
    """What a record says that can be measured again: ("receipt" or "probe", it)."""
    measured = erasure.record.get("measured", {})
    receipts = [measured["receipt"]] if "receipt" in measured else []
    return [
        *(("receipt", one) for one in receipts),
        *(("probe", one) for one in measured.get("probe", [])),
    ]


def _measured(
    original: Open, edited: Open, asked: Asked, on_probe: OnProbe | None
) -> dict[str, float]:
    s, own, prompts = asked.settings, len(asked.own), [*asked.own, *asked.near]
    before = _pictures(original, prompts, s, "drawing, original", on_probe)
    after = _pictures(edited, prompts, s, "drawing, edited", on_probe)
    both = torch.cat([before[:own], after[:own]])
    seen = _seen(original, both, asked.concepts, s, on_probe)
    changed = (after - before).abs().flatten(1).mean(1)
    sides = {"before": seen[:own], "after": seen[own:]}
    return {
        "size": list(before.shape[1:3]),
        **{f"shown_{when}": sum(one.shown for one in side) for when, side in sides.items()},
        **{
            f"explained_{when}": round(sum(one.explained for one in side) / own, 4)
            for when, side in sides.items()
        },
        "own_changed": round(changed[:own].mean().item(), 4),
        "near_changed": round(changed[own:].mean().item(), 4),
    }


def _settings(record: Mapping) -> ProbeSettings:
    kept = record["settings"]
    return ProbeSettings(**{name: kept[name] for name in SETTINGS if name in kept})


def _pictures(
    way: Open, prompts: Sequence[str], s: ProbeSettings, what: str, on_probe: OnProbe | None
) -> torch.Tensor:
    with way() as model:
        return painted(model, drawn(model, prompts, s, what, on_probe), what)


def _seen(
    original: Open,
    pictures: torch.Tensor,
    concepts: Sequence[str],
    s: ProbeSettings,
    on_probe: OnProbe | None,
) -> list[Seen]:
    """Judged as a probe judges."""
    against = spread(rivals(concepts, s.kind), s.rivals)
    with original() as model:
        return remains(
            model,
            pictures,
            concepts,
            s.kind,
            against,
            s.draws,
            s.seed,
            (lambda done, of, _: on_probe("judging", done, of)) if on_probe else None,
        )


def _used(check: Check, record: Mapping, what: str) -> dict:
    """What can be used of it. Raises ErasureError where it does not fit: a file's always does."""
    try:
        return check(record, [])
    except Unfit as error:
        raise ErasureError(
            f"The {what} in the record cannot be read ({error}), so it cannot be measured again; "
            "take the file anew from where it came."
        ) from None
