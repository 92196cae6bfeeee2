"""How often Identify is right on IconCanvas: docs/identify.json and docs/identify.md.

    python -m testbed.studies.identify                 all of it
    python -m testbed.studies.identify --sets styles   one row

A set is four pictures of one thing, or in one style, and the words to choose from. Sets that the
JSON file already has are not measured again, so a stopped run continues.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F

import testbed

from ..host import workers
from ..host.machine import measured_on
from ..host.precision import fast
from ..model import drawings, pack
from ..model.fingerprint import made_with
from ..model.vocabulary import DRAWINGS, HELD_OUT, OBJECTS, STYLES
from .options import kept_rows

DOCS = testbed.ROOT / "docs"
SHOTS = 4
BAR = 0.95
# Other drawings for some words. The model was not trained on them. Only the rendered data has them.
OTHER_DRAWINGS = {
    "cat": "cat",
    "pig": "pig",
    "rabbit": "rabbit",
    "whale": "whale",
    "apple": "green-apple",
    "bread": "baguette-bread",
    "airplane": "small-airplane",
    "bus": "oncoming-bus",
    "car": "oncoming-automobile",
    "house": "house-with-garden",
    "train": "train",
    "camera": "camera-with-flash",
    "hourglass": "hourglass-done",
    "key": "old-key",
    "umbrella": "umbrella-with-rain-drops",
}


@dataclass(frozen=True)
class Set:
    """Pictures (4, 128, 128, 3) of what `answer` names."""

    name: str
    answer: str
    images: torch.Tensor
    words: tuple[str, ...]
    kind: str = "object"


def views(images: torch.Tensor, seed: int) -> torch.Tensor:
    """Drawings (N, H, W, 3), some mirrored, all turned, scaled, shifted and tinted a little.

    The model was trained only on drawings that were shifted by up to three pixels.
    """
    generator, n = torch.Generator().manual_seed(seed), len(images)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    angle, scale = uniform(-0.12, 0.12), uniform(0.95, 1.12)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    rows = (
        [mirror * angle.cos() * scale, -angle.sin() * scale, uniform(-0.06, 0.06)],
        [mirror * angle.sin() * scale, angle.cos() * scale, uniform(-0.06, 0.06)],
    )
    theta = torch.stack([torch.stack(row, 1) for row in rows], 1)
    x = images.movedim(-1, 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    # White outside: sampled as the negative, whose zero padding is white.
    x = 1 - F.grid_sample(1 - x, grid, mode="bilinear", align_corners=False)
    return (x * uniform(0.95, 1.03, 1, 1, 1)).clamp(0, 1).movedim(1, -1).contiguous()


def objects(words: tuple[str, ...] = tuple(OBJECTS), name: str = "objects") -> Iterator[Set]:
    """Each object in four styles, its held-out style first, changed by `views`."""
    kept_back = dict(HELD_OUT)
    for i in range(len(OBJECTS)):
        word = OBJECTS[37 * i % len(OBJECTS)]  # mixed, so that a stopped run has all groups
        order = torch.randperm(len(STYLES), generator=torch.Generator().manual_seed(i)).tolist()
        if word in kept_back:
            first = STYLES.index(kept_back[word])
            order = [first, *(style for style in order if style != first)]
        yield Set(name, word, views(drawings.of(word)[order[:SHOTS]], i), words)


def built_in() -> Iterator[Set]:
    """`objects`, to be found among the built-in words, most of which IconCanvas does not know."""
    from unlearn.prompts.vocabulary import VOCABULARY

    yield from objects(VOCABULARY["object"], "objects, built-in words")


def kept_back() -> Iterator[Set]:
    """The held-out drawing of each object, in four views."""
    for i, (word, style) in enumerate(sorted(HELD_OUT)):
        drawing = drawings.of(word)[[STYLES.index(style)] * SHOTS]
        yield Set("kept-back drawings", word, views(drawing, 1000 + i), tuple(OBJECTS))


def others() -> Iterator[Set]:
    """Other drawings of the same word, in four styles. Needs the rendered data."""
    import numpy as np

    from ..model import data

    file = data.CACHE / "pretraining.npy"
    if not file.exists():
        return
    names = json.loads((data.CACHE / "pretraining.json").read_text("utf-8"))
    pixels = np.load(file, mmap_mode="r")
    for i, (word, drawing) in enumerate(OTHER_DRAWINGS.items()):
        if drawing in names and DRAWINGS[word] != drawing:
            order = torch.randperm(len(STYLES), generator=torch.Generator().manual_seed(i))
            rows = [len(STYLES) * names.index(drawing) + int(style) for style in order[:SHOTS]]
            images = torch.from_numpy(np.stack([pixels[row] for row in rows])).float() / 255
            yield Set("other drawings", word, images, tuple(OBJECTS))


def styles(times: int = 3) -> Iterator[Set]:
    """Four of the held-out drawings of each style, chosen `times` times."""
    for i in range(times):
        for style in STYLES:
            words = sorted(word for word, of in HELD_OUT if of == style)
            images = torch.stack([drawings.of(word)[STYLES.index(style)] for word in words])
            chosen = torch.randperm(len(words), generator=torch.Generator().manual_seed(i))[:SHOTS]
            yield Set("styles", style, images[chosen], tuple(STYLES), "style")


SETS = {
    "objects": objects,
    "built-in": built_in,
    "kept-back": kept_back,
    "other-drawings": others,
    "styles": styles,
}


SAYS = {
    "objects": "*objects*: an object in four styles, mirrored, turned, scaled, moved and tinted "
    "anew. For 46 of the 64 objects, one of the four drawings was kept back from training.",
    "objects, built-in words": "*objects, built-in words*: the same among the words that Identify "
    "brings along, most of which IconCanvas was never taught.",
    "kept-back drawings": "*kept-back drawings*: only the drawing that was kept back, in four "
    "views, so one picture rather than four.",
    "other drawings": "*other drawings*: other icons of the same word, such as a whole cat where "
    "training had a cat's face.",
    "styles": "*styles*: four drawings of different things, all kept back from training.",
}


def measure(package, model, one: Set, draws: int | None = None) -> dict:
    """The row of a set."""
    identify = package.unlearn.evaluate.classifier.identify
    started = time.perf_counter()
    with fast(model.device):
        ranking = identify(
            model, one.images, one.words, one.kind, **({"draws": draws} if draws else {})
        )
    order = [word.word for word in ranking.words]
    return {
        "set": one.name,
        "answer": one.answer,
        "said": ranking.best,
        "place": order.index(one.answer) + 1,
        "candidates": len(order),
        "confidence": round(ranking.confidence, 4),
        "explained": round(ranking.words[0].explained, 4),
        "evaluations": ranking.evaluations,
        "seconds": round(time.perf_counter() - started, 2),
        **made_with(),
    }


def table(rows: list[dict], totals: dict[str, int]) -> str:
    """The rows by kind of set, as Markdown. totals: how many sets of each kind there are."""
    lines = [
        "| pictures | sets | words | right first | among the first three | confidence | "
        "evaluations | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["set"] for row in rows):
        some = [row for row in rows if row["set"] == name]
        lines.append(
            f"| {name} | {len(some)} of {totals[name]} | {some[0]['candidates']} | "
            f"{mean(row['place'] == 1 for row in some):.1%} | "
            f"{mean(row['place'] <= 3 for row in some):.1%} | "
            f"{mean(row['confidence'] for row in some):.0%} | {some[0]['evaluations']} | "
            f"{mean(row['seconds'] for row in some):.1f} |"
        )
    return "\n".join(lines)


def reliability(rows: list[dict]) -> str:
    """How often the first word was right, by confidence, as Markdown."""
    lines = ["| confidence | sets | right first |", "|---|---|---|"]
    for low, high in ((0.0, 0.5), (0.5, 0.8), (0.8, 0.95), (0.95, 0.99), (0.99, 1.01)):
        some = [row["place"] == 1 for row in rows if low <= row["confidence"] < high]
        if some:
            lines.append(f"| {low:.0%} to {min(high, 1):.0%} | {len(some)} | {mean(some):.0%} |")
    return "\n".join(lines)


def cost(rounds: Callable[[int, int], list[tuple[int, int]]], draws: int = 64) -> float:
    """How many times as many denoiser rows 200 words take as ten, the empty prompt included."""

    def rows(count: int) -> int:
        had, total = 0, 0
        for left, until in rounds(count, draws):
            total += (left + 1) * (until - had)
            had = until
        return total

    return rows(200) / rows(10)


def page(rows: list[dict], totals: dict[str, int], dearer: float) -> str:
    wrong = [
        f"{row['answer']} ({row['set']}): {row['said']}, the right one at place {row['place']}"
        for row in rows
        if row["place"] > 1 and row["set"] in ("objects", "styles")
    ]
    return "\n".join(
        [
            "# Identify",
            "",
            "Made by `python -m testbed.studies.identify --sets objects styles kept-back`. How "
            "often Identify Concept finds the right word for four pictures of an object or in a "
            f"style of IconCanvas. The bar: the right word comes first in {BAR:.0%} of *objects* "
            "and of *styles*.",
            "",
            table(rows, totals),
            "",
            f"200 words cost {dearer:.2f} times the evaluations that ten cost; the bar is 4.",
            "",
            " ".join(text for name, text in SAYS.items() if any(r["set"] == name for r in rows)),
            "If fewer sets were measured than there are, run the same command again: it goes on.",
            "",
            "## How far to trust the confidence",
            "",
            reliability(rows),
            "",
            "## Mistakes",
            "",
            *([f"* {line}" for line in wrong] or ["None."]),
            "",
            f"{measured_on(rows)} The seconds are of one thread.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m testbed.studies.identify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--draws", type=int, help="draws of each word (default: the method's own)")
    parser.add_argument("--json", type=Path, default=DOCS / "identify.json")
    parser.add_argument("--page", type=Path, default=DOCS / "identify.md")
    options = parser.parse_args()
    published = {DOCS / "identify.json", DOCS / "identify.md"}
    if options.draws and published & {options.json, options.page}:
        parser.error(
            "--draws gives other figures than those in docs: name other files with --json and "
            "--page."
        )
    from tqdm import tqdm

    torch.set_num_threads(1)
    package = pack.load()
    model = package.nodes.backend.model.ComfyModel(*pack.checkpoint(), size=(drawings.SIZE,) * 2)
    rows = kept_rows(options.json)
    dearer = cost(package.unlearn.evaluate.classifier.rounds)
    jobs, totals = [], {}
    for name, sets in SETS.items():
        found = list(sets())
        totals |= {one.name: len(found) for one in found}
        if name not in options.sets:
            continue
        have = sum(row["set"] == found[0].name for row in rows) if found else 0
        jobs += [(i / len(found), one) for i, one in enumerate(found) if i >= have]
    # All kinds of sets in parallel, so that a stopped run has figures for each.
    jobs = [one for _, one in sorted(jobs, key=lambda job: job[0])]
    progress = tqdm(jobs, desc="identify")
    for job in progress:
        with torch.inference_mode(), model.training():
            rows.append(measure(package, model, job, options.draws))
        right = mean(row["place"] == 1 for row in rows if row["set"] == job.name)
        progress.set_postfix_str(f"{job.name}: {right:.0%}")
        workers.write_rows(options.json, rows)
        options.page.write_text(page(rows, totals, dearer), encoding="utf-8")
    print(page(rows, totals, dearer))


if __name__ == "__main__":
    main()
