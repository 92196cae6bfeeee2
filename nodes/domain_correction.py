"""Domain-Correction UNet Unlearn: the node of DoCo (unlearn/methods/domain_correction.py)."""

from __future__ import annotations

from comfy_api.latest import io

from ..unlearn.methods.domain_correction import (
    DomainCorrectionSettings,
    check_settings,
    domain_correction,
)
from ..unlearn.prompts.typed import one_word, split_words
from .backend.apply import erased_model
from .backend.words import reader, typed_concepts
from .base import TrainingNode
from .sockets import (
    anchor_input,
    closing_inputs,
    iterations_input,
    kind_input,
    mode_input,
    network_inputs,
    output_sockets,
    size_input,
    verdict_input,
)
from .training import TrainingRun, TrainingSpec, outputs, summary


class DomainCorrectionUNetUnlearn(TrainingNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainCorrectionUNetUnlearn",
            display_name="Domain-Correction UNet Unlearn",
            category="unlearn",
            description=(
                "Takes a concept out of the network that draws: what it makes of the concept is "
                "moved to where a discriminator cannot tell it from an anchor's, other prompts "
                "protected in every step."
            ),
            inputs=[
                *network_inputs(),
                kind_input(),
                anchor_input(
                    "What is drawn in its place, for example dog for a certain breed. Empty: a "
                    "neutral word by kind."
                ),
                io.Int.Input(
                    "pictures",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="How many pictures of the anchor the model draws first. 0: the mode's "
                    "own number (32 in balanced, 1000 in paper).",
                ),
                size_input("Width and height in pixels of these pictures."),
                mode_input(),
                iterations_input(),
                *closing_inputs("orthogonal"),
                verdict_input(),
            ],
            outputs=output_sockets(
                io.Model.Output("erased_model", display_name="MODEL", tooltip="The erased model.")
            ),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def work(
        cls,
        model,
        clip,
        concept,
        kind,
        pictures,
        size,
        mode,
        iterations,
        rank,
        seed,
        vae=None,
        anchor="",
        protect="",
        filename_prefix="loras/erased",
        projection="orthogonal",
        verdict=True,
    ) -> io.NodeOutput:
        concepts = typed_concepts(clip, concept)
        settings = DomainCorrectionSettings(
            mode=mode,
            kind=kind,
            anchor=one_word(anchor),
            pictures=pictures or None,
            iterations=iterations or None,
            rank=rank,
            seed=seed,
            projection=projection,
            protect=tuple(split_words(protect)),
        )
        check_settings(concepts, settings, reader(clip))
        training = TrainingRun(
            "domain_correction",
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
        erasure, file, again = training.run(
            cls.hidden.unique_id,
            TrainingSpec("denoiser", settings.trainable, rank, settings.rows),
            lambda host, progress, resume: domain_correction(
                host, concepts, settings, progress, resume
            ),
        )
        result, _ = erased_model(model, erasure)
        text = again + summary(
            erasure, file, "The model", "Its prediction moved by", erasure.record["moved"]
        )
        return outputs(cls.hidden.unique_id, result, erasure, text)
