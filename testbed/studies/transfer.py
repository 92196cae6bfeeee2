"""What a text encoder that was erased with the image model does to clips.

    python -m testbed transfer                          all of it
    python -m testbed transfer --concept fox ink        only these, one by one
    python -m testbed transfer --shots 4 --groups none  only with this number of pictures
    python -m testbed transfer --no-run                 only write what was measured already

Few-Shot encoder unlearning (mode "balanced") with IconCanvas's image model, from drawings of the
concept ("real") or from pictures that the model draws itself ("drawn"). Then the same text encoder
runs in diffusers' AnimateDiffPipeline with IconCanvas's motion module (Liu and Tan, arXiv
2407.14209). Denoiser, motion module and seeds are the same before and after. Writes
docs/transfer.json, .md and _sheet.png. Rows that the JSON file has for the same weights are not
measured again, so a stopped run continues.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from tqdm import tqdm

from unlearn.core.erasure import Erasure
from unlearn.diffusers_backend.apply import applied
from unlearn.diffusers_backend.model import DiffusersModel
from unlearn.files.writing import whole_file
from unlearn.methods.few_shot import FewShotSettings, few_shot

from .. import ROOT
from ..host.machine import machine
from ..host.precision import fast
from ..host.workers import JOBS_HELP, processes
from ..model import checkpoint, drawings
from ..model.captions import moving
from ..model.fingerprint import fingerprint
from ..model.judge import Judge
from ..model.measure import GUIDANCE, STEPS, Prompt, kind_of, known, prompts_for
from ..model.vocabulary import FRAMES, MOTIONS
from ..motion import estimate as motion_estimate
from ..motion import motion
from ..motion import pipeline as diffusers_pipeline
from . import together
from .transfer_plan import (
    FULL,
    GROUPS,
    QUICK,
    SEED,
    SHOTS,
    SINGLES,
    STRIPS,
    Effort,
    Job,
    job_of,
    jobs,
)

FILE = ROOT / "docs" / "transfer.json"


@dataclass(frozen=True)
class Clip:
    """A clip's prompt, motion word and seed. concept: the erased concept that the clip is of, or ""
    for a clip of a neighbour."""

    prompt: Prompt
    motion: str
    concept: str
    seed: int


def clips_for(concepts: tuple[str, ...], effort: Effort = FULL) -> list[Clip]:
    """Each concept's own clips, and neighbours that name none of them, with the motions in turn."""
    chosen: list[tuple[Prompt, str]] = []
    near: list[Prompt] = []
    for concept in concepts:
        prompts = prompts_for(concept, SEED)
        own = [p for p in prompts if p.measure == "own"]
        chosen += [(p, concept) for p in own[: effort.own]]
        others = [p for p in prompts if not {p.object, p.style, p.character} & set(concepts)]
        same = [p for p in others if p.measure == "in"]
        near += same[:: len(same) // effort.near][: effort.near]
        # The list has objects first and characters last.
        far = [p for p in others if p.measure == "cross"]
        near += [*far[: effort.far - 1], far[-1]]
    chosen += [(p, "") for p in near]
    return [
        Clip(
            replace(prompt, text=moving(prompt.text, MOTIONS[i % len(MOTIONS)])),
            MOTIONS[i % len(MOTIONS)],
            concept,
            i,
        )
        for i, (prompt, concept) in enumerate(chosen)
    ]


def film(video, clips: list[Clip], steps: int = STEPS, batch: int = 4) -> torch.Tensor:
    """The clips (N, FRAMES, 128, 128, 3) in 0..1 that an AnimateDiffPipeline draws.

    If the denoiser computes in bfloat16, guidance and sampler still compute in float32.
    """

    def as_float(module, arguments, output):
        output.sample = output.sample.float()
        return output

    side = drawings.SIZE
    made = []
    handle = video.unet.register_forward_hook(as_float)
    try:
        with torch.inference_mode(), fast(video.device):
            for i in range(0, len(clips), batch):
                some = clips[i : i + batch]
                made.append(
                    video(
                        [clip.prompt.text for clip in some],
                        num_frames=FRAMES,
                        height=side,
                        width=side,
                        num_inference_steps=steps,
                        guidance_scale=GUIDANCE,
                        generator=[torch.Generator().manual_seed(clip.seed) for clip in some],
                        output_type="pt",
                    ).frames.float()
                )
    finally:
        handle.remove()
    return torch.cat(made).movedim(2, -1).clamp(0, 1).cpu()


def seen(clips: list[Clip], made: torch.Tensor, kind: str, judge: Judge) -> list[dict]:
    """For each clip, what was asked and what it shows.

    "right" has a string for each thing that was asked for, with one digit for each frame: 1 if the
    judge sees the thing. "shows" is the motion word that the clip shows, or None.
    """
    shown = motion_estimate.words(made.movedim(-1, 2))
    rows = []
    for clip, frames, word in zip(clips, made, shown):
        answers = judge(frames)
        right = {
            asked: "".join(str(int(clip.prompt.kept(answer, asked))) for answer in answers)
            for asked in clip.prompt.asked(kind)
        }
        rows.append(
            {
                "text": clip.prompt.text,
                "concept": clip.concept,
                "motion": clip.motion,
                "right": right,
                "shows": word,
            }
        )
    return rows


def erase(model: DiffusersModel, job: Job, effort: Effort = FULL) -> Erasure:
    """The job's erasure, trained with the image model."""
    images = None
    if job.source == "real":
        images = torch.cat([some_drawings(concept, job.shots) for concept in job.concepts])
    settings = FewShotSettings(
        kind=kind_of(job.concepts[0]),
        seed=SEED,
        shots=job.shots,
        max_steps=effort.erasing,
    )
    return few_shot(model, job.concepts, images, settings)


def some_drawings(concept: str, count: int) -> torch.Tensor:
    every = drawings.of(concept)
    chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(SEED))
    return every[chosen[:count]]


@dataclass(frozen=True)
class Tools:
    image: DiffusersModel
    video: object
    judge: Judge


@lru_cache
def tools(modules: Path) -> Tools:
    """IconCanvas for pictures and, with the motion module in the file, for clips. Both share one
    text encoder."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = diffusers_pipeline.pipeline()
    video = diffusers_pipeline.animatediff(pipeline, motion.load(modules)).to(device)
    return Tools(DiffusersModel(pipeline.to(device)), video, Judge())


def measure(job: Job, modules: Path, effort: Effort = FULL) -> dict:
    """One row: erase, give the text encoder to the video model, and judge its clips."""
    with_tools, clips = tools(modules), clips_for(job.concepts, effort)
    row = {"concepts": job.concepts, "shots": job.shots, "source": job.source}
    if job.shots:
        started = time.perf_counter()
        erasure = erase(with_tools.image, job, effort)
        row["seconds"] = round(time.perf_counter() - started, 1)
        row["steps"] = erasure.record["steps"]
        with applied(DiffusersModel(with_tools.video), erasure):
            made = film(with_tools.video, clips, effort.steps)
        if job.compared:
            image = with_tools.image
            row["pictures"] = together.scores(
                image, job.concepts, applied(image, erasure), with_tools.judge, effort.steps
            )
    else:
        made = film(with_tools.video, clips, effort.steps)
    if effort == FULL:
        save_strip(job, clips, made)
    row["clips"] = seen(clips, made, kind_of(job.concepts[0]), with_tools.judge)
    return row


def save_strip(job: Job, clips: list[Clip], made: torch.Tensor) -> None:
    """Save two clips for the sheet: the concept's first, and below it the first of a neighbour."""
    from ..model.report import grid

    near = next(i for i, clip in enumerate(clips) if not clip.concept)
    STRIPS.mkdir(parents=True, exist_ok=True)
    grid(torch.cat([made[0], made[near]]), FRAMES).save(STRIPS / f"{job.name}.png")


def weights_of(modules: Path, effort: Effort = FULL) -> str:
    """A hash of the measured weights and the effort. Rows with another hash do not count."""
    return fingerprint(checkpoint.WEIGHTS, modules, also=repr(effort))


def read_rows(file: Path, weights: str) -> list[dict]:
    rows = json.loads(file.read_text("utf-8")) if file.exists() else []
    return [row for row in rows if row["weights"] == weights]


def write_rows(file: Path, rows: list[dict]) -> None:
    """Write one row on each line, so that a changed row is one changed line."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    with whole_file(file) as new:
        new.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def run(
    missing: list[Job],
    rows: list[dict],
    file: Path,
    modules: Path,
    effort: Effort,
    workers: int | None,
) -> None:
    """Measure the missing jobs in processes of one thread each; add them to `rows` and the file."""
    if not missing:
        return
    weights = weights_of(modules, effort)
    with processes(workers) as pool:
        waiting = [pool.submit(measure, job, modules, effort) for job in missing]
        for done in tqdm(as_completed(waiting), total=len(waiting), desc="transfer"):
            rows.append({**done.result(), "weights": weights, "machine": machine()})
            write_rows(file, rows)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m testbed transfer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--concept", nargs="+", type=known, help="only these, each by itself, and no groups"
    )
    parser.add_argument("--shots", nargs="+", type=int, choices=SHOTS, default=list(SHOTS))
    parser.add_argument(
        "--groups",
        choices=("all", "none"),
        default="all",
        help="whether to measure several concepts in one text encoder",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="hardly any training and drawing, only to see that it runs; the figures mean nothing",
    )
    parser.add_argument("--json", type=Path, default=FILE, help="where the rows are kept")
    parser.add_argument("--motion", type=Path, default=motion.WEIGHTS, help="the motion module")
    parser.add_argument(
        "--folder", type=Path, default=FILE.parent, help="where the page and the sheet are written"
    )
    parser.add_argument("--no-run", action="store_true", help="only write what the JSON file has")
    parser.add_argument("--jobs", type=int, help=JOBS_HELP)
    options = parser.parse_args(arguments)
    if not options.motion.is_file():
        parser.error(
            f"No motion module at {options.motion}: train it with python -m testbed motion."
        )
    if (options.quick or options.motion != motion.WEIGHTS) and FILE in (
        options.json,
        options.folder / FILE.name,
    ):
        parser.error(
            "This would overwrite the figures in docs: name another file with --json and another "
            "folder with --folder."
        )
    wanted = jobs(
        tuple(options.concept or SINGLES),
        tuple(options.shots),
        GROUPS if options.groups == "all" and not options.concept else (),
    )
    effort = QUICK if options.quick else FULL
    rows = read_rows(options.json, weights_of(options.motion, effort))
    have = {job_of(row) for row in rows}
    missing = [] if options.no_run else [job for job in wanted if job not in have]
    run(missing, rows, options.json, options.motion, effort, options.jobs)

    from . import transfer_report

    transfer_report.write(rows, options.folder, effort)
