"""Load, Save and Combine: what one does with an erasure once it is there."""

from __future__ import annotations

import logging
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io, ui

from ..unlearn.core.erasure import (
    NETWORK,
    Erasure,
    ErasureError,
    check_changes,
    combine,
    dot,
    is_erasure,
    opened,
)
from ..unlearn.core.record import name_of as printed
from ..unlearn.evaluate.verdict import told
from ..unlearn.files import writing
from ..unlearn.prompts.templates import sentence
from .backend.apply import erased_clip, erased_model, foreign_erasure, has_part
from .backend.checks import check_socket
from .backend.words import tokenized
from .base import UnlearnNode
from .cache import check_name
from .progress import tell
from .sockets import ErasureType

FOLDERS = ("loras", "text_encoders")
ENDING = ".safetensors"
NOT_CONNECTED = object()  # unlike None, which Probe Erasure hands on where it has no erasure


def erasure_choices(folders: tuple[str, ...] = FOLDERS) -> list[str]:
    """What the loaders offer: erasures among the LoRAs, and whole encoders of others. A name that
    several folders have stands for the first one's file, as in `find_file`."""
    names = (name for folder in folders for name in folder_paths.get_filename_list(folder))
    return list(dict.fromkeys(name for name in names if name.endswith(ENDING)))


def find_file(name: str) -> Path:
    """Raises ErasureError when no models folder has it."""
    for folder in FOLDERS:
        # Of what is not offered nothing is opened: other endings may hold code.
        path = name.endswith(ENDING) and folder_paths.get_full_path(folder, name)
        if path:
            return Path(path)
    raise ErasureError(
        f"There is no {printed(name) or 'such file'} in models/loras, output/loras or "
        "models/text_encoders; choose another."
    )


def changed_at(name: str | None) -> str:
    """A file that was written anew is read anew. None: the name comes from another node, which the
    host compares by itself."""
    return "" if name is None else f"{find_file(name).stat().st_mtime_ns}"


class LoadErasedClip(UnlearnNode):
    FILES = ("erasure_name",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadErasedCLIP",
            display_name="Load Erased CLIP",
            category="unlearn",
            description=(
                "Puts a saved erasure on a text encoder. Chain several for several erasures. Text "
                "encoders that others erased load too."
            ),
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder of the model that the erasure was "
                    "trained with. The one connected here stays what it is.",
                ),
                io.Combo.Input(
                    "erasure_name",
                    options=erasure_choices(),
                    tooltip="A file in models/loras, output/loras or models/text_encoders; of "
                    "several of one name the first of these.",
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
        file = find_file(erasure_name)
        erasure = read(clip, file)
        result, warning = erased_clip(clip, erasure, strength)
        return _loaded(cls.hidden.unique_id, result, erasure, erasure_name, strength, warning)

    @classmethod
    def validate_inputs(cls, erasure_name=None) -> bool:
        for name in cls.typed(erasure_name=erasure_name).values():
            find_file(name)
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
            category="unlearn",
            description=(
                "Puts a saved erasure on the network that draws. Chain several for several "
                "erasures."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that the erasure was trained with. The one connected here "
                    "stays what it is.",
                ),
                io.Combo.Input(
                    "erasure_name",
                    options=erasure_choices(("loras",)),
                    tooltip="A file in models/loras or output/loras; of two of one name the "
                    "first of these.",
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
        erasure = Erasure.load(find_file(erasure_name))
        result, warning = erased_model(model, erasure, strength)
        return _loaded(cls.hidden.unique_id, result, erasure, erasure_name, strength, warning)

    @classmethod
    def validate_inputs(cls, erasure_name=None) -> bool:
        for name in cls.typed(erasure_name=erasure_name).values():
            find_file(name)
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
        tooltip="1 is the erasure as trained, 0 the original. Negative values go the other way: -1 "
        f"undoes an erasure that is already on this {socket}.",
    )


def _loaded(
    node_id, result, erasure: Erasure, name: str, strength: float, warning: str
) -> io.NodeOutput:
    what = ", ".join(erasure.concepts) or Path(name).stem
    if erasure.changes_nothing:
        warning = (
            f"Nothing is erased: the file differs in no weight from what is connected. {warning}"
        )
    warning = f"{warning} {erasure.remark}".strip()
    if warning:
        logging.warning(f"{Path(name).name}: {warning}")
    text = f"{what}, strength {strength:g}. {warning}".strip()
    # Of these weights at this strength; what it does on others nobody has measured.
    if strength == 1 and not warning and (measured := told(erasure.record)):
        text += f"\nMeasured when it was trained: {measured}"
    tell(node_id, text)
    return io.NodeOutput(result, combine([erasure], [strength]), text, ui=ui.PreviewText(text))


def read(clip, file: Path) -> Erasure:
    """The erasure in a file, or the difference that a whole erased encoder makes to this one."""
    if is_erasure(file):
        return Erasure.load(file)
    with opened(file) as content:
        # Read in place: of a whole checkpoint the text encoder is a small part.
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
            category="unlearn",
            description=(
                f"Writes an erasure under a name of your own, as one small file that {cls.READERS}."
            ),
            inputs=[
                # Optional, all three, so that they keep their order. The browser takes the link
                # away where the node before is bypassed or muted.
                ErasureType.Input(
                    "erasure",
                    optional=True,
                    tooltip="From a training, loading or combining node.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default=cls.PREFIX,
                    optional=True,
                    tooltip="In the output folder; the stock nodes find what lies in output/loras.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["float16", "float32"],
                    default="float16",
                    optional=True,
                    tooltip="float16 is half the size; its rounding is far below what a "
                    "picture shows.",
                ),
            ],
            outputs=[io.String.Output("file", display_name="file")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def work(
        cls, erasure=NOT_CONNECTED, filename_prefix=None, precision="float16"
    ) -> io.NodeOutput:
        if erasure is NOT_CONNECTED:
            text = "Nothing is saved: no ERASURE is connected, or its node is bypassed or muted."
            tell(cls.hidden.unique_id, text)
            return io.NodeOutput("", ui=ui.PreviewText(text))
        check_socket("erasure", "ERASURE", erasure)
        if filename_prefix is None:
            filename_prefix = cls.PREFIX
        check_name(filename_prefix)
        check_changes(erasure, "The ERASURE that is connected")
        try:
            # The host's own folder: it may put today's date into the prefix.
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
        if erasure.concepts:  # of a text encoder that others erased they are not known
            text += f": {', '.join(erasure.concepts)}"
        tell(cls.hidden.unique_id, text)
        relative = file.relative_to(Path(folder_paths.get_output_directory()).resolve())
        return io.NodeOutput(str(relative), ui=ui.PreviewText(text))

    @classmethod
    def validate_inputs(cls, filename_prefix=None) -> bool:
        for prefix in cls.typed(filename_prefix=filename_prefix).values():
            check_name(prefix)
        return True


class SaveErasedModel(SaveErasedClip):
    """The same file, also for what was taken out of a denoising network."""

    NODE_ID, NAME, PREFIX = "SaveErasedModel", "Save Erased Model", "loras/erased_model"
    READERS = "Load Erased Model and the stock Load LoRA nodes read"


class CombineErasedClip(UnlearnNode):
    # An erasure of a model needs no text encoder, and any place may be left out.
    MAY_BE_EMPTY = ("clip", "erasure_1", "erasure_2")

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CombineErasedCLIP",
            display_name="Combine Erased CLIP",
            category="unlearn",
            description=(
                "Adds erasures of one model into one, and reports what each still does beside the "
                "others."
            ),
            inputs=[
                io.Clip.Input(
                    "clip", tooltip="The original text encoder that all were trained on."
                ),
                *(
                    ErasureType.Input(f"erasure_{i}", optional=i > 2, tooltip="An erasure to add.")
                    for i in range(1, 6)
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The original model, where erasures of it are combined.",
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
        together = combine(parts)
        lines = []
        result, drawing = clip, model
        if has_part(together, "CLIP"):
            result, warning = erased_clip(clip, together)
            lines += [warning] if warning else []
        if has_part(together, "MODEL"):
            if model is None:
                lines.append(
                    "Erasures of the image network are among these: connect the original model to "
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
    """The share of an erasure's change of the network that is still there in a sum of several.

    Its projection on the sum: 1 where the others change what it does not.
    """
    keys = [key for key in erasure.deltas if key.startswith(NETWORK)]
    one, both = erasure.deltas, together.deltas
    shared = sum(dot(one[key], both[key]) for key in keys)
    return shared / max(sum(dot(one[key], one[key]) for key in keys), 1e-20)


def named(erasure: Erasure) -> dict[str, str]:
    """Each of its concepts in the sentence of its own kind."""
    return {
        concept: sentence(kind, concept)
        for kind in sorted(erasure.kinds)
        for concept in erasure.concepts_of(kind)
    }


def conflict(clip, alone, together, asked: str) -> tuple[float, float]:
    """How far a prompt's conditioning moves in company: length and direction against alone.

    Returns (ratio of the lengths, cosine of the two movements).
    """
    base, by_one, by_all = (
        c.encode_from_tokens(tokenized(c, asked)).flatten().float() for c in (clip, alone, together)
    )
    one, both = by_one - base, by_all - base
    length = (both.norm() / one.norm().clamp(min=1e-12)).item()
    return length, torch.nn.functional.cosine_similarity(one, both, dim=0).item()
