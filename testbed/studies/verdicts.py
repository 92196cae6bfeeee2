"""Is the verdict right, and what does it cost? docs/verdict.json and docs/verdict.md.

    python -m testbed verdicts                       all of it
    python -m testbed verdicts --case fox Blorbo     these alone

Each training is measured after a few steps, when hardly anything is gone, and at its end. The judge
looks at the same pictures. Then the check of connected pictures is measured. Rows that the JSON
file already has are not measured again. Erasures and pictures are kept in output/verdict.
"""

from __future__ import annotations

import argparse
import logging
import time
from contextlib import contextmanager
from pathlib import Path

import torch

import testbed

from ..host.workers import write_rows
from ..model import drawings, pack
from ..model.fingerprint import made_with
from ..model.measure import kind_of
from ..model.vocabulary import CHARACTERS
from ..model.vocabulary import OBJECTS as THINGS
from .options import kept_rows
from .verdicts_page import page, table
from .verdicts_plan import (
    ANCHORS,
    CASES,
    CHECKED,
    JUDGED,
    SHOTS,
    SHOWN,
    UNKNOWN_OF,
    UNKNOWN_WORD,
    Case,
)

DOCS = testbed.ROOT / "docs"
KEPT = testbed.ROOT / "output" / "verdict"


class Count:
    """Counts a network's forward rows, and CPU seconds, inside a `with` block."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network, self.rows, self.cpu = network, 0, 0.0

    def __enter__(self) -> Count:
        self.began = time.process_time()
        self.hook = self.network.register_forward_pre_hook(self._add)
        return self

    def _add(self, _, inputs: tuple) -> None:
        self.rows += len(inputs[0])

    def __exit__(self, *_) -> None:
        self.hook.remove()
        self.cpu = time.process_time() - self.began


def shots(case: Case) -> torch.Tensor | None:
    from ..model.samples import CHOSEN

    return drawings.of(case.concept)[CHOSEN[case.concept]] if case.given else None


def trained(package, parts, case: Case) -> dict[int, object]:
    """From each measured step to the erasure after it; None for step 0."""
    science = package.unlearn
    known = sorted(KEPT.glob(f"{case.name}@*.safetensors"))
    if not known:
        model = package.nodes.backend.model.ComfyModel(*parts, size=(drawings.SIZE,) * 2)
        taken = {}

        def take(step: int, total: int, loss: float, edit) -> None:
            if step in case.steps:
                taken[step] = edit.tensors()

        with torch.inference_mode(), model.training(), Count(model.layers) as count:
            concepts = [case.concept]
            if case.method == "key_step":
                settings = science.methods.key_step.KeyStepSettings(kind=case.kind)
                end = science.methods.key_step.key_step(model, concepts, settings, take)
            elif case.method == "domain_correction":
                settings = science.methods.domain_correction.DomainCorrectionSettings(
                    kind=case.kind, pictures=ANCHORS
                )
                end = science.methods.domain_correction.domain_correction(
                    model, concepts, settings, take
                )
            else:
                settings = science.methods.few_shot.FewShotSettings(
                    kind=case.kind,
                    anchor=case.anchor,
                    max_steps=case.most or science.methods.few_shot.FewShotSettings.max_steps,
                )
                end = science.methods.few_shot.few_shot(
                    model, concepts, shots(case), settings, take
                )
        end = end.with_measured(rows=count.rows, cpu=round(count.cpu, 1))
        KEPT.mkdir(parents=True, exist_ok=True)
        for step, deltas in {**taken, end.record["steps"]: end.deltas}.items():
            type(end)(deltas, end.record).save(
                KEPT / f"{case.name}@{step}.safetensors", torch.float32
            )
        known = sorted(KEPT.glob(f"{case.name}@*.safetensors"))
    found = {int(f.stem.rpartition("@")[2]): science.core.erasure.Erasure.load(f) for f in known}
    return dict(sorted([*([(0, None)] if 0 in case.steps else []), *found.items()]))


class Watched:
    """A ComfyModel that keeps the latents it drew, by prompt."""

    def __init__(self, package, parts) -> None:
        self.model = package.nodes.backend.model.ComfyModel(*parts, size=(drawings.SIZE,) * 2)
        self.drawn: dict[str, torch.Tensor] = {}
        draw = self.model.sample

        def sample(prompts, *more):
            found = draw(prompts, *more)
            self.drawn.update(zip(prompts, found))
            return found

        self.model.sample = sample

    @contextmanager
    def opened(self):
        with self.model.training(gradients=False):
            yield self.model


def measure(package, parts, judge, case: Case, step: int, erasure, end) -> dict:
    verdict, apply = package.unlearn.evaluate.verdict, package.nodes.backend.apply
    edited = apply.erased(*parts[:2], erasure) if erasure else parts[:2]
    ways = [Watched(package, parts), Watched(package, (*edited, parts[2]))]
    with torch.inference_mode(), Count(ways[0].model.layers) as count:
        found = verdict.measured(
            *(way.opened for way in ways),
            [case.concept],
            case.kind,
            case.anchor,
            given=case.given,
        )
    of = found["concepts"][case.concept]
    row = {
        "case": case.name,
        "concept": case.concept,
        "kind": case.kind,
        "method": case.method,
        "anchor": case.anchor,
        "given": case.given,
        "step": step,
        "end": erasure is end and not case.most,
        **of,
        "rows": count.rows,
        "cpu": round(count.cpu, 2),
        "training_rows": end.record["measured"]["rows"],
        "training_cpu": end.record["measured"]["cpu"],
        **made_with(),
    }
    prompts = [p for p in ways[0].drawn if case.concept in p]
    sides = []
    for when, way in zip(("before", "after"), ways):
        if way is ways[1] and not way.drawn:
            # The verdict draws nothing afterwards for an unknown concept, but the judge needs it.
            with torch.inference_mode(), way.opened() as model:
                model.sample(prompts, 0, verdict.STEPS, 7.5)
        with torch.inference_mode(), way.opened() as model:
            sides.append(model.decode_latents(torch.stack([way.drawn[p] for p in prompts])).float())
        wanted = JUDGED.get(case.concept, case.concept)
        row[f"judge_{when}"] = sum(seen[case.kind] == wanted for seen in judge(sides[-1]))
    keep(torch.cat(sides), f"{case.name}@{step}", len(prompts) * 2)
    return row


def keep(pictures: torch.Tensor, name: str, columns: int) -> None:
    from ..model.report import grid

    KEPT.mkdir(parents=True, exist_ok=True)
    grid(pictures, columns).save(KEPT / f"{name}.png")


def check(package, parts, concept: str, against: str) -> dict:
    """What the check says to pictures of a thing that are connected under a word."""
    pictured = package.unlearn.evaluate.picture_check
    kind, names = kind_of(concept), CHARACTERS if kind_of(concept) == "character" else THINGS
    place = names.index(concept)
    word = {
        "right": concept,
        "wrong": names[(place + len(names) // 2) % len(names)],
        "unknown word": UNKNOWN_WORD,
        "unknown thing": concept,
    }[against]
    shown = drawings.of(concept)
    images = shown[:: len(shown) // SHOTS][:SHOTS]
    if against == "unknown thing":
        images = patterns(SHOTS, place)
    model = package.nodes.backend.model.ComfyModel(*parts, size=(drawings.SIZE,) * 2)
    with torch.inference_mode(), model.training(), Count(model.layers) as count:
        try:
            doubts = pictured.check_pictures(model, [word], images, kind, "go on")
            answer, said = ("warn", doubts[0]) if doubts else ("pass", "")
        except ValueError as error:
            answer, said = "refuse", str(error)
    return {
        "pictures": concept,
        "against": against,
        "word": word,
        "answer": answer,
        "said": said,
        "rows": count.rows,
        "cpu": round(count.cpu, 2),
        **made_with(),
    }


def patterns(count: int, seed: int) -> torch.Tensor:
    """(count, 128, 128, 3) chequered pictures in two colours: nothing that IconCanvas knows."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(drawings.SIZE)
    images = []
    for colours in torch.rand(count, 2, 3, generator=generator):
        size = int(torch.randint(5, 25, (), generator=generator))
        images.append(colours[(places[:, None] // size + places // size) % 2])
    return torch.stack(images)


def write(rows: list[dict], options: argparse.Namespace) -> None:
    write_rows(options.json, rows)
    order = [case.name for case in CASES]
    some = sorted(
        (row for row in rows if "case" in row),
        key=lambda row: (order.index(row["case"]), row["step"]),
    )
    options.page.write_text(page(some, [r for r in rows if "against" in r]), encoding="utf-8")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m testbed verdicts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [case.name for case in CASES]
    parser.add_argument("--case", nargs="+", choices=[*names, "pictures"], help="all, if none")
    parser.add_argument("--json", type=Path, default=DOCS / "verdict.json")
    parser.add_argument("--page", type=Path, default=DOCS / "verdict.md")
    options = parser.parse_args(arguments)
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    package = pack.load()
    from ..model.judge import Judge

    parts, judge = pack.checkpoint(), Judge()
    rows = kept_rows(options.json)
    done = {(row["case"], row["step"]) for row in rows if "case" in row}
    done |= {(row["pictures"], row["against"]) for row in rows if "against" in row}
    chosen = options.case or [*names, "pictures"]
    for case in CASES:
        if case.name not in chosen:
            continue
        erasures = trained(package, parts, case)
        end = erasures[max(erasures)]
        for step, erasure in erasures.items():
            if (case.name, step) not in done:
                rows.append(measure(package, parts, judge, case, step, erasure, end))
                write(rows, options)
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    # The quick ones first.
    for against in CHECKED if "pictures" in chosen else ():
        for concept in SHOWN if against in CHECKED[:2] else SHOWN[:UNKNOWN_OF]:
            if (concept, against) not in done:
                rows.append(check(package, parts, concept, against))
                write(rows, options)
                print(concept, against, rows[-1]["answer"], rows[-1]["said"], flush=True)
    write(rows, options)
