"""What is connected may be empty, since a checkpoint need hold no text encoder and no autoencoder,
or of a kind that cannot be trained through."""

from __future__ import annotations

from .frozen import is_quantised


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
