"""Domain-Correction UNet Unlearn: the node of unlearn/domain_correction.py (arXiv 2405.15304)."""

from __future__ import annotations

from comfy_api.latest import io

from ..unlearn.domain_correction import (
    DomainCorrectionSettings,
    check_settings,
    domain_correction,
)
from ..unlearn.prompts import split_concepts
from .apply import erased_model
from .training import (
    Trained,
    Training,
    filename_input,
    output_sockets,
    outputs,
    projection_input,
    protect_input,
    rank_input,
    seed_input,
    summary,
    words,
)


class DomainCorrectionUNetUnlearn(io.ComfyNode):
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
                io.Model.Input(
                    "model",
                    tooltip="The model to take the concept out of. The one connected here stays "
                    "what it is.",
                ),
                io.Clip.Input("clip", tooltip="The text encoder of this model. It is only read."),
                io.Vae.Input("vae", optional=True, tooltip="For the live picture while it trains."),
                io.String.Input(
                    "concept",
                    default="",
                    tooltip="The word or name to unlearn. Several are separated by commas and go "
                    "into one erasure.",
                ),
                io.Combo.Input(
                    "kind",
                    options=["object", "style", "character"],
                    default="object",
                    tooltip="What the concept is: it decides the sentences it is named in.",
                ),
                io.String.Input(
                    "anchor",
                    default="",
                    optional=True,
                    tooltip="What is drawn in its place, for example dog for a certain breed. "
                    "Empty: a neutral word by kind.",
                ),
                io.Int.Input(
                    "pictures",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="How many pictures of the anchor the model draws first. 0: the mode's "
                    "own number (32 in balanced, 1000 in paper).",
                ),
                io.Int.Input(
                    "size",
                    default=512,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Width and height in pixels of these pictures.",
                ),
                io.Combo.Input(
                    "mode",
                    options=["balanced", "paper"],
                    default="balanced",
                    tooltip="balanced: keeps other concepts and stops by itself. paper: the "
                    "published algorithm and settings, for comparison.",
                ),
                io.Int.Input(
                    "iterations",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="It stops here at the latest. 0: the mode's own number.",
                ),
                rank_input(),
                seed_input(),
                protect_input(),
                filename_input(),
                projection_input("orthogonal"),
            ],
            outputs=output_sockets(
                io.Model.Output("erased_model", display_name="MODEL", tooltip="The erased model.")
            ),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
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
    ) -> io.NodeOutput:
        concepts = split_concepts(concept)
        settings = DomainCorrectionSettings(
            mode=mode,
            kind=kind,
            anchor=anchor.strip(),
            pictures=pictures or None,
            iterations=iterations or None,
            rank=rank,
            seed=seed,
            projection=projection,
            protect=words(protect),
        )
        check_settings(concepts, settings)
        training = Training(
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
        )
        erasure, file, again = training.run(
            cls.hidden.unique_id,
            Trained("unet", settings.trainable, rank, settings.rows),
            lambda host, progress, resume: domain_correction(
                host, concepts, settings, progress, resume
            ),
        )
        result, _ = erased_model(model, erasure)
        text = again + summary(
            erasure, file, "the model", "Its prediction moved by", erasure.record["moved"]
        )
        return outputs(cls.hidden.unique_id, result, erasure, text)
