"""Receipt: a few figures of an erasure's effect that anybody with the base model can reproduce.

The record holds prompts, seeds and settings, so one can draw the same pictures and let the original
model judge them again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..core.erasure import Erasure, ErasureError
from ..core.kind import Kind
from ..core.model import Open
from ..core.progress import SILENT, Progress
from ..core.record import PROBE, RECEIPT, Check, Unfit
from ..prompts.paraphrases import spread
from ..prompts.templates import sentence, templates
from .collateral import near_prompts
from .detection import Seen, remains, rivals
from .probe import ATTACKS, ProbeSettings, drawn, of, painted

PROTECTED = 4  # protected words at most that are drawn, beside the usual ones
SETTINGS = ("kind", "draws", "rivals", "steps", "guidance", "seed")
# The figures: their names, and how much another machine's result may differ. None is a count of
# pictures (see `count_tolerance`).
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
    """The prompts to draw, and the settings to draw and judge with."""

    concepts: list[str]
    own: list[str]
    """Prompts of the concepts."""
    near: list[str]
    """Prompts whose pictures should not change."""
    settings: ProbeSettings


@dataclass(frozen=True)
class Figure:
    """One figure as recorded and as measured again."""

    name: str
    recorded: float
    measured: float
    tolerance: float
    of: int = 0
    """The number of pictures, if it counts pictures; 0 for any other figure."""

    @property
    def agrees(self) -> bool:
        """Whether the two differ by no more than the tolerance."""
        # The small number is for rounding: 0.12 - 0.1 > 0.02 in floating point.
        return abs(self.measured - self.recorded) <= self.tolerance + 1e-9


def count_tolerance(pictures: int) -> int:
    """One picture in eight, and at least one: the judgement of an unclear picture may change."""
    return math.ceil(pictures / 8)


def receipt(
    original: Open,
    edited: Open,
    concepts: Sequence[str],
    settings: ProbeSettings,
    protect: Sequence[str] = (),
    progress: Progress = SILENT,
) -> dict:
    """A receipt as JSON: figures, and everything that is needed to measure them again.

    Each concept's own prompts and some others are drawn before and after, with the same seeds.
    "Changed" is the mean absolute difference of pixel values in 0..1. Neither model is changed.
    `progress` may raise to cancel.
    """
    kind = settings.kind
    own = [t.format(c) for c in concepts for t in spread(templates(kind), settings.prompts)]
    asked = Asked(list(concepts), own, near(concepts, kind, protect), settings)
    return {
        "concepts": asked.concepts,
        "own": asked.own,
        "near": asked.near,
        "settings": {name: getattr(settings, name) for name in SETTINGS},
        **_measured(original, edited, asked, progress),
    }


def near(concepts: Sequence[str], kind: Kind, protect: Sequence[str] = ()) -> list[str]:
    """Prompts whose pictures should not change: of protected words, and some usual ones."""
    protected = [sentence(kind, word) for word in list(protect)[:PROTECTED]]
    return list(dict.fromkeys([*protected, *near_prompts(concepts, kind)]))


def measured_again(
    original: Open, edited: Open, record: Mapping, progress: Progress = SILENT
) -> list[Figure]:
    """The figures of a recorded `receipt`, drawn and judged again.

    Raises ErasureError where the receipt cannot be read.
    """
    record = _checked(RECEIPT, record, "receipt")
    asked = Asked(record["concepts"], record["own"], record["near"], _settings(record))
    found, of = _measured(original, edited, asked, progress), len(asked.own)
    return [
        Figure(name, record[key], found[key], count_tolerance(of), of)
        if tolerance is None
        else Figure(name, record[key], found[key], tolerance)
        for key, (name, tolerance) in FIGURES.items()
    ]


def probed_again(
    original: Open, edited: Open, record: Mapping, progress: Progress = SILENT
) -> list[Figure]:
    """The counts of a recorded probe, drawn again from its prompts, those of attacks included.

    No attack is run again. CCE is left out, since the record does not hold its trained token.
    Raises ErasureError where the probe cannot be read or has no prompts to draw.
    """
    record = _checked(PROBE, record, "probe")
    s, concept = _settings(record), record["concept"]
    trained = of("token")  # their prompts cannot be drawn again
    rows = {row["name"]: row for row in record["asked"] if row["name"] not in trained}
    plain = [name for name in rows if name not in ATTACKS]
    groups = {("before", name): rows[name]["prompts"] for name in plain}
    groups |= {("after", name): row["prompts"] for name, row in rows.items()}
    was = {(when, name): rows[name][f"shown_{when}"] for when, name in groups}
    if not groups:
        raise ErasureError(
            "The probe in the record has no prompts that can be drawn again; probe the erasure "
            "again instead."
        )
    pictures = []
    for (when, name), prompts in groups.items():
        open_model = original if when == "before" else edited
        pictures.append(_pictures(open_model, prompts, s, f"drawing {name}, {when}", progress))
    seen = iter(_seen(original, torch.cat(pictures), [concept], s, progress))
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
    """The measurements in a record that can be made again, as ("receipt" or "probe", entry)."""
    measured = erasure.record.get("measured", {})
    receipts = [measured["receipt"]] if "receipt" in measured else []
    return [
        *(("receipt", entry) for entry in receipts),
        *(("probe", entry) for entry in measured.get("probe", [])),
    ]


def _measured(original: Open, edited: Open, asked: Asked, progress: Progress) -> dict[str, float]:
    s, own, prompts = asked.settings, len(asked.own), [*asked.own, *asked.near]
    before = _pictures(original, prompts, s, "drawing, original", progress)
    after = _pictures(edited, prompts, s, "drawing, edited", progress)
    both = torch.cat([before[:own], after[:own]])
    seen = _seen(original, both, asked.concepts, s, progress)
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
    settings = record["settings"]
    return ProbeSettings(**{name: settings[name] for name in SETTINGS if name in settings})


def _pictures(
    open_model: Open, prompts: Sequence[str], s: ProbeSettings, what: str, progress: Progress
) -> torch.Tensor:
    with open_model() as model:
        return painted(model, drawn(model, prompts, s, what, progress), what)


def _seen(
    original: Open,
    pictures: torch.Tensor,
    concepts: Sequence[str],
    s: ProbeSettings,
    progress: Progress,
) -> list[Seen]:
    """The original model's judgement of each picture, as in a probe."""
    others = spread(rivals(concepts, s.kind), s.rivals)
    with original() as model:
        return remains(
            model,
            pictures,
            concepts,
            s.kind,
            others,
            s.draws,
            s.seed,
            progress.named("judging"),
        )


def _checked(check: Check, record: Mapping, what: str) -> dict:
    """The checked entry of a record. Raises ErasureError where it does not fit, which an entry from
    a loaded file always does."""
    try:
        return check(record, [])
    except Unfit as error:
        raise ErasureError(
            f"The {what} in the record cannot be read ({error}), so it cannot be measured again; "
            "download the file again."
        ) from None
