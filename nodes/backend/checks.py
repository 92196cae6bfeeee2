"""Checks of what is connected to a node.

A socket may be empty, since a checkpoint may hold no text encoder and no autoencoder. Or it may
hold something that cannot be trained.
"""

from __future__ import annotations

from reprlib import repr as shortened
from typing import Any

import torch

from .aliasing import is_quantised

# The attributes that the nodes use of each kind, and which node outputs it.
SOCKETS = {
    "MODEL": (("model_options", "add_patches"), "a node that loads a model, as Load Checkpoint"),
    "CLIP": (("cond_stage_model", "tokenize"), "a node that loads a text encoder, as Load CLIP"),
    "VAE": (("encode", "decode"), "a node that loads one, as Load VAE"),
    "CLIP_VISION": (("encode_image",), "Load CLIP Vision"),
    "ERASURE": (("deltas", "record"), "a node that trains or loads one"),
}


def check_socket(name: str, kind: str, value: Any) -> Any:
    """Return the value. Raises ValueError if it is empty or of another kind.

    The check looks for attributes, not for a class: other extensions have classes of their own.
    """
    needed, where = SOCKETS[kind]
    if value is None:
        if kind == "CLIP":
            check_clip(value)
        if kind == "VAE":
            check_vae(value)
        raise ValueError(f"The {kind} that is connected is empty: connect {where}.")
    if not all(hasattr(value, one) for one in needed):
        raise ValueError(f"{name} is {shown(value)}, no {kind}: connect {where}.")
    return value


def shown(value: Any) -> str:
    """Any value, as a message shows it: short, whatever its type and size."""
    if isinstance(value, int) and value.bit_length() > 100:
        return "a number of more than 30 digits"  # Python refuses to print very long ones
    if isinstance(value, (str, int, float, type(None))):
        return shortened(value)
    return f"of the type {type(value).__name__}"


def check_clip(clip) -> None:
    """Raises ValueError if the CLIP is empty: the loader found no text encoder."""
    if clip is None:
        raise ValueError(
            "The CLIP that is connected is empty: its checkpoint holds no text encoder. "
            "Connect the text encoder that this model reads, for example from Load CLIP."
        )


def autoencoder(vae):
    """The VAE; None if there is none, or if its checkpoint held none and it is empty."""
    return None if getattr(vae, "first_stage_model", vae) is None else vae


def check_vae(vae, otherwise: str = "") -> None:
    """Raises ValueError if a VAE is empty. otherwise: what else could be done, for the message."""
    if autoencoder(vae) is None:
        found = "No VAE is connected" if vae is None else "The VAE that is connected is empty"
        raise ValueError(
            f"{found}, or its checkpoint holds none. Connect one, for example from Load "
            f"VAE{otherwise}."
        )


LATENTS = {1: "of sound", 2: "of pictures", 3: "of video"}


def check_vae_fits(vae, network) -> None:
    """Raises ValueError if the VAE's latents are not the kind that the denoiser works on."""
    layout = network.latent_format
    wanted = layout.latent_dimensions, layout.latent_channels
    # Another extension's VAE may not say; then it is taken to fit.
    found = getattr(vae, "latent_dim", wanted[0]), getattr(vae, "latent_channels", wanted[1])
    if found != wanted:
        theirs, own = (
            f"{LATENTS[kind]} with {channels} channels" for kind, channels in (found, wanted)
        )
        raise ValueError(
            f"This VAE makes latents {theirs}, and the MODEL draws in latents {own}: they do not "
            "belong together. Connect the VAE of this MODEL."
        )


def check_patcher(patcher, socket: str) -> None:
    """Raises ValueError if this MODEL, or this CLIP's patcher, cannot be trained.

    socket: "MODEL" or "CLIP", for the message.
    """
    if any(
        not weight.is_floating_point() and not is_quantised(weight)
        for weight in patcher.model.parameters()
    ):
        raise ValueError(
            f"The weights of this {socket} are packed in another extension's format, such as GGUF; "
            "load it from a safetensors file."
        )
    # A compiled module holds its layers one level deeper, so the names would not match.
    if any(hasattr(patch, "_orig_mod") for patch in patcher.object_patches.values()):
        raise ValueError(
            f"This {socket} was compiled by another node. Connect it as it is before that node, "
            "and compile the output of this one."
        )
    # Injections replace the layers' forward passes, and do not say which weights they hold.
    if getattr(patcher, "injections", None):
        raise ValueError(
            f"Another node changes this {socket} while it runs, as Load LoRA (Bypass) does. Use "
            "Load LoRA in its place."
        )


def check_size(network: torch.nn.Module, size: tuple[int, int]) -> None:
    """Raises ValueError for pictures that have not one place in a network's latents.

    size: height and width in pixels.
    """
    smallest = network.latent_format.spacial_downscale_ratio
    if min(size) < smallest:
        height, width = size
        raise ValueError(
            f"The pictures have {width} x {height} pixels, and {smallest} x {smallest} are the "
            "fewest that this MODEL can look at; connect larger ones."
        )
