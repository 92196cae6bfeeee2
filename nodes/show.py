"""Show Erasure: what an erasure is, how it was made and what was measured."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..unlearn.core.erasure import Erasure, ErasureError
from ..unlearn.evaluate.record_text import lines
from ..unlearn.evaluate.thumbnails import KEPT
from ..unlearn.evaluate.verdict import CONCEPTS, told
from ..unlearn.render.card import card
from ..unlearn.render.sheet import Row
from ..unlearn.render.thumbnails import unpacked
from .backend.apply import erased_clip, erased_model, has_part
from .backend.checks import check_socket
from .base import UnlearnNode
from .listing import NONE, changed_at, erasure_input, find_file
from .progress import tell
from .sockets import ErasureType

NOT_CONNECTED = object()  # not None: Probe Erasure outputs None if it has no erasure


class ShowErasure(UnlearnNode):
    FILES = ("erasure_name",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShowErasure",
            display_name="Show Erasure",
            category="unlearn/check",
            search_aliases=["receipt", "what is erased", "before after", "LoRA", "unlearn"],
            description=(
                "Says what an erasure is: what was erased, from which model, how and when, "
                "and what was measured. Shows small pictures before and after, where it has some."
            ),
            inputs=[
                erasure_input(
                    "erasure_name",
                    "A saved erasure, newest first. Not used where an ERASURE is connected.",
                ),
                ErasureType.Input(
                    "erasure", optional=True, tooltip="An erasure to show in place of a file."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="To be told whether the erasure was made with this model.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="To be told whether the erasure was made with this text encoder.",
                ),
            ],
            outputs=[
                io.Image.Output("picture", display_name="picture"),
                io.String.Output("text", display_name="text"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def work(cls, erasure_name=NONE, erasure=NOT_CONNECTED, model=None, clip=None) -> io.NodeOutput:
        if erasure is NOT_CONNECTED:
            file = find_file(erasure_name)
            erasure = Erasure.load(file)
            said = list(lines(erasure, erasure_name, file.stat().st_size))
        else:
            check_socket("erasure", "ERASURE", erasure)
            said = list(lines(erasure))
        said += fit(erasure, model, clip)
        text = "\n".join(said)
        heading = ", ".join(erasure.concepts) or "An unnamed concept"
        picture = card(heading, facts(erasure), rows(erasure))
        tell(cls.hidden.unique_id, text)
        shown = ui.PreviewImage(picture, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(picture, text, ui=shown)

    @classmethod
    def validate_inputs(cls, erasure_name=None, erasure=NOT_CONNECTED) -> bool:
        if erasure is NOT_CONNECTED:
            with cls.telling():
                for name in cls.typed(erasure_name=erasure_name).values():
                    find_file(name)
        return True

    @classmethod
    def fingerprint_inputs(cls, erasure_name=None, erasure=NOT_CONNECTED, **inputs) -> str:
        return changed_at(erasure_name) if erasure is NOT_CONNECTED else ""


def fit(erasure: Erasure, model, clip) -> list[str]:
    """A line for each part that is connected: whether the erasure was made with it."""
    found = []
    for socket, part, put_on in (("MODEL", model, erased_model), ("CLIP", clip, erased_clip)):
        if part is None:
            continue
        if not has_part(erasure, socket):
            found.append(f"It changes nothing in a {socket}.")
            continue
        try:
            _, warning = put_on(part, erasure)
        except ErasureError as error:
            warning = str(error)
        if not (warning or erasure.record.get("base")):
            warning = f"It fits this {socket}, but does not say which one it was made with."
        found.append(warning or f"It was made with this {socket}.")
    return found


def facts(erasure: Erasure) -> list[str]:
    """The sentences of the picture."""
    record = erasure.record
    mode = record.get("settings", {}).get("mode")
    made = (record.get("method"), mode, record.get("date"))
    measured = told(record) or "What is left was not measured when it was made."
    pictures = "When it was made, the model drew these." if erasure.pictures else ""
    return [one for one in (", ".join(filter(None, made)), measured, pictures) if one]


def rows(erasure: Erasure) -> list[Row]:
    """The small pictures in the file. Those that cannot be read are left out."""
    found = []
    for concept, sides in list(erasure.pictures.items())[:CONCEPTS]:
        try:
            before, after = (unpacked(sides[name][:KEPT]) for name in ("before", "after"))
        except ValueError:
            continue
        if before.shape == after.shape:
            found.append(Row(concept, before, after))
    return found
