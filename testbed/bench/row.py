"""One job of the benchmark: erase, draw, judge, and what that gives as a row."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field

import torch

from ..host.precision import fast
from ..model import drawings, measure, sentences, vocabulary
from ..model.fingerprint import made_with
from ..model.vocabulary import CHARACTERS, STYLES
from .attacks import attacked
from .pictures import save_strip, save_typed, strip_file, typed_file
from .plan import EPOCHS, epochs_of

SHOTS = 4
HARDENED = 60  # seconds
ROUNDS = 3  # of hardening, where it is solved for
CLIP_WIDTH, WIDTH = 768, 192  # of CLIP-L, which the paper edits, and of IconCanvas's encoder


def neighbour(concept: str) -> str:
    """The next concept of its kind in IconCanvas's lists."""
    for words in (vocabulary.OBJECTS, STYLES, CHARACTERS):
        if concept in words:
            return words[(words.index(concept) + 1) % len(words)]
    raise ValueError(f"IconCanvas does not know {concept!r}.")


@dataclass
class Drawn:
    """What one model draws for a row."""

    pictures: torch.Tensor
    """Of the prompts of `measure.prompts_for`."""
    typed: torch.Tensor
    """Of the prompts as people type them (`sentences.sentences`)."""


def drawn(host, concept: str, seed: int) -> Drawn:
    """What a model draws of a concept's and its neighbours' prompts."""
    typed = [measure.Prompt(one.text) for one in sentences.sentences(concept, seed)]
    with torch.inference_mode(), host.training():
        return Drawn(
            measure.draw(host, measure.prompts_for(concept, seed), 1000 * seed),
            measure.draw(host, typed, 1000 * seed + 500),
        )


def draw_before(package, parts, concept: str, seed: int) -> Drawn:
    """What the unedited model draws."""
    host = package.nodes.backend.model.ComfyModel(*parts, size=(128, 128))
    return drawn(host, concept, seed)


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


def settings_of(method, job: dict, kind: str):
    """A method's settings for a job: those that its mode names, as far as the method has them."""
    mode, _, variant = job["mode"].partition("-")
    outside = {"trainable": "outside-cross-attention"}
    variants = {
        "neighbour": lambda: {"anchor": neighbour(job["concept"])},
        "neutral": lambda: {"anchor": "neutral"},
        "hardened": lambda: {"harden": HARDENED, "harden_rounds": ROUNDS},
        "all": lambda: {"trainable": "all"},
        "scaled": lambda: {"learning_rate": 1e-5 * CLIP_WIDTH / WIDTH},
        "solved": lambda: {"iterations": 0},
        "auto": lambda: {"start": "auto"},
        "all-steps": lambda: {"start": 0},
        "last-half": lambda: {"start": 25},
        "outside": lambda: outside,
        "outside-hardened": lambda: {**outside, "harden": HARDENED},
    }
    wanted = {"mode": mode, "kind": kind, "seed": job["seed"]}
    wanted |= variants[variant]() if variant else {}
    if method.name == "few_shot":
        wanted["epochs"] = max(EPOCHS)

    def takes(name: str, value: object) -> bool:
        known = method.described.get(name)
        is_word = known is not None and known.choices and isinstance(value, str)
        return known is not None and (not is_word or value in known.choices)

    return method.settings(**{k: value for k, value in wanted.items() if takes(k, value)})


def erased(package, host, job: dict, kind: str, shots) -> list[Erased]:
    """The erasures of a job, by the method and mode that it names."""
    registry, concept = package.unlearn.methods.registry, [job["concept"]]
    several = job["method"].split("+")
    methods = {**registry.METHODS, **registry.BASELINES}
    taken: dict[int, tuple[dict, float]] = {}  # after a step: its deltas, and when

    def take(step: int, total: int, loss: float, edit) -> None:
        epoch, rest = divmod(step * max(EPOCHS), total)
        if epoch in epochs_of(job["mode"]) and not rest:
            taken[epoch] = edit.tensors(), time.perf_counter() - started

    with package.unlearn.core.peak_memory.PeakMemory(host.device) as memory:
        started = time.perf_counter()
        if len(several) > 1:
            parts = [erased(package, host, {**job, "method": m}, kind, shots) for m in several]
            erasure = package.unlearn.core.erasure.combine([part[0].erasure for part in parts])
        else:
            method = methods[job["method"]]
            settings = settings_of(method, job, kind)
            # Few-shot's paper run is the same for every number of epochs, as far as it goes.
            by_epochs = method.name == "few_shot" and settings.mode == "paper"
            erasure = method.run(host, concept, settings, shots, take if by_epochs else None)
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


def measure_job(package, parts, judge, before: Drawn, job: dict) -> list[dict]:
    """The rows of one job: one, or for few-shot's paper modes one an epoch measured.

    parts: (MODEL, CLIP, VAE). before: what they draw of the job's prompts (`draw_before`).
    """
    model, clip, vae = parts
    concept, seed = job["concept"], job["seed"]
    kind = measure.kind_of(concept)
    host = sampling_fast(package.nodes.backend.model.ComfyModel(model, clip, vae, size=(128, 128)))
    prompts = measure.prompts_for(concept, seed)
    typed = sentences.sentences(concept, seed)
    shots = drawings.of(concept)
    chosen = torch.randperm(len(shots), generator=torch.Generator().manual_seed(seed))[:SHOTS]
    rows = []
    with torch.inference_mode(), host.training():
        results = erased(package, host, job, kind, shots[chosen])
    for one in results:
        erasure = one.erasure
        changed = package.nodes.backend.apply.erased(model, clip, erasure)
        edited = package.nodes.backend.model.ComfyModel(*changed, vae, size=(128, 128))
        after = drawn(edited, concept, seed)
        save_strip(strip_file(job), prompts, before.pictures, after.pictures)
        save_typed(typed_file(job), typed, before.typed, after.typed)
        size = sum(t.numel() * 2 for t in erasure.state_dict().values())
        rows.append(
            {
                **{key: job[key] for key in ("method", "mode", "concept", "seed")},
                "kind": kind,
                **measure.score(concept, prompts, before.pictures, after.pictures, judge),
                **sentences.generalised(concept, typed, before.typed, after.typed, judge),
                "steps": sum(r["steps"] for r in erasure.record.get("parts", [erasure.record])),
                "start": erasure.record.get("start"),
                **one.added,
                "seconds": round(one.seconds, 2),
                "peak_mb": one.peak_mb,
                "file_bytes": size,
                **made_with(),
            }
        )
        if job.get("attack"):
            rows[-1]["attacks"] = attacked(package, parts, changed, judge, concept)
    return rows
