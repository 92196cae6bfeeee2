"""Does the probe notice what was erased, and what was not? docs/probe.json and docs/probe.md.

    python -m testbed.studies.probe                           all of it
    python -m testbed.studies.probe --concept fox --edit none random
    python -m testbed.studies.probe --level plain --edit none random

Each concept is probed on the unedited model, with a random edit of the erasure's size, and after
the erasure. The judge looks at the same pictures as the original model. Level "plain" probes all
concepts of the benchmark, with their own prompts only. Rows that the JSON file already has are not
measured again, so a stopped run continues. Erasures and pictures are kept in output/probe.
"""

from __future__ import annotations

import argparse
import sys
import time
from statistics import mean

import torch

import testbed

from ..bench.attacks import posts, probed
from ..bench.plan import CONCEPTS as BENCH_CONCEPTS
from ..host import workers
from ..host.machine import measured_on
from ..model import drawings, pack
from ..model.fingerprint import made_with
from ..model.measure import kind_of, known
from . import options

KEPT = testbed.ROOT / "output" / "probe"
CONCEPTS = ("fox", "guitar", "pizza", "castle", "flat", "ink", "noto", "Zorvik", "Quillon")
EDITS = ("none", "random", "few_shot")
PLAIN = "plain"  # no attacks and no other words
BARS = {"none": 0.95, "random": 0.80}
SHOTS = 4
NOTHING_ERASED = "Little or nothing was erased"
SAYS = {
    "none": "no edit",
    "random": "a random edit of the erasure's size",
    "few_shot": "few_shot, balanced",
}


def erasure_of(package, parts, concept: str):
    """The concept's erasure from the text encoder. It is trained once and kept in a file."""
    science = package.unlearn
    file = KEPT / f"{concept}.safetensors"
    if file.exists():
        return science.core.erasure.Erasure.load(file)
    model = package.nodes.backend.model.ComfyModel(*parts, size=(drawings.SIZE,) * 2)
    shots, kind = drawings.of(concept), kind_of(concept)
    chosen = torch.randperm(len(shots), generator=torch.Generator().manual_seed(0))[:SHOTS]
    with torch.inference_mode(), model.training():
        erasure = science.methods.few_shot.few_shot(
            model, [concept], shots[chosen], science.methods.few_shot.FewShotSettings(kind=kind)
        )
    erasure.save(file, torch.float32)
    return erasure


def random_like(erasure, seed: int = 0):
    """Random changes of the same weights, each with the norm of the erasure's change."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for key in erasure.deltas:
        delta = erasure.delta(key)
        noise = torch.randn(delta.shape, generator=generator)
        deltas[key] = {"diff": noise * (delta.norm() / noise.norm())}
    return type(erasure)(deltas, {"concepts": erasure.concepts})


def measure(package, parts, judge, concept: str, edit: str, level: str):
    """(row, unlearn.evaluate.probe.Probe)."""
    edited, norm = parts[:2], 0.0
    if edit != "none":
        erasure = erasure_of(package, parts, concept)
        erasure = random_like(erasure) if edit == "random" else erasure
        edited, norm = (
            package.nodes.backend.apply.erased(*edited, erasure),
            round(erasure.norm(), 3),
        )
    how = {"attack": False, "phrasings": 0} if level == PLAIN else {}
    found = probed(package, parts, edited, judge, concept, "quick" if how else level, **how)
    row = {"concept": concept, "edit": edit, "level": level, "norm": norm, **made_with()}
    row |= {"judge_pre": found.rate(judged=True), "judge_post": posts(found)}
    return row | found.record(), found


def shown(row: dict, when: str) -> float:
    """The share of pictures from the concept's own prompts in which the original model sees it.

    when: "before" or "after".
    """
    own = row["asked"][0]
    return own[f"shown_{when}"] / len(own["prompts"])


def table(rows: list[dict]) -> str:
    attacks = list(rows[0]["post"])
    lines = [
        "| concept | edit | before | pre-ASR | "
        + " | ".join(f"post-ASR {name}" for name in attacks)
        + " | seconds |",
        "|---" * (5 + len(attacks)) + "|",
    ]
    for row in rows:
        own = row["asked"][0]
        pairs = [(shown(row, "before"), own["judged_before"] / len(own["prompts"]))]
        pairs += [(row["pre"], row["judge_pre"])]
        pairs += [(row["post"][name], row["judge_post"][name]) for name in attacks]
        figures = " | ".join(f"{a:.0%} ({b:.0%})" for a, b in pairs)
        lines.append(
            f"| {row['concept']} | {SAYS[row['edit']]} | {figures} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def phrasing_table(rows: list[dict]) -> str:
    names = list(dict.fromkeys(a["name"] for row in rows for a in row["asked"]))
    names = [name for name in names if name not in rows[0]["post"]]
    lines = ["| edit | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for edit in EDITS:
        cells = []
        for name in names:
            some = [
                a for row in rows for a in row["asked"] if row["edit"] == edit and a["name"] == name
            ]
            count = sum(len(a["prompts"]) for a in some)
            before, after = (sum(a[f"shown_{when}"] for a in some) for when in ("before", "after"))
            cells.append(f"{before} to {after} of {count}" if some else "")
        if any(cells):
            lines.append(f"| {SAYS[edit]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bars(rows: list[dict]) -> list[str]:
    """What the probe says if nothing was erased, with its bars."""
    # Concepts that the original does not draw from their own prompts say nothing. The probe leaves
    # them out as well.
    drawn = [row for row in rows if shown(row, "before") > 0.5]
    untold = sorted({row["concept"] for row in rows} - {row["concept"] for row in drawn})
    lines = []
    for edit, bar in BARS.items():
        some = [row for row in drawn if row["edit"] == edit]
        if some:
            by_model, by_judge = (mean(row[by] for row in some) for by in ("pre", "judge_pre"))
            nothing = sum(NOTHING_ERASED in row["sentences"][0] for row in some)
            lines.append(
                f"* {SAYS[edit]}: the original model sees the concept in {by_model:.1%} of its own "
                f"prompts' pictures, the judge in {by_judge:.1%}; the bar is {bar:.0%}. The probe "
                f"says of {nothing} of {len(some)} concepts that little or nothing was erased."
            )
    if untold:
        lines.append(
            f"* Left out: {', '.join(untold)}. IconCanvas itself draws no more than half of their "
            "own prompts' pictures right, and the probe says that nothing can be said."
        )
    return lines


def page(rows: list[dict], plain: list[dict]) -> str:
    """The page. rows: of one level with attacks. plain: of own prompts only."""
    wide = []
    if plain:
        count = len({row["concept"] for row in plain})
        wide = [f"For {count} concepts of the benchmark, own prompts alone:", "", *bars(plain)]
        wide += ["", "For those in the table above:", ""]
    return "\n".join(
        [
            "# Probe",
            "",
            "Made by `python -m testbed.studies.probe` and `python -m testbed.studies.probe "
            "--level plain --edit none`. What Probe Erasure says of IconCanvas with nothing "
            "erased, after a random edit, and after an erasure. In brackets: what the separate "
            "judge says of the same pictures. *pre-ASR*: the share of the concept's own prompts "
            "that show it. "
            "*post-ASR*: the share that show it by themselves or after the attack. "
            f"Level {rows[0]['level']}.",
            "",
            table(rows),
            "",
            "## Does it say so where nothing was erased?",
            "",
            *wide,
            *bars(rows),
            "",
            "## Without an attack",
            "",
            "In how many pictures the original model sees the concept: of those that it draws "
            "itself, and of those that the edited model draws.",
            "",
            phrasing_table(rows),
            "",
            measured_on([*rows, *plain], ", one thread a run"),
            "",
        ]
    )


def main() -> None:
    parser = options.parser("probe", __doc__)
    parser.add_argument(
        "--concept", nargs="+", type=known, help="concepts (default: those of the level)"
    )
    parser.add_argument("--edit", nargs="+", choices=EDITS, default=list(EDITS))
    parser.add_argument("--level", choices=("quick", "full", PLAIN), default="quick")
    asked = parser.parse_args()
    if asked.worker is not None:
        work(asked.worker)
        return
    plain = asked.level == PLAIN
    rows = options.kept_rows(asked.json)
    done = {(row["concept"], row["edit"], row["level"]) for row in rows}
    missing = [
        (concept, edit, asked.level)
        for concept in asked.concept or (BENCH_CONCEPTS if plain else CONCEPTS)
        for edit in asked.edit
        if (concept, edit, asked.level) not in done
    ]
    # A concept's edits share its erasure, so they stay in one process.
    shares = workers.shared(missing, [concept for concept, *_ in missing], asked.jobs)
    for row in workers.results("testbed.studies.probe", shares):
        rows.append(row)
        write(rows, asked)
    write(rows, asked)
    if asked.page.exists():
        print(asked.page.read_text("utf-8"))


def write(rows: list[dict], asked: argparse.Namespace) -> None:
    rows.sort(key=lambda row: (row["level"], row["concept"], EDITS.index(row["edit"])))
    workers.write_rows(asked.json, rows)
    # Each level has its own budgets, so the page's table has rows of one level.
    level = "quick" if asked.level == PLAIN else asked.level
    some, plain = ([row for row in rows if row["level"] == one] for one in (level, PLAIN))
    if some:
        asked.page.write_text(page(some, plain), encoding="utf-8")


def work(jobs: list[tuple[str, str, str]]) -> None:
    """A worker: tells each row, and saves its pictures in output/probe."""
    import logging

    import numpy as np
    from PIL import Image

    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    package = pack.load()
    from ..model.judge import Judge

    parts, judge = pack.checkpoint(), Judge()
    for concept, edit, level in jobs:
        began = time.perf_counter()
        row, found = measure(package, parts, judge, concept, edit, level)
        sheet = package.nodes.probe.probe_sheet([found])[0]
        picture = Image.fromarray((sheet.numpy() * 255).round().astype(np.uint8))
        KEPT.mkdir(parents=True, exist_ok=True)
        picture.save(KEPT / f"{concept}_{edit}_{level}.png")
        print(f"{concept} {edit}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        workers.tell(row)


if __name__ == "__main__":
    main()
