"""What all training nodes share: one run from inputs to a file, and what they hand on."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comfy.model_management import soft_empty_cache

from ..unlearn.core.edit import Diverged
from ..unlearn.core.erasure import Erasure
from ..unlearn.core.peak_memory import PeakMemory
from ..unlearn.core.resume import Resume
from ..unlearn.evaluate import verdict as verdicts
from ..unlearn.evaluate.anchor_check import drawable
from ..unlearn.methods.parts.method import Method
from ..unlearn.prompts.anchor_choice import anchored, to_choose
from ..unlearn.prompts.templates import sentence
from .backend.apply import erased, fits
from .backend.checks import check_clip, check_patcher, check_vae
from .backend.differentiable import untracked
from .backend.encoder_model import ComfyEncoder
from .backend.identity import architecture
from .backend.memory import TRAINING_STATE, MemoryPlan
from .backend.model import ComfyModel
from .cache import (
    check_space,
    check_writable,
    erasure_file,
    free_file,
    save,
    save_found,
    state_file,
    trained_before,
    training_key,
)
from .judging import Judging
from .progress import Progress, tell

SAVE_EVERY = "CONCEPT_UNLEARN_SAVE_EVERY"
LOOKED, ERASED, SAVED = 0.1, 0.88, 0.9  # where the bar stands at the end of each phase, of 1


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


def file_bytes(planned: MemoryPlan) -> int:
    """Of an erasure's file, at most: each trained value takes two bytes, beside the names."""
    return 2 * planned.state // TRAINING_STATE + 2**20


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One training node's work: from what it is given to an erasure and the file it lies in."""

    method: Method
    concepts: list[str]
    settings: Any
    """The method's."""
    model: Any
    clip: Any
    vae: Any = None
    images: torch.Tensor | None = None
    """(N, H, W, 3) in 0..1. None: the model draws them, `size` pixels high and wide."""
    size: int
    prefix: str
    verdict: bool = True
    """Whether to look beforehand if the model draws the concepts and the pictures show them, and
    afterwards what is left."""

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return (self.size,) * 2 if self.images is None else tuple(self.images.shape[1:3])

    def run(self, node_id: str | None) -> tuple[Erasure, Path | None, str]:
        """(erasure, its file, lines for the user where there is something to say, first the
        verdict).

        What is trained is written to the file at once, and a run with the very same inputs reads
        it: the host forgets results. The file is None where it could not be written; the state of a
        long run then stays beside it. The verdict is measured when the file is there, and then
        written into it. Raises ValueError, before any work, where the disk has no room for the
        file, where the model does not draw a concept, and where pictures do not show theirs.
        Raises RuntimeError when the loss diverged; what was good by then is kept aside.
        """
        method, settings = self.method, self.settings
        check_clip(self.clip)
        if self.model is not None or not method.encoder_alone:
            check_patcher(self.model, "MODEL")
        check_patcher(self.clip.patcher, "CLIP")
        if self.images is not None:
            check_vae(self.vae, ", or no pictures")
        if method.encoder_alone and self.model is not None:
            ComfyModel(self.model, self.clip, self.vae, self.sides)  # whether they belong together
        drawn_at = None if self.images is not None or method.encoder_alone else self.size
        key = training_key(
            method.name,
            self.concepts,
            settings,
            self.images,
            drawn_at,
            self.model if not method.encoder_alone or self._chooses else None,
            self.clip,
            self.vae,
        )
        find = partial(erasure_file, self.prefix, self.concepts, method.name, key)
        file, _ = find()
        resume = Resume(state_file(self.prefix, self.concepts, key), save_every())
        kept = trained_before(file, key, method)
        socket = "CLIP" if method.part == "encoder" else "MODEL"
        if kept is not None and fits(self.model, self.clip, kept, socket):
            progress = Progress(node_id, "measuring what is left", None)
            kept, said = Judging(self).after(kept, file, progress)
            progress.finish()
            return kept, file, f"{said}Trained before with these inputs; read from the file.\n"
        check_writable(file)
        host = self._host()
        asked = settings if method.encoder_alone else settings.fitted(host)
        planned = host.prepare(
            method.part, asked.weights, asked.rank, asked.rows, asked.prompts_kept
        )
        resume.reserved = file_bytes(planned)
        check_space(file, resume.reserved)
        tell(node_id, f"unlearning {', '.join(self.concepts)} takes {planned.sentence()}")
        with PeakMemory(host.device) as memory, host.training(settings.gradients):
            draw = None
            if host.vae is not None:
                asked = sentence(settings.named_as, self.concepts[0])
                draw = partial(host.preview, asked, settings.seed)
            progress = Progress(node_id, f"unlearning {', '.join(self.concepts)}", draw)
            judging = Judging(self)
            if self.verdict:
                progress.enter("looking first", LOOKED)
            judging.before(host, progress)
            progress.enter("erasing", ERASED, judging.seconds)
            started = time.monotonic()
            try:
                settings, chosen = self._anchored(host, progress)
                erasure = method.run(host, self.concepts, settings, self.images, progress, resume)
            except Diverged as error:
                resume.close()
                if not error.history:
                    raise RuntimeError(
                        "The loss or its gradients are NaN or infinite from the start. Nothing was "
                        "learnt, so nothing is kept: look at the weights of the MODEL and the "
                        "CLIP, their precision and the LoRAs on them."
                    ) from error
                aside = free_file(file.parent, f"{file.stem}_unfinished")
                lost = save(error.erasure, aside)
                what = f"is lost: {lost}." if lost else f"is kept in {aside.name}."
                raise RuntimeError(
                    f"{error} What was reached after step {len(error.history)} {what}"
                ) from error
        made_with = {"architecture": architecture(self.model, self.clip), "key": key}
        record = {**erasure.record, **chosen, **made_with}
        erasure = Erasure(erasure.deltas, record).with_measured(
            seconds=round(resume.before + time.monotonic() - started, 2),
            peak_mb=memory.peak >> 20,
            recomputed=planned.checkpointing,
            estimated_mb=planned.needed >> 20,
            **({"doubts": judging.doubts} if judging.doubts else {}),
        )
        progress.enter("saving", SAVED)
        file, lost = save_found(erasure, find)
        if lost:
            text = (
                f"Not kept: {lost}. The erasure is handed on, but ComfyUI will forget it: make "
                "room, then write it with a Save node."
            )
            if resume.began() and not resume.failed:
                text += " The state of this run is kept beside it, so that it need not begin anew."
            logging.warning(text)
            return erasure, None, f"{resume.said}{text}\n"
        resume.close()
        progress.draw = None  # it would draw with the original
        if self.verdict and self.model is not None:
            progress.enter("measuring what is left", 1.0)
        erasure, said = judging.after(erasure, file, progress)
        self._show(progress, erasure)
        progress.finish()
        return erasure, file, resume.said + said

    @contextmanager
    def looking(self, host: ComfyModel | ComfyEncoder) -> Iterator[ComfyModel]:
        """The original model, to draw and to ask with before anything is trained.

        host: what the method works on, in its context.
        """
        if isinstance(host, ComfyEncoder):
            model = ComfyModel(self.model, self.clip, self.vae, self.sides)
            with model.training(gradients=False):
                yield model
        else:
            with untracked():
                yield host

    def _host(self) -> ComfyModel | ComfyEncoder:
        """What the method works on."""
        if self.method.encoder_alone:
            return ComfyEncoder(self.clip)
        return ComfyModel(self.model, self.clip, self.vae, self.sides)

    def _show(self, progress: Progress, erasure: Erasure) -> None:
        """A picture of the result in the node, where the method had none to draw while it worked
        and there is a model to draw with."""
        if not self.method.encoder_alone or self.model is None or self.vae is None:
            return
        asked = sentence(self.settings.named_as, self.concepts[0])
        try:
            host = ComfyModel(*erased(self.model, self.clip, erasure), self.vae, self.sides)
            progress.draw = partial(host.preview, asked, self.settings.seed)
            with host.training(gradients=False):
                progress.look()
        except verdicts.NOT_MEASURED:  # the erasure counts, not its picture
            soft_empty_cache()

    @property
    def _chooses(self) -> bool:
        """Whether anchors are chosen with pictures of them."""
        drawn = self.verdict and self.model is not None
        return drawn and bool(to_choose(self.concepts, self.settings))

    def _anchored(self, host: ComfyModel | ComfyEncoder, progress: Progress) -> tuple[Any, dict]:
        """The settings with the anchors that are chosen, and what the record says of it.

        Pictures of the candidates are looked at. Where the verdict is off, or that fails, the
        method chooses by the text encoder alone.
        """
        settings = self.settings
        if not self._chooses:
            return settings, {}
        try:
            with self.looking(host) as model:
                draws = drawable(model, settings.named_as, settings.seed, progress)
                return anchored(model, self.concepts, settings, draws, progress)
        except verdicts.NOT_MEASURED:
            soft_empty_cache()
            return settings, {}
