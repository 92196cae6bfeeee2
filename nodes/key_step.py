"""Key-Step UNet Unlearn: the node of unlearn/methods/key_step.py (arXiv 2507.06526)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..unlearn.core.erasure import Erasure
from ..unlearn.methods.key_step import check_start
from ..unlearn.methods.registry import METHODS
from .charts import key_steps_plot
from .method_node import ERASING, MethodNode


class KeyStepUNetUnlearn(MethodNode):
    METHOD = METHODS["key_step"]
    FACE = ("concept", "task", "anchor", "protect")
    SEARCHED = (*ERASING, "nsfw", "nudity")  # a kind of its own
    ORDER = (
        "model",
        "clip",
        "vae",
        "concept",
        "task",
        "anchor",
        "size",
        "mode",
        "steps",
        "key_steps",
        "start",
        "iterations",
        "trainable",
        "rank",
        "seed",
        "protect",
        "filename_prefix",
        "projection",
        "harden",
        "harden_seconds",
        "verdict",
    )

    @classmethod
    def inputs(cls) -> dict[str, io.Input]:
        """Two widgets say where the key steps begin: which way to choose, and a number for one."""
        own = [
            io.Combo.Input(
                "key_steps",
                options=["by task", "auto", "from start"],
                default="by task",
                tooltip="Which steps are trained on. by task: the paper's for the kind. auto: "
                "measured for this concept and model. from start: from the step below on.",
            ),
            io.Int.Input(
                "start",
                default=14,
                min=0,
                max=999,
                tooltip="The first key step, where key_steps says so; 0 is the noisiest.",
            ),
        ]
        return super().inputs() | {one.id: one for one in own}

    @classmethod
    def settings(cls, values: dict[str, Any]) -> Any:
        start = {"by task": None, "auto": "auto", "from start": values["start"]}
        return replace(super().settings(values), start=start[values["key_steps"]])

    @classmethod
    def own_outputs(cls) -> list[io.Output]:
        return [
            io.Image.Output(
                "key_steps_plot",
                display_name="key steps",
                tooltip="Which steps were trained on and, where they were measured, why.",
            )
        ]

    @classmethod
    def own_results(cls, erasure: Erasure, settings: Any) -> list[Any]:
        record = erasure.record
        return [key_steps_plot(record["start"], settings.steps, record.get("key_steps"))]

    @classmethod
    def validate_inputs(
        cls,
        concept=None,
        anchor=None,
        protect=None,
        filename_prefix=None,
        task=None,
        key_steps=None,
        start=None,
        steps=None,
    ) -> bool:
        """The host leaves what is named here to this check: so `task` takes old names, too."""
        with cls.telling():
            typed = cls.typed(task=task, key_steps=key_steps, start=start, steps=steps)
            if typed.get("key_steps") == "from start" and {"start", "steps"} <= typed.keys():
                check_start(typed["start"], typed["steps"])
        return super().validate_inputs(concept, anchor, protect, filename_prefix)
