"""What is connected may be empty, since a checkpoint need hold no text encoder and no autoencoder,
or of a kind that cannot be trained through."""

from __future__ import annotations

from reprlib import repr as shortened
from typing import Any

from .patching import is_quantised

# What the nodes use of each, and which node hands it on.
SOCKETS = {
    "MODEL": (("model_options", "add_patches"), "a node that loads a model, as Load Checkpoint"),
    "CLIP": (("cond_stage_model", "tokenize"), "a node that loads a text encoder, as Load CLIP"),
    "VAE": (("encode", "decode"), "a node that loads one, as Load VAE"),
    "CLIP_VISION": (("encode_image",), "Load CLIP Vision"),
    "ERASURE": (("deltas", "record"), "a node that trains or loads one"),
}


def check_socket(name: str, kind: str, value: Any) -> Any:
    """The value. Raises ValueError where it is empty, or is not what goes through this socket.

    By what it can do and not by its class: other extensions have classes of their own.
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
    """A value in a sentence, of whatever kind and size."""
    if isinstance(value, int) and value.bit_length() > 100:
        return "a number of more than 30 digits"  # of too many Python refuses to write them
    if isinstance(value, (str, int, float, type(None))):
        return shortened(value)
    return f"of the type {type(value).__name__}"


def check_clip(clip) -> None:
    """Raises ValueError where a loader found no text encoder: it then hands on nothing."""
    if clip is None:
        raise ValueError(
            "The CLIP that is connected is empty: its checkpoint holds no text encoder. "
            "Connect the text encoder that this model reads, for example from Load CLIP."
        )


def autoencoder(vae):
    """The VAE; None where there is none, or an empty one, as of a checkpoint that holds none."""
    return None if getattr(vae, "first_stage_model", vae) is None else vae


def check_vae(vae, otherwise: str = "") -> None:
    """Raises ValueError where a VAE is empty. otherwise: what else could be done, if anything."""
    if autoencoder(vae) is None:
        raise ValueError(
            "The VAE that is connected is empty: its checkpoint holds none. Connect one, for "
            f"example from Load VAE{otherwise}."
        )


LATENTS = {1: "of sound", 2: "of pictures", 3: "of video"}


def check_vae_fits(vae, network) -> None:
    """Raises ValueError where a VAE's latents are not of the kind that a network draws in."""
    layout = network.latent_format
    wanted = layout.latent_dimensions, layout.latent_channels
    # A VAE of another extension may not say.
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
    """Raises ValueError where nothing can be trained through a MODEL, or a CLIP's patcher.

    socket: how the node calls it.
    """
    if any(
        not weight.is_floating_point() and not is_quantised(weight)
        for weight in patcher.model.parameters()
    ):
        raise ValueError(
            f"The weights of this {socket} are packed in a form that another extension reads, as "
            "from a GGUF file; load it from a safetensors file."
        )
    # A compiled module holds the layers one level deeper, so their names would be others.
    if any(hasattr(patch, "_orig_mod") for patch in patcher.object_patches.values()):
        raise ValueError(
            f"This {socket} is compiled by another node; connect it as it is before that, and "
            "compile what comes out here."
        )
    # They stand in for the layers' own forward passes, and say nothing of what they hold.
    if getattr(patcher, "injections", None):
        raise ValueError(
            f"This {socket} carries what another node puts in while it runs, as Load LoRA (Bypass) "
            "does; load the LoRA with Load LoRA."
        )
