"""The benchmark: erase concepts from IconCanvas and measure what is gone and what is kept.

    python dev.py bench                     the whole table
    python dev.py bench --quick             3 objects, 1 style, 1 character, 1 seed, default modes
    python dev.py bench --method few_shot --concept fox --json rows.json

Rows that the JSON file already holds are not measured again, so it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from statistics import mean, median

from . import vocabulary, workers
from .vocabulary import CHARACTERS, STYLES

OBJECTS = (
    "cat",
    "fox",
    "owl",
    "butterfly",
    "mushroom",
    "pizza",
    "strawberry",
    "castle",
    "rocket",
    "guitar",
    "umbrella",
    "camera",
)
QUICK = ("fox", "pizza", "guitar", "ink", "Zorvik")
CONCEPTS = (*OBJECTS, *STYLES, *CHARACTERS[:: len(CHARACTERS) // 6][:6])
SEEDS = (0, 1)
FEW = ("fox", "ink", "Zorvik")  # one of each kind
# method -> modes, and the concepts that each is measured on: a mode that takes minutes on a few.
# Few-shot's paper modes are measured after each of EPOCHS, and once more with the learning rate
# scaled to the width of this encoder (Adam's goes as 1 / width: Yang et al., arXiv 2203.03466),
# since the paper's is made for one four times as wide. "neighbour" draws the concept to the next
# one of its kind in place of a neutral word. Key-step unlearning also runs with the closed form
# alone and no step, from the first step on, in the last half alone, and where the finder says.
# "hardened" goes on for HARDENED seconds. The modes in ATTACKED are attacked, too, on FEW.
METHODS = {
    "few_shot": {
        "balanced": CONCEPTS,
        "balanced-neighbour": OBJECTS,
        "balanced-hardened": FEW,
        "paper": CONCEPTS,
        "paper-scaled": CONCEPTS,
        "paper-all": CONCEPTS,
    },
    "key_step": {
        "balanced": CONCEPTS,
        "balanced-neighbour": QUICK,
        "balanced-solved": CONCEPTS,
        "balanced-auto": QUICK,
        "balanced-all-steps": QUICK,
        "balanced-last-half": QUICK,
        "balanced-hardened": FEW,
        "paper": FEW,
        "paper-all-steps": FEW,
        "paper-last-half": FEW,
    },
    "domain_correction": {"balanced": CONCEPTS, "paper": FEW},
    # Text encoder and image network, each erased by itself, together.
    "few_shot+key_step": {"balanced": FEW},
    # CPDM's baselines (arXiv 2403.12052).
    "gradient_ascent": {"paper": QUICK},
    "weight_pruning": {"paper": QUICK},
}
BASELINES = {
    "gradient_ascent": "GradientAscentSettings",
    "weight_pruning": "WeightPruningSettings",
}
EPOCHS = (1, 2, 4, 5, 7, 10)
STARTS = {"auto": "auto", "all-steps": 0, "last-half": 25}
TASKS = {"object": "object", "style": "style", "character": "instance"}
SHOTS = 4
HARDENED = 60  # seconds
ATTACKED = ("balanced", "balanced-hardened")
CLIP_WIDTH, WIDTH = 768, 192  # of CLIP-L, which the paper edits, and of IconCanvas's encoder
STRIPS = Path(__file__).parent.parent / "output" / "bench"  # pictures of each row


def main() -> None:
    from .measure import known

    parser = argparse.ArgumentParser(
        prog="python dev.py bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--mode", nargs="+", help="only these modes of a method")
    parser.add_argument("--concept", nargs="+", type=known, help="any concepts of IconCanvas")
    parser.add_argument("--seed", nargs="+", type=int)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--json", type=Path, help="where the rows are kept")
    parser.add_argument(
        "--table",
        nargs="+",
        type=Path,
        help="also write the table as Markdown; in a file with <!-- bench --> marks between them",
    )
    parser.add_argument("--pictures", type=Path, help="also draw before and after, one PNG")
    parser.add_argument(
        "--no-run", action="store_true", help="only write what the JSON file already holds"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        run_jobs(json.loads(options.worker))
        return
    known = {mode for method in options.method for mode in METHODS[method]}
    for mode in options.mode or ():
        if mode not in known:
            parser.error(f"there is no mode {mode!r}; use {', '.join(sorted(known))}")
    jobs = jobs_of(options)
    rows = read_rows(options.json)
    done = {(job_key(row), attacked) for row in rows for attacked in {False, "attacks" in row}}
    missing = [job for job in jobs if (job_key(job), job["attack"]) not in done]
    if not options.no_run:
        rows = run_parallel(missing, options.jobs, options.json, rows)
    wanted = {job_key(job) for job in jobs}
    shown = [row for row in rows if job_key(row) in wanted]
    print(table(shown))
    if options.pictures:
        page_of_pictures(jobs).save(options.pictures, optimize=True)
    for file in options.table or ():
        write_table(file, shown)


def jobs_of(options: argparse.Namespace) -> list[dict]:
    """What the command line asks for."""
    quick = options.quick
    return [
        {
            "method": method,
            "mode": mode,
            "concept": concept,
            "seed": seed,
            "attack": mode in ATTACKED and concept in FEW and seed == SEEDS[0] and not quick,
        }
        for method in options.method
        for mode in METHODS[method]
        if mode in (options.mode or (["balanced"] if quick else METHODS[method]))
        for seed in options.seed or seeds_of(method, mode, quick)
        for concept in options.concept or concepts_of(method, mode, quick)
    ]


def seeds_of(method: str, mode: str, quick: bool) -> tuple[int, ...]:
    """The default modes are measured twice, where they are measured on every concept."""
    twice = mode == "balanced" and METHODS[method][mode] is CONCEPTS
    return SEEDS if twice and not quick else SEEDS[:1]


def concepts_of(method: str, mode: str, quick: bool) -> tuple[str, ...]:
    concepts = METHODS[method][mode]
    if quick:
        return QUICK if concepts is CONCEPTS else ()
    return concepts


def neighbour(concept: str) -> str:
    """The next concept of its kind in IconCanvas's lists."""
    for words in (vocabulary.OBJECTS, STYLES, CHARACTERS):
        if concept in words:
            return words[(words.index(concept) + 1) % len(words)]
    raise ValueError(f"IconCanvas does not know {concept!r}.")


def write_table(file: Path, rows: list[dict]) -> None:
    """Write the table to a file of its own, or a brief one between the marks of one that has
    them."""
    begin, end = "<!-- bench -->", "<!-- /bench -->"
    whole = file.read_text("utf-8") if file.exists() else ""
    text = table(rows)
    if begin in whole and end in whole:
        text = table(rows, brief=True)
        text = f"{whole.partition(begin)[0]}{begin}\n{text}\n{end}{whole.partition(end)[2]}"
    else:
        text = f"# The benchmark\n\n{text}\n"
    file.write_text(text, encoding="utf-8")


def job_key(row: dict) -> tuple:
    return row["method"], row["mode"], row["concept"], row["seed"]


def read_rows(file: Path | None) -> list[dict]:
    return json.loads(file.read_text("utf-8")) if file and file.exists() else []


def run_parallel(jobs: list[dict], count: int, file: Path | None, before: list[dict]) -> list[dict]:
    """All rows: those before, and the jobs', which take the place of theirs. The jobs are shared
    out to processes, and the rows written as they come."""
    from tqdm import tqdm

    rows = before
    # What one concept and seed draws before any edit is drawn once, so they stay in one process.
    shares = workers.shared(jobs, [(job["concept"], job["seed"]) for job in jobs], count)
    with tqdm(total=len(jobs), desc="bench", disable=not jobs) as progress:
        for new in workers.results("testbed.bench", shares):
            measured = {job_key(row) for row in new}
            rows = [row for row in rows if job_key(row) not in measured] + new
            progress.update()
            progress.set_postfix_str(f"{new[-1]['concept']} ua {new[-1]['ua']:.0%}")
            if file:
                workers.write_rows(file, rows)
    return rows


def run_jobs(jobs: list[dict]) -> None:
    """A worker: measures its jobs one after another and tells the rows of each."""
    import logging

    import torch

    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    from . import pack
    from .judge import Judge

    package = pack.load()
    parts = pack.checkpoint()
    judge = Judge()
    before: dict[tuple, torch.Tensor] = {}
    for job in sorted(jobs, key=lambda job: (job["concept"], job["seed"])):
        pair = job["concept"], job["seed"]
        if pair not in before:
            before = {pair: draw_before(package, parts, *pair)}
        rows = measure_job(package, parts, judge, before[pair], job)
        workers.tell(rows)


def draw_before(package, parts, concept: str, seed: int):
    """What the unedited model draws of a concept's and its neighbours' prompts."""
    import torch

    from . import measure

    host = package.nodes.host.ComfyModel(*parts, size=(128, 128))
    with torch.inference_mode(), host.training():
        return measure.draw(host, measure.prompts_for(concept, seed), 1000 * seed)


@dataclass
class Erased:
    """One row to be: an erasure, how it was come by, and what that took."""

    erasure: object
    seconds: float
    peak_mb: int
    added: dict = field(default_factory=dict)


def erased(package, host, job: dict, kind: str, shots) -> list[Erased]:
    """The erasures of a job, by the method and mode that it names."""
    mode, _, variant = job["mode"].partition("-")
    science, concept, seed = package.unlearn, [job["concept"]], job["seed"]
    anchor = neighbour(job["concept"]) if variant == "neighbour" else ""
    taken: dict[int, tuple[dict, float]] = {}  # after a step: its deltas, and when

    def take(step: int, total: int, loss: float, edit) -> None:
        epoch, rest = divmod(step * max(EPOCHS), total)
        if epoch in EPOCHS and not rest:
            taken[epoch] = edit.tensors(), time.perf_counter() - started

    with package.nodes.memory.PeakMemory() as memory:
        started = time.perf_counter()
        if job["method"] == "key_step":
            settings = science.key_step.KeyStepSettings(
                mode=mode,
                task=TASKS[kind],
                seed=seed,
                start=STARTS.get(variant),
                anchor=anchor,
                iterations=0 if variant == "solved" else None,
                harden=HARDENED if variant == "hardened" else 0,
            )
            erasure = science.key_step.key_step(host, concept, settings)
        elif job["method"] == "domain_correction":
            settings = science.domain_correction.DomainCorrectionSettings(
                mode=mode, kind=kind, seed=seed, anchor=anchor
            )
            erasure = science.domain_correction.domain_correction(host, concept, settings)
        elif job["method"] in BASELINES:
            # No node imports them.
            method = import_module(f"{science.__name__}.{job['method']}")
            settings = getattr(method, BASELINES[job["method"]])(kind=kind, seed=seed)
            erasure = getattr(method, job["method"])(host, concept, shots, settings)
        elif job["method"] == "few_shot+key_step":
            parts = [
                erased(package, host, {**job, "method": method}, kind, shots)[0].erasure
                for method in job["method"].split("+")
            ]
            erasure = science.erasure.combine(parts)
        else:
            settings = science.few_shot.FewShotSettings(
                mode=mode,
                kind=kind,
                seed=seed,
                anchor=anchor,
                epochs=max(EPOCHS),
                learning_rate=1e-5 * (CLIP_WIDTH / WIDTH if variant == "scaled" else 1),
                trainable="all" if variant == "all" else "mlp-final-attn",
                harden=HARDENED if variant == "hardened" else 0,
            )
            # The paper's run is the same for every number of epochs, as far as it goes.
            erasure = science.few_shot.few_shot(
                host, concept, shots, settings, take if mode == "paper" else None
            )
        seconds = time.perf_counter() - started
    peak = memory.peak >> 20
    if not taken:
        return [Erased(erasure, seconds, peak)]
    steps = erasure.record["steps"]
    return [
        Erased(
            dataclasses.replace(
                erasure,
                deltas=deltas,
                record={**erasure.record, "steps": steps * epoch // max(EPOCHS)},
            ),
            after,
            peak,
            {"epochs": epoch},
        )
        for epoch, (deltas, after) in taken.items()
    ]


def measure_job(package, parts, judge, before, job: dict) -> list[dict]:
    """The rows of one job: one, or for few-shot's paper modes one an epoch measured.

    parts: (MODEL, CLIP, VAE). before: what they draw of the job's prompts (`draw_before`).
    """
    import torch

    from . import drawings, measure
    from .attacks import attacked

    model, clip, vae = parts
    concept, seed = job["concept"], job["seed"]
    kind = measure.kind_of(concept)
    host = package.nodes.host.ComfyModel(model, clip, vae, size=(128, 128))
    prompts = measure.prompts_for(concept, seed)
    shots = drawings.of(concept)
    chosen = torch.randperm(len(shots), generator=torch.Generator().manual_seed(seed))[:SHOTS]
    rows = []
    with torch.inference_mode(), host.training():
        results = erased(package, host, job, kind, shots[chosen])
    for one in results:
        erasure = one.erasure
        changed = package.nodes.apply.erased(model, clip, erasure)
        edited = package.nodes.host.ComfyModel(*changed, vae, size=(128, 128))
        with torch.inference_mode(), edited.training():
            after = measure.draw(edited, prompts, 1000 * seed)
        save_strip(strip_file(job), prompts, before, after)
        size = sum(t.numel() * 2 for t in erasure.state_dict().values())
        rows.append(
            {
                **{key: job[key] for key in ("method", "mode", "concept", "seed")},
                "kind": kind,
                **measure.score(concept, prompts, before, after, judge),
                "steps": sum(r["steps"] for r in erasure.record.get("parts", [erasure.record])),
                "start": erasure.record.get("start"),
                **one.added,
                "seconds": round(one.seconds, 2),
                "peak_mb": one.peak_mb,
                "file_bytes": size,
            }
        )
        if job.get("attack"):
            rows[-1]["attacks"] = attacked(package, parts, changed, judge, concept)
    return rows


def strip_file(job: dict) -> Path:
    return STRIPS / "{method}-{mode}-{concept}-{seed}.png".format(**job)


def save_strip(file: Path, prompts, before, after) -> None:
    """Three of the concept's own prompts, three of its kind, two of others: before above after."""
    import torch

    from .report import grid

    by_measure = {
        m: [i for i, p in enumerate(prompts) if p.measure == m] for m in ("own", "in", "cross")
    }
    own, near, far = by_measure["own"], by_measure["in"], by_measure["cross"]
    chosen = [own[0], own[len(own) // 2], own[-1], *near[:3], far[0], far[-1]]
    file.parent.mkdir(parents=True, exist_ok=True)
    strip = grid(torch.cat([before[chosen], after[chosen]]), len(chosen))
    strip.resize((strip.width // 2, strip.height // 2)).save(file)


def page_of_pictures(jobs: list[dict]):
    """The first seed's strips of the default modes, named, in two columns."""
    from PIL import Image, ImageDraw

    shown = [job for job in jobs if job["mode"] == "balanced" and job["seed"] == jobs[0]["seed"]]
    files = [(job["concept"], strip_file(job)) for job in shown]
    pictures = [(name, Image.open(file)) for name, file in files if file.exists()]
    if not pictures:
        raise SystemExit("bench: no pictures were kept for these rows; use another --json file.")
    width, height = pictures[0][1].size
    rows = -(-len(pictures) // 2)
    page = Image.new("RGB", (2 * (width + 90), rows * (height + 8) + 20), "white")
    pen = ImageDraw.Draw(page)
    for i, (name, picture) in enumerate(pictures):
        x, y = (i // rows) * (width + 90), (i % rows) * (height + 8) + 20
        pen.text((x + 4, y + height // 2 - 6), name, fill="black")
        page.paste(picture, (x + 80, y))
    for x in (0, width + 90):
        pen.text(
            (x + 80, 4),
            "the concept (above before, below after), then what must stay",
            fill="black",
        )
    return page


def table(rows: list[dict], brief: bool = False) -> str:
    """The rows' means as Markdown: a line a method, mode (and epoch) and kind, and one over all.
    Of peaks it is the median: a process may still hold what its earlier rows took.

    brief: kinds of the default modes alone, and of the epochs the paper's example and the last.
    """
    lines = [
        "| method | mode | kind | rows | UA | IRA | CRA | style kept | drift | steps | seconds | "
        "peak | file |",
        "|---" * 13 + "|",
    ]
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        epochs = row.get("epochs", 0)
        if brief and epochs not in (0, 4, max(EPOCHS)):
            continue
        kinds = ("all",) if brief and row["mode"] != "balanced" else (row["kind"], "all")
        for kind in kinds:
            groups.setdefault((row["method"], row["mode"], epochs, kind), []).append(row)
    order = ("object", "style", "character", "all")
    methods = list(METHODS)
    for (method, mode, epochs, kind), some in sorted(
        groups.items(),
        key=lambda item: (methods.index(item[0][0]), *item[0][1:3], order.index(item[0][3])),
    ):
        mode += f", {epochs} epoch{'s' * (epochs > 1)}" if epochs else ""

        def share(name: str, some=some) -> str:
            return f"{mean(row[name] for row in some):.1%}"

        style = (
            share("style_kept", [r for r in some if r["kind"] == "object"])
            if kind in ("object", "all") and any(r["kind"] == "object" for r in some)
            else ""
        )
        lines.append(
            f"| {method} | {mode} | {kind} | {len(some)} | {share('ua')} | {share('ira')} | "
            f"{share('cra')} | {style} | {mean(r['drift_feature'] for r in some):.3f} | "
            f"{mean(r['steps'] for r in some):.0f} | {mean(r['seconds'] for r in some):.1f} | "
            f"{median(r['peak_mb'] for r in some) / 1000:.1f} GB | "
            f"{mean(r['file_bytes'] for r in some) / 1e6:.1f} MB |"
        )
    lines += ["", *attack_table([row for row in rows if "attacks" in row])]
    lines.append(f"Measured on {machine()}.")
    return "\n".join(lines)


def attack_table(rows: list[dict]) -> list[str]:
    """What brings a concept back, the mean over each method's and mode's rows, as Markdown."""
    if not rows:
        return []
    names = [name for name in rows[0]["attacks"] if name != "own"]
    lines = [
        "| method | mode | rows | its own prompts | " + " | ".join(names) + " |",
        "|---" * (4 + len(names)) + "|",
    ]
    for method, modes in METHODS.items():
        for mode in modes:
            some = [r["attacks"] for r in rows if (r["method"], r["mode"]) == (method, mode)]
            if some:
                shares = (f"{mean(r[name] for r in some):.0%}" for name in ("own", *names))
                lines.append(f"| {method} | {mode} | {len(some)} | " + " | ".join(shares) + " |")
    return [*lines, ""]


def machine() -> str:
    """The machine in words: processor, cores, GPU, versions."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        name = platform.processor() or platform.machine()
        info = Path("/proc/cpuinfo")
        if info.exists():
            line = next(
                (x for x in info.read_text().splitlines() if x.startswith("model name")), ""
            )
            name = line.partition(":")[2].strip() or name
    return (
        f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
