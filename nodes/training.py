"""What all training nodes share: one run from inputs to a file, and what they hand on."""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comfy.model_management import OOM_EXCEPTION, soft_empty_cache

from ..unlearn.core.edit import Diverged
from ..unlearn.core.erasure import Erasure
from ..unlearn.core.peak_memory import PeakMemory
from ..unlearn.core.resume import Resume
from ..unlearn.evaluate import verdict as verdicts
from ..unlearn.evaluate.anchor_check import drawable
from ..unlearn.evaluate.picture_check import check_pictures
from ..unlearn.evaluate.thumbnails import Thumbnails, may_be_shown
from ..unlearn.methods.parts import way_left
from ..unlearn.methods.parts.method import Method
from ..unlearn.prompts.anchor_choice import anchored, recorded, to_choose, told
from ..unlearn.prompts.other_names import told_names
from ..unlearn.prompts.templates import sentence
from .backend.apply import erased, fits
from .backend.checks import check_clip, check_patcher, check_vae
from .backend.differentiable import untracked
from .backend.encoder_model import ComfyEncoder
from .backend.identity import architecture, has_hooks
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
from .progress import Progress, tell

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
    """Whether to look beforehand if the pictures show the concepts, and afterwards what is left."""

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
        file, and where pictures do not show their concept; RuntimeError when the loss diverged;
        what was good by then is kept aside.
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
            kept, said = self._judged(node_id, kept, file)
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
        with PeakMemory(host.device) as memory, host.training():
            draw = None
            if host.vae is not None:
                asked = sentence(settings.named_as, self.concepts[0])
                draw = partial(host.preview, asked, settings.seed)
            what = f"unlearning {', '.join(self.concepts)}"
            progress = Progress(node_id, what, draw, in_stages=method.encoder_alone)
            doubts = self._doubts(host, progress)
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
            **({"doubts": doubts} if doubts else {}),
        )
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
        erasure, said = self._judged(node_id, erasure, file)
        self._show(node_id, erasure)
        return erasure, file, resume.said + said

    def _host(self) -> ComfyModel | ComfyEncoder:
        """What the method works on."""
        if self.method.encoder_alone:
            return ComfyEncoder(self.clip)
        return ComfyModel(self.model, self.clip, self.vae, self.sides)

    def _show(self, node_id: str | None, erasure: Erasure) -> None:
        """A picture of the result in the node, where the method had none to draw while it worked
        and there is a model to draw with."""
        if not self.method.encoder_alone or self.model is None or self.vae is None:
            return
        asked = sentence(self.settings.named_as, self.concepts[0])
        try:
            host = ComfyModel(*erased(self.model, self.clip, erasure), self.vae, self.sides)
            draw = partial(host.preview, asked, self.settings.seed)
            with host.training(gradients=False):
                Progress(node_id, "drawing", draw).look()
        except verdicts.NOT_MEASURED:  # the erasure counts, not its picture
            soft_empty_cache()

    def _doubts(self, host: ComfyModel, progress: Progress) -> list[str]:
        """What is doubtful of the pictures. Raises ValueError where they clearly show another
        thing."""
        if not self.verdict or self.images is None:
            return []
        asked = self.concepts, self.images, self.settings.named_as
        try:
            with untracked():  # nothing is trained yet
                return check_pictures(host, *asked, "switch verdict off", progress)
        except (OOM_EXCEPTION, MemoryError):
            soft_empty_cache()
            return ["There was too little memory to look if the pictures show the concept."]

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
            with ExitStack() as stack:
                if isinstance(host, ComfyEncoder):
                    host = ComfyModel(self.model, self.clip, self.vae, self.sides)
                    stack.enter_context(host.training(gradients=False))
                else:
                    stack.enter_context(untracked())  # nothing is trained yet
                draws = drawable(host, settings.named_as, settings.seed, progress)
                return anchored(host, self.concepts, settings, draws, progress)
        except verdicts.NOT_MEASURED:
            soft_empty_cache()
            return settings, {}

    def _judged(self, node_id: str | None, erasure: Erasure, file: Path) -> tuple[Erasure, str]:
        """The erasure with the verdict in its record, and in its file; and what to say first.

        Whatever happens here, the file is there.
        """
        said = verdicts.told(erasure.record)
        if self.verdict and not said and self.model is not None:
            try:
                erasure = self._measured(node_id, erasure)
            except verdicts.NOT_MEASURED as error:
                soft_empty_cache()
                said = verdicts.not_measured(error)
            else:
                said = verdicts.told(erasure.record)
                if save(erasure, file):
                    said += " It could not be written into the file."
        lines = [said, *verdicts.doubts(erasure.record), told(erasure.record)]
        lines.append(told_names(erasure.record))
        lines.append(way_left.told(erasure.record))
        if has_hooks(self.clip):
            lines.append("The hooks on this CLIP were left out: it is learnt without them.")
        return erasure, "".join(f"{line}\n" for line in lines if line)

    def _measured(self, node_id: str | None, erasure: Erasure) -> Erasure:
        """The erasure with the verdict in its record, and with a few of its pictures."""
        changed = erased(self.model, self.clip, erasure)
        original = ComfyModel(self.model, self.clip, self.vae, self.sides)
        edited = ComfyModel(*changed, self.vae, self.sides)
        original.prepare_asking()
        look = Thumbnails()
        found = verdicts.measured(
            partial(original.training, gradients=False),
            partial(edited.training, gradients=False),
            self.concepts,
            self.settings.named_as,
            recorded(erasure.record),
            self.settings.seed,
            self.images is not None,
            Progress(node_id, "measuring what is left", None),
            look if may_be_shown(self.settings) else None,
        )
        return replace(erasure.with_measured(verdict=found), pictures=look.found)
