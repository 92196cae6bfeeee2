"""One job of the benchmark: erase, draw, judge, and what that gives as a row."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from importlib import import_module

import torch

from ..host.machine import machine
from ..host.precision import fast
from ..model import drawings, measure, vocabulary
from ..model.vocabulary import CHARACTERS, STYLES
from .attacks import attacked
from .pictures import save_strip, strip_file
from .plan import EPOCHS, epochs_of

BASELINES = {
    "gradient_ascent": "GradientAscentSettings",
    "weight_pruning": "WeightPruningSettings",
}
STARTS = {"auto": "auto", "all-steps": 0, "last-half": 25}
TASKS = {"object": "object", "style": "style", "character": "instance"}
SHOTS = 4
HARDENED = 60  # seconds
CLIP_WIDTH, WIDTH = 768, 192  # of CLIP-L, which the paper edits, and of IconCanvas's encoder


def neighbour(concept: str) -> str:
    """The next concept of its kind in IconCanvas's lists."""
    for words in (vocabulary.OBJECTS, STYLES, CHARACTERS):
        if concept in words:
            return words[(words.index(concept) + 1) % len(words)]
    raise ValueError(f"IconCanvas does not know {concept!r}.")


def draw_before(package, parts, concept: str, seed: int):
    """What the unedited model draws of a concept's and its neighbours' prompts."""
    host = package.nodes.backend.model.ComfyModel(*parts, size=(128, 128))
    with torch.inference_mode(), host.training():
        return measure.draw(host, measure.prompts_for(concept, seed), 1000 * seed)


def sampling_fast(host):
    """The same model, which draws as the pictures that are judged are drawn, in bfloat16 where that
    is faster; what is trained is trained as ever."""
    plain = host.sample

    def sample(*arguments, **more):
        with fast(host.device):
            return plain(*arguments, **more).float()

    host.sample = sample
    return host


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
    hardened = HARDENED if variant.endswith("hardened") else 0
    taken: dict[int, tuple[dict, float]] = {}  # after a step: its deltas, and when

    def take(step: int, total: int, loss: float, edit) -> None:
        epoch, rest = divmod(step * max(EPOCHS), total)
        if epoch in epochs_of(job["mode"]) and not rest:
            taken[epoch] = edit.tensors(), time.perf_counter() - started

    with package.unlearn.core.peak_memory.PeakMemory(host.device) as memory:
        started = time.perf_counter()
        if job["method"] == "key_step":
            settings = science.methods.key_step.KeyStepSettings(
                mode=mode,
                task=TASKS[kind],
                seed=seed,
                start=STARTS.get(variant),
                anchor=anchor,
                iterations=0 if variant == "solved" else None,
                trainable="outside-cross-attention" if variant.startswith("outside") else None,
                harden=hardened,
            )
            erasure = science.methods.key_step.key_step(host, concept, settings)
        elif job["method"] == "domain_correction":
            settings = science.methods.domain_correction.DomainCorrectionSettings(
                mode=mode, kind=kind, seed=seed, anchor=anchor
            )
            erasure = science.methods.domain_correction.domain_correction(host, concept, settings)
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
            erasure = science.core.erasure.combine(parts)
        else:
            settings = science.methods.few_shot.FewShotSettings(
                mode=mode,
                kind=kind,
                seed=seed,
                anchor=anchor,
                epochs=max(EPOCHS),
                learning_rate=1e-5 * (CLIP_WIDTH / WIDTH if variant == "scaled" else 1),
                trainable="all" if variant == "all" else "mlp-final-attn",
                harden=hardened,
            )
            # The paper's run is the same for every number of epochs, as far as it goes.
            erasure = science.methods.few_shot.few_shot(
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
    model, clip, vae = parts
    concept, seed = job["concept"], job["seed"]
    kind = measure.kind_of(concept)
    host = sampling_fast(package.nodes.backend.model.ComfyModel(model, clip, vae, size=(128, 128)))
    prompts = measure.prompts_for(concept, seed)
    shots = drawings.of(concept)
    chosen = torch.randperm(len(shots), generator=torch.Generator().manual_seed(seed))[:SHOTS]
    rows = []
    with torch.inference_mode(), host.training():
        results = erased(package, host, job, kind, shots[chosen])
    for one in results:
        erasure = one.erasure
        changed = package.nodes.backend.apply.erased(model, clip, erasure)
        edited = package.nodes.backend.model.ComfyModel(*changed, vae, size=(128, 128))
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
                "machine": machine(),
            }
        )
        if job.get("attack"):
            rows[-1]["attacks"] = attacked(package, parts, changed, judge, concept)
    return rows
