"""Sockets and widgets that several nodes have, described once."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..unlearn.core.kind import Kind
from ..unlearn.core.model import Part
from ..unlearn.evaluate.judges.original import JUDGE as ORIGINAL
from ..unlearn.evaluate.judges.registry import keys
from ..unlearn.methods.parts.method import Method

ErasureType = io.Custom("ERASURE")


def seed_input(text: str) -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=2**63 - 1,
        # The host's default would draw a new one, and train anew, at every queueing.
        control_after_generate=False,
        tooltip=text,
    )


def filename_input() -> io.String.Input:
    return io.String.Input(
        "filename_prefix",
        default="loras/erased",
        optional=True,
        tooltip="A folder in the output folder, where each run's erasure is kept as one file, such "
        "as fox.closed_form.safetensors, with a number if that is taken. To name it yourself, end "
        "in .safetensors. The Load nodes and the stock Load LoRA find what is in output/loras.",
    )


def erased_output(part: Part) -> io.Output:
    """What a training node hands on first."""
    if part == "encoder":
        return io.Clip.Output(
            "erased_clip", display_name="CLIP", tooltip="The erased text encoder."
        )
    return io.Model.Output("erased_model", display_name="MODEL", tooltip="The erased model.")


def method_sockets(method: Method) -> list[io.Input]:
    """What a training node begins with."""
    if method.part == "encoder":
        model = "The model that draws with this text encoder. It is only read."
        clip = (
            "The text encoder to take the concept out of. The one connected here stays what it is."
        )
    else:
        model = "The model to take the concept out of. The one connected here stays what it is."
        clip = "The text encoder of this model. It is only read."
    encoder = io.Clip.Input("clip", tooltip=clip)
    if method.encoder_alone:
        look = "For a look at what is left of the concept. It is not needed to unlearn it."
        shown = "For a picture of the result, where a MODEL is connected, too."
        model_input = io.Model.Input("model", optional=True, tooltip=look)
        return [
            encoder,
            concept_input(),
            model_input,
            io.Vae.Input("vae", optional=True, tooltip=shown),
        ]
    sockets = [io.Model.Input("model", tooltip=model), encoder]
    if not method.takes_pictures:
        live = "For the live picture while it trains."
        return [*sockets, io.Vae.Input("vae", optional=True, tooltip=live), concept_input()]
    pictures = io.Image.Input(
        "images",
        optional=True,
        tooltip="A few pictures of the concept, all of one size; with several concepts the same "
        "number of each, in their order. Without any the model draws them itself.",
    )
    vae = io.Vae.Input("vae", optional=True, tooltip="Turns pictures into latents: images need it.")
    return [*sockets, vae, concept_input(), pictures]


def concept_input() -> io.String.Input:
    return io.String.Input(
        "concept",
        default="",
        tooltip="The word or name to unlearn, in plain words: no weights, no embeddings, no whole "
        "prompt. Several are separated by commas or lines and go into one erasure. fox -> koala "
        "names the anchor, too.",
    )


def kind_input() -> io.Combo.Input:
    return io.Combo.Input(
        "kind",
        options=[*get_args(Kind)],
        default="object",
        tooltip="What the concept is: it decides the sentences it is named in ('a photo of a ...', "
        "'a painting in the style of ...' or, for an action, 'a person, ...').",
    )


def size_input() -> io.Int.Input:
    return io.Int.Input(
        "size",
        default=512,
        min=64,
        max=2048,
        step=8,
        tooltip="Width and height in pixels of the pictures that the model draws while it trains.",
    )


def verdict_input() -> io.Boolean.Input:
    return io.Boolean.Input(
        "verdict",
        default=True,
        optional=True,
        tooltip="Looks beforehand if the model draws the concept and connected pictures show it, "
        "and afterwards, in a few quick pictures, what is left of it. Off: goes on all the same.",
    )


def original_inputs() -> list[io.Input]:
    """What the nodes that look at an erasure begin with."""
    return [
        io.Model.Input("model", tooltip="The original model, which also judges."),
        io.Clip.Input("clip", tooltip="The original text encoder."),
        io.Vae.Input("vae", tooltip="Turns latents into pictures and back."),
    ]


def erased_inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "erased_model",
            optional=True,
            tooltip="The model after an erasure. Not connected: the original.",
        ),
        io.Clip.Input(
            "erased_clip",
            optional=True,
            tooltip="The text encoder after an erasure. Not connected: the original.",
        ),
    ]


def judge_input() -> io.Combo.Input:
    return io.Combo.Input(
        "judge",
        options=keys(),
        default=ORIGINAL.key,
        optional=True,
        advanced=True,
        tooltip="Who says which pictures show the concept. original: the original model. nudenet: "
        "NudeNet, which counts naked pictures, whatever the concept; nudenet-all counts bare feet, "
        "bellies and armpits, too, as UnlearnDiffAtk does. NudeNet is a package that you install.",
    )


def sampling_inputs() -> list[io.Input]:
    """Named as KSampler's."""
    return [
        io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps of a picture."),
        io.Float.Input(
            "cfg",
            default=7.5,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="Strength of the guidance. 1 for models that are told it as a number, such as "
            "Flux dev, or were distilled to do without.",
        ),
    ]


def picture_size_inputs() -> list[io.Input]:
    return [
        io.Int.Input(side, default=512, min=64, max=4096, step=8, tooltip=f"Pixels of {side}.")
        for side in ("width", "height")
    ]
