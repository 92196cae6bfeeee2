"""The node of a method: its sockets and widgets follow from what the method's file declares.

The way of a concept: `work` makes the settings, TrainingRun calls the method's `run`, which hands
back an Erasure, and writes it into its file.
"""

from __future__ import annotations

from typing import Any, ClassVar

from comfy_api.latest import io

from ..unlearn.core.erasure import Erasure
from ..unlearn.core.kind import current_kind
from ..unlearn.methods.parts.method import Method
from ..unlearn.prompts.pairs import with_pairs
from .backend.apply import erased_clip, erased_model
from .backend.words import reader, typed_pairs
from .base import TrainingNode
from .picture_sizes import scaled
from .results import movement, outputs, report_outputs, summary
from .sockets import erased_output, filename_input, method_sockets, size_input, verdict_input
from .training import TrainingRun
from .widgets import advanced, method_settings, method_widgets

ERASING = (
    "erase",
    "forget",
    "remove",
    "remove concept",
    "delete object",
    "censor",
    "safety",
    "unlearn",
    "sanitise",
    "sanitize",
)


class MethodNode(TrainingNode):
    """Trains an erasure with a method."""

    METHOD: ClassVar[Method]
    ORDER: ClassVar[tuple[str, ...]] = ()
    """Inputs in the order in which saved workflows hold their values. What is not named here comes
    after these."""
    FACE: ClassVar[tuple[str, ...]] = ("concept", "kind", "anchor", "protect")
    """The widgets that it shows at once."""
    SEARCHED: ClassVar[tuple[str, ...]] = ERASING
    """Words by which it is found, too."""

    @classmethod
    def inputs(cls) -> dict[str, io.Input]:
        """All inputs, by their names."""
        first = method_sockets(cls.METHOD)
        last = [size_input(), filename_input(), verdict_input()]
        given = {one.id: one for one in first}
        return given | method_widgets(cls.METHOD) | {one.id: one for one in last}

    @classmethod
    def settings(cls, values: dict[str, Any]) -> Any:
        """The method's settings. values: what each widget holds."""
        return method_settings(cls.METHOD, values)

    @classmethod
    def own_outputs(cls) -> list[io.Output]:
        """Outputs that this node has beside those of all."""
        return []

    @classmethod
    def own_results(cls, erasure: Erasure, settings: Any) -> list[Any]:
        """What these outputs hand on."""
        return []

    @classmethod
    def define_schema(cls) -> io.Schema:
        method, inputs = cls.METHOD, cls.inputs()
        names = [*cls.ORDER, *(name for name in inputs if name not in cls.ORDER)]
        return io.Schema(
            node_id=method.node_id,
            display_name=method.title,
            category="unlearn/train",
            search_aliases=[*cls.SEARCHED],
            description=method.about,
            inputs=advanced(*(inputs[name] for name in names), but=cls.FACE),
            outputs=[erased_output(method.part), *report_outputs(), *cls.own_outputs()],
            hidden=[io.Hidden.unique_id, *([io.Hidden.prompt] if method.takes_pictures else [])],
            is_input_list=method.takes_pictures,  # a list of pictures is one set
        )

    @classmethod
    def checked(cls, **inputs: Any) -> dict[str, Any]:
        """Kinds by their old names are taken, too: saved workflows and prompts have them."""
        name = cls.METHOD.described["kind"].widget if "kind" in cls.METHOD.described else None
        if isinstance(inputs.get(name), str):
            inputs[name] = current_kind(inputs[name])
        return super().checked(**inputs)

    @classmethod
    def work(cls, model=None, clip=None, vae=None, images=None, **given) -> io.NodeOutput:
        usual = {name: getattr(one, "default", None) for name, one in cls.inputs().items()}
        values = {**usual, **given}
        node_id, method = cls.hidden.unique_id, cls.METHOD
        concepts, anchors = typed_pairs(clip, values["concept"])
        settings = with_pairs(cls.settings(values), concepts, anchors)
        method.check_inputs(concepts, settings, images, reader(clip))
        training = TrainingRun(
            method=method,
            concepts=concepts,
            settings=settings,
            model=model,
            clip=clip,
            vae=vae,
            images=images,
            size=values["size"],
            prefix=values["filename_prefix"],
            verdict=values["verdict"],
        )
        erasure, file, said = training.run(node_id)
        if method.part == "encoder":
            result, _ = erased_clip(clip, erasure)
            moved = movement(clip, result, concepts, settings.named_as)
        else:
            result, _ = erased_model(model, erasure)
            moved = erasure.record["moved"]
        if images is not None and (warning := scaled(cls.hidden.prompt, node_id, "images")):
            said += f"{warning}\n"
        text = said + summary(erasure, file, method, moved)
        return outputs(node_id, method, result, erasure, text, *cls.own_results(erasure, settings))


def node_of(method: Method) -> type[MethodNode]:
    """The node of a method that has no file of its own in this folder."""
    return type(method.node_id, (MethodNode,), {"METHOD": method})
