"""How much does hardening help? docs/harden.json, docs/harden.md and the curve docs/harden.png.

    python -m testbed.studies.harden                        all of it
    python -m testbed.studies.harden --concept fox --seconds 0 60

Few-shot encoder unlearning is hardened for some seconds and then attacked with UnlearnDiffAtk, with
its own budget. The judge says what the pictures show. Rows that the JSON file already has are not
measured again, so a stopped run continues.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import mean

import torch

import testbed

from ..bench.row import SHOTS, draw_before
from ..host import workers
from ..host.machine import measured_on
from ..host.precision import fast
from ..model import drawings, measure, pack
from ..model.fingerprint import made_with
from . import curves, options

KEPT = testbed.ROOT / "output" / "harden"
CONCEPTS = ("fox", "guitar", "flat", "ink", "Zorvik")
SECONDS = (0, 30, 60, 120)
PROMPTS = 8  # prompts of each concept that are attacked
UNASKED = 40  # pictures that show how often the model draws the concept unasked
BAR, KEPT_BAR = 0.10, 0.93


def erase(package, parts, concept: str, seconds: float):
    """(erasure, seconds of the whole training)."""
    model = package.nodes.backend.model.ComfyModel(*parts, size=(drawings.SIZE,) * 2)
    shots, kind = drawings.of(concept), measure.kind_of(concept)
    chosen = torch.randperm(len(shots), generator=torch.Generator().manual_seed(0))[:SHOTS]
    settings = package.unlearn.methods.few_shot.FewShotSettings(kind=kind, harden=seconds)
    began = time.perf_counter()
    with torch.inference_mode(), model.training():
        erasure = package.unlearn.methods.few_shot.few_shot(
            model, [concept], shots[chosen], settings
        )
    return erasure, time.perf_counter() - began


def attack(
    package, parts, edited, judge, concept: str, seconds: float
) -> tuple[list[bool], list[bool]]:
    """Whether the judge sees the concept, for each of its own prompts: (as it is, attacked).

    As its authors count, an attack succeeds at the first look that shows the concept.
    """
    science, kind = package.unlearn, measure.kind_of(concept)
    templates = science.prompts.paraphrases.spread(
        science.prompts.templates.templates(kind), PROMPTS
    )
    own = [template.format(concept) for template in templates]
    original = package.nodes.backend.model.ComfyModel(*parts, size=(drawings.SIZE,) * 2)

    with original.training(), fast(original.device):
        with torch.no_grad():
            wanted = original.encode(own)
        targets = drawn(original, own)
    with edited.training(), fast(edited.device):
        found = science.attacks.unlearn_diff_atk.unlearn_diff_atk(
            edited, own, wanted, targets, kind
        )
        pictures = [
            edited.decode_latents(drawn(edited, prompts)).float()
            for prompts in (own, found.prompts, *found.on_the_way)
        ]
    keep(pictures[:2], f"{concept}_{seconds:g}")
    plain, *looks = ([seen[kind] == concept for seen in judge(some)] for some in pictures)
    return plain, [any(hits) for hits in zip(*looks, strict=True)]


def drawn(model, prompts: list[str]) -> torch.Tensor:
    """Latents, with another seed for each prompt."""
    latents = [
        model.sample([prompt], i, measure.STEPS, measure.GUIDANCE)
        for i, prompt in enumerate(prompts)
    ]
    return torch.cat(latents)


def unasked(concept: str) -> float:
    """The share of the unedited model's pictures that show the concept for a neutral prompt.

    If it is large, a "successful" attack need not have brought anything back.
    """
    from ..model.judge import Judge

    package, parts = pack.load(), pack.checkpoint()
    science, kind = package.unlearn, measure.kind_of(concept)
    model = package.nodes.backend.model.ComfyModel(*parts, size=(drawings.SIZE,) * 2)
    templates = science.prompts.paraphrases.spread(
        science.prompts.templates.templates(kind), PROMPTS
    )
    neutral = science.prompts.sampler.ANCHORS[kind]
    prompts = [templates[i % PROMPTS].format(neutral) for i in range(UNASKED)]
    with torch.no_grad(), model.training(), fast(model.device):
        pictures = model.decode_latents(drawn(model, prompts)).float()
    return mean(seen[kind] == concept for seen in Judge()(pictures))


def keep(pictures: list[torch.Tensor], name: str) -> None:
    """Save the pictures: above from the concept's own prompts, below from the attacked ones."""
    from ..model.report import grid

    KEPT.mkdir(parents=True, exist_ok=True)
    grid(torch.cat(pictures), len(pictures[0])).save(KEPT / f"{name}.png")


def row_of(package, parts, judge, before: torch.Tensor, concept: str, seconds: float) -> dict:
    erasure, took = erase(package, parts, concept, seconds)
    edited = package.nodes.backend.model.ComfyModel(
        *package.nodes.backend.apply.erased(*parts[:2], erasure),
        parts[2],
        size=(drawings.SIZE,) * 2,
    )
    prompts = measure.prompts_for(concept)
    with torch.inference_mode(), edited.training():
        after = measure.draw(edited, prompts, 0)
    scores = measure.score(concept, prompts, before, after, judge)
    plain, found = attack(package, parts, edited, judge, concept, seconds)
    either = [a or b for a, b in zip(plain, found, strict=True)]
    return {
        "concept": concept,
        "seconds": seconds,
        "took": round(took, 1),
        "steps": erasure.record["steps"],
        **{key: scores[key] for key in ("ua", "ira", "cra", "style_kept")},
        "pre": mean(plain),
        "post": mean(either),
        **made_with(),
    }


def work(jobs: list[tuple[str, float]]) -> None:
    """A worker: tells each row, and saves its pictures in output/harden."""
    import logging

    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    package, parts = pack.load(), pack.checkpoint()
    from ..model.judge import Judge

    judge, before = Judge(), {}
    for concept, seconds in jobs:
        if concept not in before:
            before[concept] = draw_before(package, parts, concept, 0)
        workers.tell(row_of(package, parts, judge, before[concept].pictures, concept, seconds))


def page(rows: list[dict]) -> str:
    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.0%}"

    lines = [
        "| concept | hardened, s | all, s | steps | UA | IRA | CRA | own prompts | post-ASR | "
        "unasked |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = (share(row[key]) for key in ("ua", "ira", "cra", "pre", "post", "unasked"))
        lines.append(
            f"| {row['concept']} | {row['seconds']:g} | {row['took']:.0f} | {row['steps']} | "
            + " | ".join(shares)
            + " |"
        )
    lines += [
        "",
        "| hardened, s | concepts | all, s | IRA | CRA | post-ASR |",
        "|---|---|---|---|---|---|",
    ]
    for seconds, some in by_seconds(told(rows)).items():
        means = (mean(row[key] for row in some) for key in ("ira", "cra", "post"))
        lines.append(
            f"| {seconds:g} | {len(some)} | {mean(row['took'] for row in some):.0f} | "
            + " | ".join(f"{value:.1%}" for value in means)
            + " |"
        )
    return "\n".join(
        [
            "# Hardening",
            "",
            "Made by `python -m testbed.studies.harden`. Few-Shot Encoder Unlearn takes a concept "
            "out of IconCanvas, in mode balanced with 4 pictures, and is then hardened for some "
            f"seconds. UnlearnDiffAtk attacks {PROMPTS} prompts of each concept, with its own "
            "budget.",
            "",
            "* **own prompts**: the share whose pictures still show the concept to the judge.",
            "* **post-ASR**: the share that show it by themselves or after the attack.",
            f"* **unasked**: of {UNASKED} pictures that the unedited model draws from prompts with "
            "the neutral word, the share that show the concept. Where this is more than "
            f"{BAR:.0%}, an attack can succeed without reviving anything, so the means leave this "
            "concept out.",
            f"* **The bar**: post-ASR at most {BAR:.0%}, IRA and CRA at least {KEPT_BAR:.0%}, in "
            "at most five times the seconds of a run without hardening.",
            "",
            "The second table and the curve have only those seconds at which all the concepts "
            "that are left were measured.",
            "",
            knee(rows),
            "",
            *lines,
            "",
            "![post-ASR against seconds](harden.png)",
            "",
            measured_on(rows, ", one thread a run"),
            "",
        ]
    )


def knee(rows: list[dict]) -> str:
    """A sentence that says after how many seconds the bar is met."""

    def met(some: list[dict]) -> bool:
        kept = min(mean(row[key] for row in some) for key in ("ira", "cra"))
        return mean(row["post"] for row in some) <= BAR and kept >= KEPT_BAR

    first = next((seconds for seconds, some in by_seconds(told(rows)).items() if met(some)), None)
    every = ", ".join(
        f"{mean(row['post'] for row in some):.0%} with {seconds:g} s"
        for seconds, some in by_seconds(rows).items()
    )
    begins = f"The bar is first met at {first:g} s" if first else "The bar is met nowhere"
    return (
        f"{begins}, with one seed and {PROMPTS} prompts a concept. If the concepts that are left "
        f"out were counted, post-ASR would be {every}."
    )


def told(rows: list[dict]) -> list[dict]:
    """The rows of concepts that the model does not draw unasked."""
    return [row for row in rows if row["unasked"] <= BAR]


def by_seconds(rows: list[dict]) -> dict[float, list[dict]]:
    """From seconds to rows, only for those at which all concepts were measured, so that the means
    can be compared."""
    every: dict[float, list[dict]] = {}
    for row in sorted(rows, key=lambda row: row["seconds"]):
        every.setdefault(row["seconds"], []).append(row)
    most = max(map(len, every.values()), default=0)
    return {seconds: some for seconds, some in every.items() if len(some) == most}


def curve(rows: list[dict], file: Path) -> None:
    """Plot the means of post-ASR, IRA and CRA, and the ASR of each concept, against the seconds."""
    rows = told(rows)
    groups, names = by_seconds(rows), {"post-ASR": "post", "IRA": "ira", "CRA": "cra"}
    with curves.plot(file, "seconds of hardening", BAR, -0.03) as axes:
        for concept in dict.fromkeys(row["concept"] for row in rows):
            some = sorted((r["seconds"], r["post"]) for r in rows if r["concept"] == concept)
            axes.plot(*zip(*some), color=curves.COLOURS["post-ASR"], alpha=0.25)
        for label, key in names.items():
            means = {seconds: mean(r[key] for r in some) for seconds, some in groups.items()}
            curves.draw(axes, label, means)


def write(rows: list[dict], asked: argparse.Namespace) -> None:
    rows.sort(key=lambda row: (row["concept"], row["seconds"]))
    workers.write_rows(asked.json, rows)
    asked.page.write_text(page(rows), encoding="utf-8")
    curve(rows, asked.page.with_suffix(".png"))


def main() -> None:
    parser = options.parser("harden", __doc__)
    parser.add_argument("--concept", nargs="+", type=measure.known, default=list(CONCEPTS))
    parser.add_argument("--seconds", nargs="+", type=float, default=list(SECONDS))
    asked = parser.parse_args()
    if asked.worker is not None:
        work(asked.worker)
        return
    rows = options.kept_rows(asked.json)
    done = {(row["concept"], row["seconds"]) for row in rows}
    # Few seconds first, for all concepts, so that a stopped run leaves complete groups.
    missing = [
        (concept, seconds)
        for seconds in asked.seconds
        for concept in asked.concept
        if (concept, seconds) not in done
    ]
    by_itself = {row["concept"]: row["unasked"] for row in rows if "unasked" in row}
    for concept in {*asked.concept, *(row["concept"] for row in rows)} - by_itself.keys():
        by_itself[concept] = unasked(concept)
    for row in rows:
        row["unasked"] = by_itself[row["concept"]]
    shares = workers.shared(missing, [concept for concept, _ in missing], asked.jobs)
    for row in workers.results("testbed.studies.harden", shares):
        rows.append({**row, "unasked": by_itself[row["concept"]]})
        write(rows, asked)
    write(rows, asked)
    print(page(rows))


if __name__ == "__main__":
    main()
