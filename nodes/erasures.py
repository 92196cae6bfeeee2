"""Load, Save and Combine: the nodes for finished erasures."""

from __future__ import annotations

import logging
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io, ui

from ..unlearn.core.erasure import (
    NETWORK,
    Erasure,
    check_changes,
    combine,
    dot,
    is_erasure,
    opened,
)
from ..unlearn.evaluate.verdict import told
from ..unlearn.files import writing
from ..unlearn.prompts.templates import sentence
from .backend.apply import erased_clip, erased_model, foreign_erasure, has_part
from .backend.checks import check_socket
from .backend.words import tokenized
from .base import UnlearnNode
from .cache import check_name
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


class LoadErasedClip(UnlearnNode):
    FILES = ("erasure_name",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadErasedCLIP",
            display_name="Load Erased CLIP",
            category="unlearn/load",
            search_aliases=["LoRA", "forget", "erase", "remove", "apply erasure", "unlearn"],
            description=(
                "Puts a saved erasure on a text encoder. Chain several nodes for several erasures. "
                "It also loads whole text encoders that others erased."
            ),
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder of the model that the erasure was trained with. "
                    "The one that you connect is not changed.",
                ),
                erasure_input(
                    "erasure_name",
                    "An erasure in models/loras or output/loras, newest first, or a whole text "
                    "encoder. If several have the same name, the first of these folders counts, "
                    "then models/text_encoders. none: the original goes through.",
                    "encoder",
                    with_encoders=True,
                    lets_through=True,
                ),
                strength_input("CLIP"),
            ],
            outputs=[
                io.Clip.Output("erased_clip", display_name="CLIP"),
                ErasureType.Output(
                    "erasure", display_name="ERASURE", tooltip="What was put on, at this strength."
                ),
                io.String.Output("summary", display_name="summary"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def work(cls, clip, erasure_name, strength) -> io.NodeOutput:
        if erasure_name == NONE:
            return _passed(cls.hidden.unique_id, clip)
        erasure = read(clip, find_file(erasure_name))
        with naming_others(clip.patcher, "encoder"):
            result, warning = erased_clip(clip, erasure, strength)
        return _loaded(cls.hidden.unique_id, result, erasure, erasure_name, strength, warning)

    @classmethod
    def validate_inputs(cls, erasure_name=None) -> bool:
        with cls.telling():
            for name in cls.typed(erasure_name=erasure_name).values():
                check_file(name)
        return True

    @classmethod
    def fingerprint_inputs(cls, erasure_name, **inputs) -> str:
        return changed_at(erasure_name)


class LoadErasedModel(UnlearnNode):
    FILES = ("erasure_name",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadErasedModel",
            display_name="Load Erased Model",
            category="unlearn/load",
            search_aliases=["LoRA", "forget", "erase", "remove", "apply erasure", "unlearn"],
            description=(
                "Puts a saved erasure on the denoiser (the UNet or transformer). Chain several "
                "nodes for several erasures."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that the erasure was trained with. The one that you connect "
                    "is not changed.",
                ),
                erasure_input(
                    "erasure_name",
                    "An erasure in models/loras or output/loras, newest first. If both have the "
                    "same name, the first folder counts. none: the original goes through.",
                    "denoiser",
                    lets_through=True,
                ),
                strength_input("MODEL"),
            ],
            outputs=[
                io.Model.Output("erased_model", display_name="MODEL"),
                ErasureType.Output(
                    "erasure", display_name="ERASURE", tooltip="What was put on, at this strength."
                ),
                io.String.Output("summary", display_name="summary"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def work(cls, model, erasure_name, strength) -> io.NodeOutput:
        if erasure_name == NONE:
            return _passed(cls.hidden.unique_id, model)
        erasure = Erasure.load(find_file(erasure_name))
        with naming_others(model, "denoiser"):
            result, warning = erased_model(model, erasure, strength)
        return _loaded(cls.hidden.unique_id, result, erasure, erasure_name, strength, warning)

    @classmethod
    def validate_inputs(cls, erasure_name=None) -> bool:
        with cls.telling():
            for name in cls.typed(erasure_name=erasure_name).values():
                check_file(name)
        return True

    @classmethod
    def fingerprint_inputs(cls, erasure_name, **inputs) -> str:
        return changed_at(erasure_name)


def strength_input(socket: str) -> io.Float.Input:
    return io.Float.Input(
        "strength",
        default=1.0,
        min=-2.0,
        max=2.0,
        step=0.05,
        display_mode=io.NumberDisplay.slider,
        tooltip="1 is the erasure as trained, 0 is the original. -1 undoes an erasure that is "
        f"already on this {socket}.",
    )


def _passed(node_id, original) -> io.NodeOutput:
    text = f"The original goes through. {nothing_chosen()}"
    tell(node_id, text)
    return io.NodeOutput(original, None, text, ui=ui.PreviewText(text))


def _loaded(
    node_id, result, erasure: Erasure, name: str, strength: float, warning: str
) -> io.NodeOutput:
    what = ", ".join(erasure.concepts) or Path(name).stem
    if erasure.changes_nothing:
        warning = (
            f"Nothing is erased: the file has the same weights as what is connected. {warning}"
        )
    warning = f"{warning} {erasure.remark}".strip()
    if warning:
        logging.warning(f"{Path(name).name}: {warning}")
    text = f"{what}, strength {strength:g}. {warning}".strip()
    # The verdict holds for these weights at strength 1 only.
    if strength == 1 and not warning and (measured := told(erasure.record)):
        text += f"\nMeasured when it was trained: {measured}"
    tell(node_id, text)
    return io.NodeOutput(result, combine([erasure], [strength]), text, ui=ui.PreviewText(text))


def read(clip, file: Path) -> Erasure:
    """The erasure in a file; for a whole erased text encoder, its difference to this CLIP."""
    if is_erasure(file):
        return Erasure.load(file)
    with opened(file) as content:
        # Tensors are read from the open file, since a checkpoint is much larger than its encoder.
        tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118 (no mapping)
        return foreign_erasure(clip, tensors, file.name)


class SaveErasedClip(UnlearnNode):
    NODE_ID, NAME, PREFIX = "SaveErasedCLIP", "Save Erased CLIP", "loras/erased_clip"
    READERS = "Load Erased CLIP and the stock Load LoRA node read"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=cls.NODE_ID,
            display_name=cls.NAME,
            category="unlearn/save",
            search_aliases=["LoRA", "save", "export", "unlearn"],
            description=(
                f"Writes an erasure under a name of your choice, as one file that {cls.READERS}."
            ),
            inputs=[
                # The browser removes the link if the node before is bypassed or muted, so this
                # input must be optional. The other two are optional to keep their order.
                ErasureType.Input(
                    "erasure",
                    optional=True,
                    tooltip="From a training, loading or combining node.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default=cls.PREFIX,
                    optional=True,
                    tooltip="Folder and name in the output folder. The Load nodes find files in "
                    "output/loras.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["float16", "float32"],
                    default="float16",
                    optional=True,
                    tooltip="float16 makes the file half as large. Its rounding is far too small "
                    "to be seen in a picture.",
                ),
            ],
            outputs=[io.String.Output("file", display_name="file")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def work(cls, erasure=None, filename_prefix=None, precision="float16") -> io.NodeOutput:
        if erasure is None:  # also from a node that has none, as Probe Erasure without one
            text = "Nothing is saved: no ERASURE is connected, or its node is bypassed or muted."
            tell(cls.hidden.unique_id, text)
            return io.NodeOutput("", ui=ui.PreviewText(text))
        check_socket("erasure", "ERASURE", erasure)
        if filename_prefix is None:
            filename_prefix = cls.PREFIX
        check_name(filename_prefix)
        check_changes(erasure, "The ERASURE that is connected")
        try:
            # The host may replace %year% and the like in the prefix by today's date.
            folder, name, counter, _, _ = folder_paths.get_save_image_path(
                filename_prefix, folder_paths.get_output_directory()
            )
            file = Path(folder).resolve() / f"{name}_{counter:05}_.safetensors"
            erasure.save(file, getattr(torch, precision))
        except writing.ERRORS as error:
            raise RuntimeError(
                f"The erasure cannot be written to output/{filename_prefix} "
                f"({writing.reason(error)}): make room there, or choose another filename_prefix."
            ) from error
        text = f"{file.name}, {file.stat().st_size / 1e6:.1f} MB"
        if erasure.concepts:  # unknown for a text encoder that others erased
            text += f": {', '.join(erasure.concepts)}"
        tell(cls.hidden.unique_id, text)
        relative = file.relative_to(Path(folder_paths.get_output_directory()).resolve())
        return io.NodeOutput(str(relative), ui=ui.PreviewText(text))

    @classmethod
    def validate_inputs(cls, filename_prefix=None) -> bool:
        with cls.telling():
            for prefix in cls.typed(filename_prefix=filename_prefix).values():
                check_name(prefix)
        return True


class SaveErasedModel(SaveErasedClip):
    """The same file, for erasures of the denoiser."""

    NODE_ID, NAME, PREFIX = "SaveErasedModel", "Save Erased Model", "loras/erased_model"
    READERS = "Load Erased Model and the stock Load LoRA nodes read"


class CombineErasedClip(UnlearnNode):
    # Erasures of a denoiser need no text encoder, and each erasure input may be empty.
    MAY_BE_EMPTY = ("clip", "erasure_1", "erasure_2")

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CombineErasedCLIP",
            display_name="Combine Erased CLIP",
            category="unlearn/load",
            search_aliases=["LoRA", "merge", "add erasures", "unlearn"],
            description=(
                "Adds several erasures of one model into one, and reports how much of each is left "
                "beside the others."
            ),
            inputs=[
                io.Clip.Input(
                    "clip", tooltip="The original text encoder, which all were trained on."
                ),
                *(
                    ErasureType.Input(f"erasure_{i}", optional=i > 2, tooltip="An erasure to add.")
                    for i in range(1, 6)
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The original model. Needed if one of the erasures is of the denoiser.",
                ),
            ],
            outputs=[
                io.Clip.Output("erased_clip", display_name="CLIP"),
                ErasureType.Output("erasure", display_name="ERASURE"),
                io.String.Output("report", display_name="report"),
                io.Model.Output("erased_model", display_name="MODEL"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def work(cls, clip, model=None, **erasures) -> io.NodeOutput:
        parts = [erasure for _, erasure in sorted(erasures.items()) if erasure is not None]
        if not parts:
            text = "Nothing is combined: no ERASURE is connected, or their nodes are off."
            tell(cls.hidden.unique_id, text)
            return io.NodeOutput(clip, None, text, model, ui=ui.PreviewText(text))
        together = combine(parts)
        lines = []
        result, drawing = clip, model
        if has_part(together, "CLIP"):
            result, warning = erased_clip(clip, together)
            lines += [warning] if warning else []
        if has_part(together, "MODEL"):
            if model is None:
                lines.append(
                    "Some of these are erasures of the denoiser: connect the original model to "
                    "model, or MODEL stays empty."
                )
            else:
                drawing, warning = erased_model(model, together)
                lines += [warning] if warning else []
        for erasure in parts:
            for concept, asked in named(erasure).items() if has_part(erasure, "CLIP") else ():
                alone, _ = erased_clip(clip, erasure)
                length, direction = conflict(clip, alone, result, asked)
                lines.append(
                    f"{concept}: moves {length:.0%} as far as alone, {direction:.0%} in the same "
                    "direction"
                )
            if has_part(erasure, "MODEL"):
                shared = overlap(erasure, together)
                lines.append(
                    f"{', '.join(erasure.concepts)}: {shared:.0%} of its change of the model is "
                    "left beside the others"
                )
        text = "\n".join(lines)
        tell(cls.hidden.unique_id, text)
        together = together.with_measured(conflict=lines)
        return io.NodeOutput(result, together, text, drawing, ui=ui.PreviewText(text))


def overlap(erasure: Erasure, together: Erasure) -> float:
    """How much of an erasure's change of the denoiser is left in the sum of several erasures.

    The projection of the sum on the erasure: 1 if the others are orthogonal to it.
    """
    keys = [key for key in erasure.deltas if key.startswith(NETWORK)]
    one, both = erasure.deltas, together.deltas
    shared = sum(dot(one[key], both[key]) for key in keys)
    return shared / max(sum(dot(one[key], one[key]) for key in keys), 1e-20)


def named(erasure: Erasure) -> dict[str, str]:
    """From each concept of the erasure to a prompt for it, in the sentence of its kind."""
    return {
        concept: sentence(kind, concept)
        for kind in sorted(erasure.kinds)
        for concept in erasure.concepts_of(kind)
    }


def conflict(clip, alone, together, asked: str) -> tuple[float, float]:
    """How far all erasures together move a prompt's conditioning, compared with one erasure alone.

    Returns (ratio of the lengths, cosine of the two movements).
    """
    base, by_one, by_all = (
        c.encode_from_tokens(tokenized(c, asked)).flatten().float() for c in (clip, alone, together)
    )
    one, both = by_one - base, by_all - base
    length = (both.norm() / one.norm().clamp(min=1e-12)).item()
    return length, torch.nn.functional.cosine_similarity(one, both, dim=0).item()
