"""Load Erased: several saved erasures on a MODEL and a CLIP at once, each with a strength."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..unlearn.core.erasure import Erasure, ErasureError, combine
from .backend.apply import erased_clip, erased_model, has_part
from .base import UnlearnNode
from .erasures import strength_input
from .listing import (
    NONE,
    changed_at,
    check_file,
    erasure_input,
    find_file,
    naming_others,
    nothing_chosen,
)
from .progress import tell
from .sockets import ErasureType
from .widgets import advanced

# A growing input of the host takes sockets only: a row has two widgets, so there are fixed rows.
ROWS = range(1, 6)
AT_ONCE = 2  # rows that are seen before the advanced inputs are shown


class LoadErased(UnlearnNode):
    FILES = tuple(f"erasure_{row}" for row in ROWS)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadErased",
            display_name="Load Erased",
            category="unlearn/load",
            search_aliases=["LoRA", "forget", "erase", "remove", "apply erasure", "unlearn"],
            description=(
                "Puts up to five saved erasures on a model and its text encoder, each at a "
                "strength of its own."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that the erasures were trained with. Needed if one of them "
                    "is of the denoiser. The one that you connect is not changed.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder that the erasures were trained with. Needed if one "
                    "of them is of the text encoder. The one that you connect is not changed.",
                ),
                *(one for row in ROWS for one in _row(row)),
            ],
            outputs=[
                io.Model.Output("erased_model", display_name="MODEL"),
                io.Clip.Output("erased_clip", display_name="CLIP"),
                ErasureType.Output(
                    "erasure",
                    display_name="ERASURE",
                    tooltip="All that was put on, at these strengths, as one.",
                ),
                io.String.Output("summary", display_name="summary"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def work(cls, model=None, clip=None, **given: Any) -> io.NodeOutput:
        chosen = [
            (name, given.get(f"strength_{row}", 1.0))
            for row in ROWS
            if (name := given.get(f"erasure_{row}", NONE)) != NONE
        ]
        if not chosen:
            text = f"The originals go through. {nothing_chosen()}"
            tell(cls.hidden.unique_id, text)
            return io.NodeOutput(model, clip, None, text, ui=ui.PreviewText(text))
        erasures, told = [], []
        for name, strength in chosen:
            erasure = Erasure.load(find_file(name))
            warnings = [erasure.remark]
            check_connected(name, erasure, model, clip)
            if has_part(erasure, "MODEL"):
                with naming_others(model, "denoiser"):
                    model, warning = erased_model(model, erasure, strength)
                warnings.append(warning)
            if has_part(erasure, "CLIP"):
                with naming_others(clip.patcher, "encoder"):
                    clip, warning = erased_clip(clip, erasure, strength)
                warnings.append(warning)
            erasures.append(erasure)
            said = f"{', '.join(erasure.concepts) or name}, strength {strength:g}."
            told.append(" ".join(filter(None, [said, *warnings])))
        text = "\n".join(told)
        tell(cls.hidden.unique_id, text)
        together = combine(erasures, [strength for _, strength in chosen])
        return io.NodeOutput(model, clip, together, text, ui=ui.PreviewText(text))

    @classmethod
    def validate_inputs(
        cls, erasure_1=None, erasure_2=None, erasure_3=None, erasure_4=None, erasure_5=None
    ) -> bool:
        names = dict(zip(cls.FILES, (erasure_1, erasure_2, erasure_3, erasure_4, erasure_5)))
        with cls.telling():
            for name in cls.typed(**names).values():
                check_file(name)
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> str:
        return " ".join(changed_at(inputs.get(name, NONE)) for name in cls.FILES)


def _row(row: int) -> list[io.Input]:
    """The two widgets of a row."""
    file = erasure_input(
        f"erasure_{row}",
        "An erasure in models/loras or output/loras, newest first. none: the row is empty.",
        may_be_none=True,
    )
    strength = strength_input("MODEL or CLIP")
    strength.id, strength.optional = f"strength_{row}", True
    return [file, strength] if row <= AT_ONCE else advanced(file, strength)


def check_connected(name: str, erasure: Erasure, model, clip) -> None:
    """Raises ErasureError where the erasure changes a part that is not connected, or nothing."""
    if not erasure.deltas:
        raise ErasureError(f"{name} changes no weight; choose another erasure.")
    for part, socket, what in ((model, "MODEL", "denoiser"), (clip, "CLIP", "text encoder")):
        if part is None and has_part(erasure, socket):
            raise ErasureError(
                f"{name} changes the {what}: connect {socket.lower()}, or choose none in its row."
            )
