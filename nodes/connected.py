"""What is connected may be empty: a checkpoint need hold no text encoder and no autoencoder."""

from __future__ import annotations


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
