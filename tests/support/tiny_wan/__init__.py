"""A host extension: a node that outputs small Wan, UMT5 and VAE models with random weights.

They are the host's own classes. The tests run the workflows for Wan on them, without its gigabytes
of weights. tests/support/ must be on the path.
"""

import comfy.ldm.wan.vae
import comfy.sd
import encoder_layouts
import torch
from layouts import fill

WIDTH = 8  # of the autoencoder; in Wan it is 96


def autoencoder() -> comfy.sd.VAE:
    made = comfy.ldm.wan.vae.WanVAE(
        dim=WIDTH, z_dim=16, dim_mult=[1, 2, 4, 4], temperal_downsample=[False, True, True]
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            fill(parameter, generator)
    return comfy.sd.VAE(sd=made.state_dict())


class TinyWan:
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "build"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {}}

    def build(self) -> tuple:
        loaded = encoder_layouts.build("UMT5, Wan")
        return loaded.model, loaded.clip, autoencoder()


NODE_CLASS_MAPPINGS = {"TinyWan": TinyWan}
