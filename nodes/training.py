"""What all training nodes share: one run from inputs to a file, and what they hand on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from comfy_api.latest import io, ui
from safetensors import SafetensorError

from ..unlearn.erasure import Erasure
from ..unlearn.model import Diverged, Part
from ..unlearn.peak_memory import PeakMemory
from ..unlearn.resume import Resume
from .connected import check_clip, check_patcher, check_vae
from .files import check_writable, erasure_file, trained_before, training_key
from .host import ComfyModel
from .report import Progress, loss_curve, tell

SAVE_EVERY = "CONCEPT_UNLEARN_SAVE_EVERY"


def save_every() -> float:
    """Seconds between two savings of a run's state: 60, or what the environment asks for.

    Fewer where little may be lost, more where the disk is slow. Raises ValueError.
    """
    asked = os.environ.get(SAVE_EVERY, "60")
    try:
        return float(asked)
    except ValueError:
        raise ValueError(
            f"The environment variable {SAVE_EVERY} is {asked!r}; set it to a number of seconds."
        ) from None


@dataclass(frozen=True)
class Trained:
    """Which weights a run trains, and with how many latents and prompts at once."""

    part: Part
    select: str
    rank: int
    batch: int
    prompts: int = 0


@dataclass(frozen=True)
class Training:
    """One training node's work: from what it is given to an erasure and the file it lies in."""

    method: str
    concepts: list[str]
    settings: object
    model: object
    clip: object
    vae: object | None
    size: int
    images: torch.Tensor | None
    prefix: str
    seed: int

    def run(
        self,
        node_id: str | None,
        trained: Trained,
        learn: Callable[[ComfyModel, Progress, Resume], Erasure],
    ) -> tuple[Erasure, Path, str]:
        """(erasure, file, a line saying so if it was trained before).

        What is trained is written to the file at once, and a run with the very same inputs reads
        it: the host forgets results. A long run keeps its state beside the file and goes on from
        it. Raises RuntimeError when the loss diverged; what was good by then is kept aside.
        """
        check_clip(self.clip)
        check_patcher(self.model, "MODEL")
        check_patcher(self.clip.patcher, "CLIP")
        if self.images is not None:
            check_vae(self.vae, ", or no pictures")
        drawn_at = None if self.images is not None else self.size
        key = training_key(
            self.method,
            self.concepts,
            self.settings,
            self.images,
            drawn_at,
            self.model,
            self.clip,
            self.vae,
        )
        file = erasure_file(self.prefix, self.concepts, key)
        resume = Resume(file.with_suffix(".resume"), save_every())
        kept = trained_before(file, key)
        if kept is not None:
            return kept, file, "Trained before with these inputs; read from the file.\n"
        check_writable(file)
        sides = (self.size,) * 2 if self.images is None else tuple(self.images.shape[1:3])
        host = ComfyModel(self.model, self.clip, self.vae, sides)
        planned = host.prepare(
            trained.part, trained.select, trained.rank, trained.batch, trained.prompts
        )
        tell(node_id, f"unlearning {', '.join(self.concepts)} takes {planned.sentence()}")
        with PeakMemory(host.device) as memory, host.training():
            started = time.monotonic()
            draw = None
            if host.vae is not None:
                draw = lambda: host.preview(f"a photo of a {self.concepts[0]}", self.seed)  # noqa: E731
            progress = Progress(node_id, f"unlearning {', '.join(self.concepts)}", draw)
            try:
                erasure = learn(host, progress, resume)
            except Diverged as error:
                resume.close()
                if not error.history:
                    raise RuntimeError(
                        f"{error} Nothing was learnt, so nothing is kept. If it is so at every "
                        "try, what the model itself draws is not finite: look at the LoRAs on it."
                    ) from error
                aside = file.with_name(f"{file.stem}_unfinished.safetensors")
                error.erasure.save(aside)
                raise RuntimeError(
                    f"{error} What was reached after step {len(error.history)} is kept in "
                    f"{aside.name}."
                ) from error
        erasure = Erasure(erasure.deltas, {**erasure.record, "key": key}).with_measured(
            seconds=round(resume.before + time.monotonic() - started, 2),
            peak_mb=memory.peak >> 20,
            recomputed=planned.checkpointing,
            estimated_mb=planned.needed >> 20,
        )
        try:
            erasure.save(file)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RuntimeError(
                f"What was trained cannot be written to {file} ({reason}). Make room "
                "there and queue it again: a run in the image network goes on from where it last "
                "kept its state."
            ) from error
        resume.close()
        return erasure, file, ""


def outputs(node_id: str | None, erased, erasure: Erasure, text: str, *more) -> io.NodeOutput:
    """A training node's five outputs and its own, the text also shown in the node."""
    tell(node_id, text)
    losses = erasure.record["loss"]
    return io.NodeOutput(
        erased, erasure, loss_curve(losses), {"loss": losses}, text, *more, ui=ui.PreviewText(text)
    )


def summary(erasure: Erasure, file: Path, where: str, what: str, moved: Mapping[str, float]) -> str:
    """What was erased and how strongly, in words."""
    record, measured = erasure.record, erasure.record.get("measured", {})
    strength = ", ".join(f"{name} {value:.0%}" for name, value in moved.items())
    return (
        f"Erased from {where}: {', '.join(erasure.concepts)} ({record['kind']}).\n"
        f"{what}: {strength}.\n"
        f"{record['steps']} steps ({record['settings']['mode']}), "
        f"{measured.get('seconds', 0):.1f} s, peak memory {measured.get('peak_mb', 0)} MiB "
        f"(estimated: {measured.get('estimated_mb', 0)} MiB beside the models).\n"
        f"File: {file.name}, {file.stat().st_size / 1e6:.1f} MB.\n"
        "Suppressed, not removed for good: probe it before you rely on it."
    )
