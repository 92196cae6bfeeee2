"""What a training node looks at before it trains, and what it says of the result afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from comfy.model_management import OOM_EXCEPTION, soft_empty_cache

from ..unlearn.core.erasure import Erasure
from ..unlearn.core.kind import CLOSEST, NEUTRAL
from ..unlearn.evaluate import verdict as verdicts
from ..unlearn.evaluate.known import Looked, look, misspelt
from ..unlearn.evaluate.picture_check import check_pictures
from ..unlearn.evaluate.thumbnails import Thumbnails, may_be_shown
from ..unlearn.methods.parts import hard_rounds, way_left
from ..unlearn.prompts.anchor_choice import recorded, told
from ..unlearn.prompts.other_names import told_names
from ..unlearn.prompts.word_checks import asked_anchor
from .backend.apply import erased
from .backend.differentiable import untracked
from .backend.encoder_model import ComfyEncoder
from .backend.identity import has_hooks
from .backend.model import ComfyModel
from .cache import save
from .progress import Progress

if TYPE_CHECKING:
    from .training import TrainingRun

WAY_OUT = "switch verdict off"


def asked_word(anchor: str | Mapping[str, str]) -> str | Mapping[str, str]:
    """The anchor as far as it is a word already, not yet to be chosen."""
    if isinstance(anchor, str):
        return "" if asked_anchor(anchor) in (CLOSEST, NEUTRAL) else anchor
    return anchor


@dataclass
class Judging:
    """Looks at one run's concepts, before and after."""

    run: TrainingRun
    doubts: list[str] = field(default_factory=list)
    """What is doubtful of the pictures that are connected."""
    looked: Looked | None = None
    """What the original model makes of the concepts, once that was looked at."""

    def before(self, host: ComfyModel | ComfyEncoder, progress: Progress) -> None:
        """Look if the model knows the concepts, and if pictures show them.

        Raises ValueError where pictures clearly show another thing, and where the model does not
        draw a concept: nothing could be unlearnt then. Where pictures that are connected show a
        concept, the model knows it, however it draws it.
        """
        run = self.run
        if not run.verdict:
            return
        if run.model is None:
            if said := misspelt(host, run.concepts, WAY_OUT):
                raise ValueError(said)
            return
        if run.images is not None:
            self.doubts = self._doubts(host, progress)
        self.looked = self._looked(host, progress)
        is_shown = run.images is not None and not self.doubts
        if self.looked and not is_shown and (said := self.looked.unknown(WAY_OUT)):
            raise ValueError(said)

    def _doubts(self, host: ComfyModel, progress: Progress) -> list[str]:
        asked = self.run.concepts, self.run.images, self.run.settings.named_as
        try:
            with untracked():  # nothing is trained yet
                return check_pictures(host, *asked, WAY_OUT, progress)
        except (OOM_EXCEPTION, MemoryError):
            soft_empty_cache()
            return ["There was too little memory to look if the pictures show the concept."]

    def _looked(self, host: ComfyModel | ComfyEncoder, progress: Progress) -> Looked | None:
        run, settings = self.run, self.run.settings
        try:
            with run.looking(host) as model:
                return look(
                    model,
                    run.concepts,
                    settings.named_as,
                    asked_word(settings.anchor),
                    settings.seed,
                    progress,
                )
        except verdicts.NOT_MEASURED:
            soft_empty_cache()
            return None

    @property
    def seconds(self) -> float:
        """How long `after` is likely to take: as long as `before` took."""
        return self.looked.seconds if self.looked else 0.0

    def after(self, erasure: Erasure, file: Path, progress: Progress) -> tuple[Erasure, str]:
        """The erasure with the verdict in its record, and in its file; and what to say first.

        Whatever happens here, the file is there.
        """
        said = verdicts.told(erasure.record)
        if self.run.verdict and not said and self.run.model is not None:
            try:
                erasure = self._measured(erasure, progress)
            except verdicts.NOT_MEASURED as error:
                soft_empty_cache()
                said = verdicts.not_measured(error)
            else:
                said = verdicts.told(erasure.record)
                if save(erasure, file):
                    said += " It could not be written into the file."
        lines = [said, *verdicts.doubts(erasure.record), told(erasure.record)]
        lines.append(told_names(erasure.record))
        lines += [way_left.told(erasure.record), hard_rounds.told(erasure.record)]
        if has_hooks(self.run.clip):
            lines.append("The hooks on this CLIP were left out: it is learnt without them.")
        return erasure, "".join(f"{line}\n" for line in lines if line)

    def _measured(self, erasure: Erasure, progress: Progress) -> Erasure:
        """The erasure with the verdict in its record, and with a few of its pictures."""
        run = self.run
        changed = erased(run.model, run.clip, erasure)
        original = ComfyModel(run.model, run.clip, run.vae, run.sides)
        edited = ComfyModel(*changed, run.vae, run.sides)
        original.prepare_asking()
        kept = Thumbnails()
        found = verdicts.measured(
            partial(original.training, gradients=False),
            partial(edited.training, gradients=False),
            run.concepts,
            run.settings.named_as,
            recorded(erasure.record),
            run.settings.seed,
            run.images is not None,
            progress,
            self.looked,
            kept if may_be_shown(run.settings) else None,
        )
        return replace(erasure.with_measured(verdict=found), pictures=kept.found)
