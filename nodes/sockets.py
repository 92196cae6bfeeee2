"""Sockets and widgets that several nodes have, described once."""

from __future__ import annotations

from comfy_api.latest import io

from ..unlearn.methods.parts.adversarial import SECONDS

ErasureType = io.Custom("ERASURE")


def rank_input() -> io.Int.Input:
    return io.Int.Input(
        "rank",
        default=0,
        min=0,
        max=256,
        tooltip="0 trains full deltas (the paper). A rank of 4 to 32 makes the file many times "
        "smaller.",
    )


def seed_input(
    text: str = "The same seed gives the same erasure on one machine; hardening goes by the clock.",
) -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=2**63 - 1,
        # The host's default would draw a new one, and train anew, at every queueing.
        control_after_generate=False,
        tooltip=text,
    )


def protect_input() -> io.String.Input:
    return io.String.Input(
        "protect",
        default="",
        optional=True,
        tooltip="balanced: words, separated by commas, that must keep their meaning, such as "
        "close relatives of the concept, or how things move in your videos.",
    )


def projection_input(default: str) -> io.Combo.Input:
    return io.Combo.Input(
        "projection",
        options=["off", "orthogonal", "as_released"],
        default=default,
        optional=True,
        tooltip="Takes out of each step what would harm other prompts (DoCo's concept-preserving "
        "gradient). as_released is the authors' code, which takes too much.",
    )


def filename_input() -> io.String.Input:
    return io.String.Input(
        "filename_prefix",
        default="loras/erased",
        optional=True,
        tooltip="A folder in the output folder, where each run's erasure is kept under its concept "
        "and a number. The stock Load LoRA node finds what lies in output/loras.",
    )


def output_sockets(erased: io.Output) -> list[io.Output]:
    return [
        erased,
        ErasureType.Output(
            "erasure",
            display_name="ERASURE",
            tooltip="The weight changes, with where they came from: for Save and Combine.",
        ),
        io.Image.Output("loss_curve", display_name="loss curve"),
        io.LossMap.Output("loss_map", display_name="LOSS_MAP"),
        io.String.Output("summary", display_name="summary"),
    ]


def network_inputs() -> list[io.Input]:
    """What the methods that tune the network begin with."""
    return [
        io.Model.Input(
            "model",
            tooltip="The model to take the concept out of. The one connected here stays what it "
            "is.",
        ),
        io.Clip.Input("clip", tooltip="The text encoder of this model. It is only read."),
        io.Vae.Input("vae", optional=True, tooltip="For the live picture while it trains."),
        concept_input(),
    ]


def concept_input() -> io.String.Input:
    return io.String.Input(
        "concept",
        default="",
        tooltip="The word or name to unlearn, in plain words: no weights, no embeddings, no whole "
        "prompt. Several are separated by commas and go into one erasure.",
    )


def kind_input() -> io.Combo.Input:
    return io.Combo.Input(
        "kind",
        options=["object", "style", "character"],
        default="object",
        tooltip="What the concept is: it decides the sentences it is named in ('a photo of a ...' "
        "or 'a painting in the style of ...').",
    )


def anchor_input(text: str) -> io.String.Input:
    return io.String.Input("anchor", default="", optional=True, tooltip=text)


def harden_inputs() -> list[io.Input]:
    return [
        io.Boolean.Input(
            "harden",
            default=False,
            optional=True,
            tooltip="balanced: once the concept is gone it goes on to train against words that "
            "would bring it back.",
        ),
        io.Float.Input(
            "harden_seconds",
            default=SECONDS,
            min=1.0,
            max=86400.0,
            step=1.0,
            optional=True,
            tooltip="How long, where harden is on. On a GPU a second does more than on a CPU, in a "
            "large model less than in a small one.",
        ),
    ]


def size_input(text: str) -> io.Int.Input:
    return io.Int.Input("size", default=512, min=64, max=2048, step=8, tooltip=text)


def mode_input() -> io.Combo.Input:
    return io.Combo.Input(
        "mode",
        options=["balanced", "paper"],
        default="balanced",
        tooltip="balanced: keeps other concepts and stops by itself. paper: the published "
        "algorithm and settings, for comparison.",
    )


def iterations_input() -> io.Int.Input:
    return io.Int.Input(
        "iterations",
        default=0,
        min=0,
        max=100000,
        tooltip="It stops here at the latest. 0: the mode's own number.",
    )


def closing_inputs(projection: str) -> list[io.Input]:
    """What all training nodes end with."""
    return [
        rank_input(),
        seed_input(),
        protect_input(),
        filename_input(),
        projection_input(projection),
    ]


def verdict_input() -> io.Boolean.Input:
    return io.Boolean.Input(
        "verdict",
        default=True,
        optional=True,
        tooltip="Looks beforehand if connected pictures show the concept, and afterwards, in a few "
        "quick pictures before and after, what is left of it. Off: neither is looked at.",
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
