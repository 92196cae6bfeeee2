"""Key-Step UNet Unlearn: the node of unlearn/methods/key_step.py (arXiv 2507.06526)."""

from __future__ import annotations

from comfy_api.latest import io

from ..unlearn.methods.key_step import KeyStepSettings, check_settings, check_start, key_step
from ..unlearn.methods.parts.adversarial import SECONDS
from ..unlearn.methods.parts.key_step_settings import TASKS
from ..unlearn.prompts.typed import one_word, split_words
from .backend.apply import erased_model
from .backend.words import reader, typed_concepts
from .base import TrainingNode
from .charts import key_steps_plot
from .sockets import (
    anchor_input,
    closing_inputs,
    harden_inputs,
    iterations_input,
    mode_input,
    network_inputs,
    output_sockets,
    size_input,
    verdict_input,
)
from .training import TrainingRun, TrainingSpec, outputs, summary

WEIGHTS = ["by task", "cross-attention", "cross-attention-kv", "outside-cross-attention"]


class KeyStepUNetUnlearn(TrainingNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KeyStepUNetUnlearn",
            display_name="Key-Step UNet Unlearn",
            category="unlearn",
            description=(
                "Takes a concept out of the network that draws, at those sampling steps in which "
                "it takes shape. No pictures are needed, and it can be used together with an "
                "erased text encoder."
            ),
            inputs=[
                *network_inputs(),
                io.Combo.Input(
                    "task",
                    options=list(TASKS),
                    default="object",
                    tooltip="What the concept is; instance is a character or a face. It decides "
                    "the sentences and the first key step, and in mode paper the weights and the "
                    "iterations.",
                ),
                anchor_input(
                    "What is drawn in its place. Empty: a neutral word by task (balanced), nothing "
                    "(paper)."
                ),
                size_input("Width and height in pixels of what the model draws while it trains."),
                mode_input(),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=4,
                    max=1000,
                    tooltip="Sampling steps of the pictures it walks through.",
                ),
                io.Combo.Input(
                    "key_steps",
                    options=["by task", "auto", "from start"],
                    default="by task",
                    tooltip="Which steps are trained on. by task: the paper's. auto: measured for "
                    "this concept and model. from start: from the step below on.",
                ),
                io.Int.Input(
                    "start",
                    default=14,
                    min=0,
                    max=999,
                    tooltip="The first key step, where key_steps says so; 0 is the noisiest.",
                ),
                iterations_input(),
                io.Combo.Input(
                    "trainable",
                    options=WEIGHTS,
                    default="by task",
                    tooltip="Which weights are trained. by task: the paper's in mode paper, "
                    "cross-attention in mode balanced.",
                ),
                *closing_inputs("off"),
                *harden_inputs(),
                verdict_input(),
            ],
            outputs=[
                *output_sockets(
                    io.Model.Output(
                        "erased_model", display_name="MODEL", tooltip="The erased model."
                    )
                ),
                io.Image.Output(
                    "key_steps_plot",
                    display_name="key steps",
                    tooltip="Which steps were trained on and, where they were measured, why.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def work(
        cls,
        model,
        clip,
        concept,
        task,
        size,
        mode,
        steps,
        key_steps,
        start,
        iterations,
        trainable,
        rank,
        seed,
        vae=None,
        anchor="",
        protect="",
        filename_prefix="loras/erased",
        projection="off",
        harden=False,
        harden_seconds=SECONDS,
        verdict=True,
    ) -> io.NodeOutput:
        concepts = typed_concepts(clip, concept)
        settings = KeyStepSettings(
            mode=mode,
            task=task,
            steps=steps,
            start={"by task": None, "auto": "auto", "from start": start}[key_steps],
            iterations=iterations or None,
            trainable=None if trainable == "by task" else trainable,
            rank=rank,
            seed=seed,
            anchor=one_word(anchor),
            projection=projection,
            protect=tuple(split_words(protect)),
            harden=harden_seconds if harden else 0.0,
        )
        check_settings(concepts, settings, reader(clip))
        training = TrainingRun(
            "key_step",
            concepts,
            settings,
            model,
            clip,
            vae,
            size,
            None,
            filename_prefix,
            seed,
            verdict,
        )
        # Teacher and tuned network each predict for several prompts at once.
        erasure, file, again = training.run(
            cls.hidden.unique_id,
            TrainingSpec("denoiser", settings.weights, rank, settings.rows),
            lambda host, progress, resume: key_step(host, concepts, settings, progress, resume),
        )
        result, _ = erased_model(model, erasure)
        text = again + summary(
            erasure, file, "The model", "Its prediction moved by", erasure.record["moved"]
        )
        plot = key_steps_plot(erasure.record["start"], steps, erasure.record.get("key_steps"))
        return outputs(cls.hidden.unique_id, result, erasure, text, plot)

    @classmethod
    def validate_inputs(
        cls,
        concept=None,
        anchor=None,
        protect=None,
        filename_prefix=None,
        key_steps=None,
        start=None,
        steps=None,
    ) -> bool:
        typed = cls.typed(key_steps=key_steps, start=start, steps=steps)
        if len(typed) == 3 and typed["key_steps"] == "from start":
            check_start(typed["start"], typed["steps"])
        return super().validate_inputs(concept, anchor, protect, filename_prefix)
