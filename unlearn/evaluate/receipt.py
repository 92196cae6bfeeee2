"""Receipt: a few figures of an erasure's effect that anybody with the base model can reproduce.

The record holds prompts, seeds, settings and who judged, so one can draw the same pictures and let
the same judge look at them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..core.erasure import Erasure, ErasureError
from ..core.kind import Kind
from ..core.model import Open
from ..core.progress import SILENT, Progress
from ..core.record import PROBE, RECEIPT, Check, Unfit, name_of
from ..prompts.paraphrases import spread
from ..prompts.templates import sentence, templates
from .collateral import near_prompts
from .judges.judge import Judge, judged
from .judges.original import JUDGE as ORIGINAL
from .judges.registry import judge_of
from .probe import ATTACKS, ProbeSettings, drawn, of, painted, question

PROTECTED = 4  # protected words at most that are drawn, beside the usual ones
SETTINGS = ("kind", "draws", "rivals", "steps", "guidance", "seed")
# The figures: their names, and how much another machine's result may differ. None is a count of
# pictures (see `count_tolerance`). Only the original model has those of the loss.
FIGURES = {
    "shown_before": ("its own prompts show it, before", None),
    "shown_after": ("its own prompts show it, after", None),
    "explained_before": ("share of the loss it explains, before", 0.02),
    "explained_after": ("share of the loss it explains, after", 0.02),
    "own_changed": ("its own pictures changed", 0.01),
    "near_changed": ("other pictures changed", 0.01),
}
# Those that depend on the judge.
JUDGED = ("shown_before", "shown_after", "explained_before", "explained_after")


@dataclass(frozen=True)
class Asked:
    """The prompts to draw, the settings to draw and judge with, and the judge."""

    concepts: list[str]
    own: list[str]
    """Prompts of the concepts."""
    near: list[str]
    """Prompts whose pictures should not change."""
    settings: ProbeSettings
    judge: Judge


@dataclass(frozen=True)
class Figure:
    """One figure as recorded and as measured again."""

    name: str
    recorded: float | None
    """None where the record does not have it, since another judge counted."""
    measured: float
    tolerance: float
    of: int = 0
    """The number of pictures, if it counts pictures; 0 for any other figure."""

    @property
    def agrees(self) -> bool:
        """Whether the two differ by no more than the tolerance, or there is nothing to compare."""
        if self.recorded is None:
            return True
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
    judge: Judge = ORIGINAL,
) -> dict:
    """A receipt as JSON: figures, and everything that is needed to measure them again.

    Each concept's own prompts and some others are drawn before and after, with the same seeds.
    "Changed" is the mean absolute difference of pixel values in 0..1. Neither model is changed.
    `progress` may raise to cancel.
    """
    judge.check()
    kind = settings.kind
    own = [t.format(c) for c in concepts for t in spread(templates(kind), settings.prompts)]
    asked = Asked(list(concepts), own, near(concepts, kind, protect), settings, judge)
    return {
        "concepts": asked.concepts,
        "own": asked.own,
        "near": asked.near,
        "judge": judge.record(),
        "settings": {name: getattr(settings, name) for name in SETTINGS},
        **_measured(original, edited, asked, progress),
    }


def near(concepts: Sequence[str], kind: Kind, protect: Sequence[str] = ()) -> list[str]:
    """Prompts whose pictures should not change: of protected words, and some usual ones."""
    protected = [sentence(kind, word) for word in list(protect)[:PROTECTED]]
    return list(dict.fromkeys([*protected, *near_prompts(concepts, kind)]))


def measured_again(
    original: Open,
    edited: Open,
    record: Mapping,
    progress: Progress = SILENT,
    judge: Judge | None = None,
) -> list[Figure]:
    """The figures of a recorded `receipt`, drawn and judged again.

    judge: who counts now; None takes the one that counted then. Where it is another, its figures
    have nothing to be compared with. Raises ErasureError where the receipt cannot be read, or its
    judge is not here.
    """
    record = _checked(RECEIPT, record, "receipt")
    judge, same = _judge(record, judge, "receipt")
    asked = Asked(record["concepts"], record["own"], record["near"], _settings(record), judge)
    found, of = _measured(original, edited, asked, progress), len(asked.own)
    figures = []
    for key, (name, tolerance) in FIGURES.items():
        if key not in found:
            continue
        is_compared = same or key not in JUDGED
        was = record.get(key) if is_compared else None
        name = f"{name}{'' if is_compared else by(judge)}"
        if tolerance is None:
            figures.append(Figure(name, was, found[key], count_tolerance(of), of))
        else:
            figures.append(Figure(name, was, found[key], tolerance))
    return figures


def probed_again(
    original: Open,
    edited: Open,
    record: Mapping,
    progress: Progress = SILENT,
    judge: Judge | None = None,
) -> list[Figure]:
    """The counts of a recorded probe, drawn again from its prompts, those of attacks included.

    No attack is run again. CCE is left out, since the record does not hold its trained token.
    judge: as for `measured_again`. Raises ErasureError where the probe cannot be read, has no
    prompts to draw, or its judge is not here.
    """
    record = _checked(PROBE, record, "probe")
    judge, same = _judge(record, judge, "probe")
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
    asked = question(original, torch.cat(pictures), [concept], s, progress)
    seen = iter(judged(judge, asked))
    return [
        Figure(
            f"{concept}: {name}, {when}{'' if same else by(judge)}",
            was[when, name] if same else None,
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
    seen = judged(asked.judge, question(original, both, asked.concepts, s, progress))
    changed = (after - before).abs().flatten(1).mean(1)
    sides = {"before": seen[:own], "after": seen[own:]}
    return {
        "size": list(before.shape[1:3]),
        **{f"shown_{when}": sum(one.shown for one in side) for when, side in sides.items()},
        **{
            f"explained_{when}": round(share / own, 4)
            for when, side in sides.items()
            if (share := _sum(one.explained for one in side)) is not None
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


def _sum(shares: Iterable[float | None]) -> float | None:
    """The sum; None where one is missing, since another judge than the original model looked."""
    whole = 0.0
    for share in shares:
        if share is None:
            return None
        whole += share
    return whole


def by(judge: Judge) -> str:
    """Behind the name of a figure: who counted."""
    return f", by {judge.name}"


def _judge(record: Mapping, given: Judge | None, what: str) -> tuple[Judge, bool]:
    """(who counts now, whether that is who counted then), checked.

    Raises ErasureError where the judge that the record names is not here, or counts otherwise now.
    """
    was = record.get("judge") or ORIGINAL.record()
    if given is not None and given.key != was["key"]:
        given.check()
        return given, False
    try:
        judge = given or judge_of(was["key"])
        judge.check()
    except ValueError as error:
        raise ErasureError(f"{name_of(was['name'])} counted for the {what}. {error}") from error
    if dict(judge.settings) != was.get("settings", {}):
        raise ErasureError(
            f"The {what} was counted by {judge.name} with other settings than it has here, so the "
            "figures cannot be compared; probe the erasure again instead."
        )
    return judge, True


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
