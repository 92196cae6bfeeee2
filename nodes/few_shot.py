"""Few-Shot Encoder Unlearn: the node of unlearn/methods/few_shot.py."""

from __future__ import annotations

from comfy_api.latest import io

from ..unlearn.methods.few_shot import FewShotSettings, check_settings, few_shot
from ..unlearn.methods.parts.adversarial import SECONDS
from ..unlearn.prompts.templates import sentence
from ..unlearn.prompts.typed import one_word, split_words
from .backend.apply import erased_clip
from .backend.words import reader, tokenized, typed_concepts
from .base import TrainingNode
from .sockets import (
    anchor_input,
    concept_input,
    filename_input,
    harden_inputs,
    kind_input,
    mode_input,
    output_sockets,
    projection_input,
    protect_input,
    rank_input,
    seed_input,
    size_input,
    verdict_input,
)
from .training import TrainingRun, TrainingSpec, outputs, summary


class FewShotEncoderUnlearn(TrainingNode):
    MAY_BE_EMPTY = ("vae",)  # which pictures need, and nothing else

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewShotEncoderUnlearn",
            display_name="Few-Shot Encoder Unlearn",
            category="unlearn",
            description=(
                "Takes a concept out of a text encoder with a few pictures of it. The result "
                "goes wherever a CLIP goes, also into AnimateDiff and other video nodes."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model that draws with this text encoder. It is only read."
                ),
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder to take the concept out of. The one "
                    "connected here stays what it is.",
                ),
                io.Vae.Input("vae", tooltip="Turns pictures into latents."),
                concept_input(),
                kind_input(),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="A few pictures of the concept, all of "
                    "one size; with several concepts the same number of each, in their "
                    "order. Without any the model draws them itself.",
                ),
                io.Int.Input(
                    "shots",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="How many pictures of each "
                    "concept the model draws where none are connected.",
                ),
                size_input("Width and height in pixels of the pictures that the model draws."),
                mode_input(),
                io.Combo.Input(
                    "trainable",
                    options=["mlp-final-attn", "mlp", "attention", "all"],
                    default="mlp-final-attn",
                    tooltip="Which weights are trained. The paper "
                    "describes mlp-final-attn; its released code trained all.",
                ),
                rank_input(),
                io.Int.Input(
                    "max_steps",
                    default=120,
                    min=1,
                    max=10000,
                    tooltip="balanced: at most so many steps for each concept.",
                ),
                io.Int.Input(
                    "epochs", default=4, min=1, max=100, tooltip="paper: passes over the pictures."
                ),
                seed_input(),
                protect_input(),
                filename_input(),
                projection_input("off"),
                anchor_input(
                    "balanced: what is drawn in its place; another thing of its kind keeps the "
                    "style of a prompt best. Empty: a neutral word by kind."
                ),
                *harden_inputs(),
                io.Int.Input(
                    "batch",
                    default=2,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="Pictures a step. 1 takes least memory.",
                ),
                verdict_input(),
            ],
            outputs=output_sockets(
                io.Clip.Output(
                    "erased_clip", display_name="CLIP", tooltip="The erased text encoder."
                )
            ),
            hidden=[io.Hidden.unique_id],
            is_input_list=True,  # a list of pictures is one set
        )

    @classmethod
    def work(
        cls,
        model,
        clip,
        vae,
        concept,
        kind,
        shots,
        size,
        mode,
        trainable,
        rank,
        max_steps,
        epochs,
        seed,
        images=None,
        protect="",
        projection="off",
        filename_prefix="loras/erased",
        anchor="",
        harden=False,
        harden_seconds=SECONDS,
        batch=2,
        verdict=True,
    ) -> io.NodeOutput:
        concepts = typed_concepts(clip, concept)
        settings = FewShotSettings(
            mode=mode,
            kind=kind,
            trainable=trainable,
            rank=rank,
            shots=shots,
            max_steps=max_steps,
            epochs=epochs,
            seed=seed,
            projection=projection,
            protect=tuple(split_words(protect)),
            anchor=one_word(anchor),
            harden=harden_seconds if harden else 0.0,
            batch=batch,
        )
        check_settings(concepts, images, settings, reader(clip))
        training = TrainingRun(
            "few_shot",
            concepts,
            settings,
            model,
            clip,
            vae,
            size,
            images,
            filename_prefix,
            seed,
            verdict,
        )
        erasure, file, again = training.run(
            cls.hidden.unique_id,
            TrainingSpec("encoder", trainable, rank, settings.batch, settings.prompts),
            lambda host, progress, _: few_shot(host, concepts, images, settings, progress),
        )
        result, _ = erased_clip(clip, erasure)
        moved = movement(clip, result, concepts, kind)
        text = again + summary(
            erasure, file, "The text encoder", "Its conditioning moved by", moved
        )
        return outputs(cls.hidden.unique_id, result, erasure, text)


def movement(clip, erased, concepts: list[str], kind: str) -> dict[str, float]:
    """How far each concept's conditioning moved, in its kind's sentence, relative to its own
    length."""
    moved = {}
    for concept in concepts:
        before, after = (
            c.encode_from_tokens(tokenized(c, sentence(kind, concept))) for c in (clip, erased)
        )
        moved[concept] = ((after - before).norm() / before.norm()).item()
    return moved
