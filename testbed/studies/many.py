"""How many concepts go into one text encoder? docs/many.json, docs/many.md and docs/many.png.

    python -m testbed.studies.many                     all of it
    python -m testbed.studies.many --count 1 8 --seed 0

Closed-Form Encoder Unlearn takes so many objects out of IconCanvas's text encoder in one run, each
with the anchor that it chooses. Rows that the JSON file already has are not measured again, so a
stopped run continues.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from statistics import mean

import torch

import testbed

from ..host import workers
from ..host.machine import measured_on
from ..model import drawings, measure, pack
from ..model.fingerprint import made_with
from ..model.measure import Prompt, portrait, styled
from ..model.vocabulary import CHARACTERS, OBJECTS, STYLES
from . import curves, options

KEPT = testbed.ROOT / "output" / "many"
COUNTS, SEEDS = (1, 2, 4, 8, 16, 32, 48), (0, 1)
JUDGED = 8  # erased concepts that are drawn, in all styles
NEAR, FAR = 48, 24  # prompts of objects that are not erased; of their styles, and of characters
BAR, BARRED = 0.97, 32  # UA, IRA and CRA with so many concepts
PUBLISHED = 0.656  # the best published IRA over several concepts, on other data


def group_of(count: int, seed: int) -> list[str]:
    """The first `count` objects in a random order: each group has the smaller ones in it."""
    return random.Random(f"many/{seed}").sample(OBJECTS, len(OBJECTS))[:count]


def prompts_of(group: list[str], seed: int) -> list[Prompt]:
    """Own prompts of some of the group, and prompts that name nothing of it."""
    rng = random.Random(f"prompts/{len(group)}/{seed}")
    own = rng.sample(group, min(JUDGED, len(group)))
    others = [name for name in OBJECTS if name not in group]

    def named(i: int, what: str) -> Prompt:
        return styled(others[i % len(others)], STYLES[(i + i // len(others)) % len(STYLES)], what)

    rng.shuffle(others)
    return [
        *(styled(name, style, "own") for name in own for style in STYLES),
        *(named(i, "in") for i in range(NEAR)),
        *(named(i, "cross") for i in range(NEAR, NEAR + FAR // 2)),
        *(portrait(name, "cross") for name in rng.sample(CHARACTERS, FAR // 2)),
    ]


def shares(prompts: list[Prompt], saw: list[dict], sees: list[dict]) -> dict[str, float]:
    """{"ua", "ira", "cra", "style_kept"} of answers of the judge before and after."""

    def kept(what: str, kinds: tuple[measure.Kind, ...]) -> float:
        asked = [
            (now[kind] == was[kind])
            for prompt, was, now in zip(prompts, saw, sees)
            for kind in kinds
            if prompt.measure == what and getattr(prompt, kind) and prompt.kept(was, kind)
        ]
        return mean(asked) if asked else 1.0

    own = [(prompt, now) for prompt, now in zip(prompts, sees) if prompt.measure == "own"]
    return {
        "ua": mean(not prompt.kept(now, "object") for prompt, now in own),
        "ira": kept("in", ("object",)),
        "cra": kept("cross", ("style", "character")),
        "style_kept": kept("own", ("style",)),
    }


def row_of(package, parts, judge, count: int, seed: int) -> dict:
    group = group_of(count, seed)
    prompts, side = prompts_of(group, seed), (drawings.SIZE,) * 2
    models = package.nodes.backend.model
    original = models.ComfyModel(*parts, size=side)
    method = package.unlearn.methods.registry.METHODS["closed_form"]
    with torch.inference_mode(), original.training():
        before = measure.draw(original, prompts, 1000 * seed)
        began, cpu = time.perf_counter(), time.process_time()
        erasure = method.run(original, group, method.settings(kind="object", seed=seed), None, None)
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
    changed = package.nodes.backend.apply.erased(*parts[:2], erasure)
    edited = models.ComfyModel(*changed, parts[2], size=side)
    with torch.inference_mode(), edited.training():
        after = measure.draw(edited, prompts, 1000 * seed)
    keep(prompts, before, after, f"{count}_{seed}")
    way_left = package.unlearn.methods.parts.way_left
    return {
        "count": count,
        "seed": seed,
        **shares(prompts, judge(before), judge(after)),
        "behind": len(way_left.behind(erasure.record["left"])),
        "seconds": round(took, 2),
        "cpu_seconds": round(cpu, 2),
        "file_bytes": sum(t.numel() * 2 for t in erasure.state_dict().values()),
        **made_with(),
    }


def keep(prompts: list[Prompt], before: torch.Tensor, after: torch.Tensor, name: str) -> None:
    """Save pictures before and after: of erased concepts in two rows, of others in two rows."""
    from ..model.report import grid

    KEPT.mkdir(parents=True, exist_ok=True)
    own = [i for i, prompt in enumerate(prompts) if prompt.measure == "own"][:: len(STYLES) + 1]
    near = [i for i, prompt in enumerate(prompts) if prompt.measure == "in"][: max(1, len(own))]
    rows = [some[chosen] for chosen in (own, near) for some in (before, after)]
    grid(torch.cat(rows), len(own)).save(KEPT / f"{name}.png")


def work(jobs: list[tuple[int, int]]) -> None:
    """A worker: tells each row, and saves its pictures in output/many."""
    import logging

    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    package, parts = pack.load(), pack.checkpoint()
    from ..model.judge import Judge

    judge = Judge()
    for count, seed in jobs:
        workers.tell(row_of(package, parts, judge, count, seed))


def by_count(rows: list[dict]) -> dict[int, dict[str, float]]:
    """From each number of concepts to the means over its seeds."""
    names = ("ua", "ira", "cra", "style_kept", "behind", "seconds", "cpu_seconds", "file_bytes")
    found = {}
    for count in sorted({row["count"] for row in rows}):
        some = [row for row in rows if row["count"] == count]
        found[count] = {"orders": len(some), **{n: mean(r[n] for r in some) for n in names}}
    return found


def page(rows: list[dict]) -> str:
    heads = "concepts", "orders", "UA", "IRA", "CRA", "style kept", "behind", "seconds"
    heads += "processor, s", "file"
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for count, means in by_count(rows).items():
        figures = (f"{means[name]:.1%}" for name in ("ua", "ira", "cra", "style_kept"))
        lines.append(
            f"| {count} | {means['orders']} | {' | '.join(figures)} | {means['behind']:.1f} "
            f"| {means['seconds']:.1f} | {means['cpu_seconds']:.1f} "
            f"| {means['file_bytes'] / 1e6:.1f} MB |"
        )
    return "\n".join(
        [
            "# Many concepts in one text encoder",
            "",
            "Made by `python -m testbed.studies.many`. Closed-Form Encoder Unlearn takes so many "
            "of IconCanvas's 64 objects out of its text encoder in one run, each with the anchor "
            "that it chooses.",
            "",
            "* **orders**: of the objects, at random. A group has the smaller ones of its order in "
            "it.",
            f"* **UA**: of prompts of {JUDGED} of the concepts in seven styles, the share whose "
            "pictures no longer show the concept to the judge.",
            f"* **IRA**, **CRA**: of {NEAR} prompts of objects that are not erased, and of {FAR} "
            "of styles and characters, the share of what was right before that still is.",
            "* **style kept**: the same for the style of the concepts' own prompts.",
            "* **behind**: the concepts that the node names as not all the way at their anchors.",
            f"* **The bar**: UA, IRA and CRA at least {BAR:.0%} with {BARRED} concepts. The best "
            f"published IRA over several concepts, on other data, is {PUBLISHED:.1%}.",
            "",
            *lines,
            "",
            "![the measures against the number of concepts](many.png)",
            "",
            measured_on(rows, ", one thread a run, all cores busy"),
            "",
        ]
    )


def curve(rows: list[dict], file: Path) -> None:
    """Plot UA, IRA, CRA and the style kept against the number of concepts."""
    means = by_count(rows)
    names = {"UA": "ua", "IRA": "ira", "CRA": "cra", "style kept": "style_kept"}
    with curves.plot(file, "concepts in one encoder", BAR, 0.45) as axes:
        for label, key in names.items():
            curves.draw(axes, label, {count: one[key] for count, one in means.items()})
        axes.set_xscale("log")
        axes.set_xticks(list(means), [str(count) for count in means])
        axes.minorticks_off()


def write(rows: list[dict], asked: argparse.Namespace) -> None:
    rows.sort(key=lambda row: (row["count"], row["seed"]))
    workers.write_rows(asked.json, rows)
    asked.page.write_text(page(rows), encoding="utf-8")
    curve(rows, asked.page.with_suffix(".png"))


def main() -> None:
    parser = options.parser("many", __doc__)
    parser.add_argument("--count", nargs="+", type=int, default=list(COUNTS))
    parser.add_argument("--seed", nargs="+", type=int, default=list(SEEDS))
    asked = parser.parse_args()
    if asked.worker is not None:
        work(asked.worker)
        return
    if wrong := [count for count in asked.count if not 0 < count < len(OBJECTS)]:
        parser.error(f"{wrong[0]} concepts cannot be erased: take 1 to {len(OBJECTS) - 1}.")
    rows = options.kept_rows(asked.json)
    done = {(row["count"], row["seed"]) for row in rows}
    missing = [
        (count, seed) for seed in asked.seed for count in asked.count if (count, seed) not in done
    ]
    jobs = workers.shared(missing, missing, asked.jobs, cost=lambda job: 40 + job[0])
    for row in workers.results("testbed.studies.many", jobs):
        rows.append(row)
        write(rows, asked)
    write(rows, asked)
    print(page(rows))


if __name__ == "__main__":
    main()
