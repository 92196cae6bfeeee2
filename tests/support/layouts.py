"""Small models of the host's own classes with their text encoders, all with random weights.

Nothing is learnt on random weights. But whether gradients arrive, and whether an erasure changes
the right weights, does not depend on what the weights mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch

SIDE = 64  # pixels
SMALL_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
}
SMALL_T5 = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2}
SMALL_ENCODERS = {
    "clip_l_model_config": SMALL_CLIP,
    "clip_g_model_config": SMALL_CLIP,
    "t5xxl_model_config": SMALL_T5,
    "umt5xxl_model_config": {**SMALL_T5, "vocab_size": 32128},
    "dtype": torch.float32,
}
SMALL_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
}
SMALL_FLUX = {
    "hidden_size": 64,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "depth": 2,
    "depth_single_blocks": 1,
    "context_in_dim": 32,
    "guidance_embed": True,
}

# Each layout is a tuple (configuration, tokenizer, text encoder).


def sd15() -> tuple:
    import comfy.supported_models

    config = comfy.supported_models.SD15(
        {
            **SMALL_UNET,
            "model_channels": 32,
            "transformer_depth": [1, 1],
            "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1, 1, 1],
            "use_linear_in_transformer": False,
            "context_dim": 32,
            "adm_in_channels": None,
        }
    )
    return config, config.clip_target().tokenizer, config.clip_target().clip


def sdxl() -> tuple:
    """Two encoders, and a pooled vector."""
    import comfy.supported_models

    config = comfy.supported_models.SDXL(
        {
            **SMALL_UNET,
            "model_channels": 64,
            "transformer_depth": [0, 1],
            "transformer_depth_middle": 1,
            "transformer_depth_output": [0, 0, 1, 1],
            "use_linear_in_transformer": True,
            "context_dim": 64,
            "num_classes": "sequential",
            "adm_in_channels": 32 + 6 * 256,
        }
    )
    return config, config.clip_target().tokenizer, config.clip_target().clip


def sd3(second_attention: tuple[int, ...] = ()) -> tuple:
    """A flow model with one attention over text and picture.

    second_attention: the blocks with a second attention over the picture alone, as in SD 3.5
    medium.
    """
    import comfy.supported_models
    import comfy.text_encoders.sd3_clip

    config = comfy.supported_models.SD3(
        {
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "depth": 2,
            "input_size": None,
            "adm_in_channels": 64,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 128},
            },
            "num_patches": 64,
            "pos_embed_max_size": 8,
            "pos_embed_scaling_factor": None,
            "qk_norm": "rms",
            "x_block_self_attn_layers": list(second_attention),
        }
    )
    encoder = comfy.text_encoders.sd3_clip.sd3_clip(t5=False)
    return config, comfy.text_encoders.sd3_clip.SD3Tokenizer, encoder


def flux() -> tuple:
    """A flow model with one attention over text and picture, then both in a single stream."""
    import comfy.supported_models
    import comfy.text_encoders.flux

    config = comfy.supported_models.Flux(
        {
            **SMALL_FLUX,
            "image_model": "flux",
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "vec_in_dim": 32,
            "axes_dim": [8, 12, 12],
            "theta": 10000,
            "qkv_bias": True,
            "txt_ids_dims": [],
        }
    )
    encoder = comfy.text_encoders.flux.flux_clip()
    return config, comfy.text_encoders.flux.FluxTokenizer, encoder


def flux2() -> tuple:
    """All blocks share their modulation. A small T5 stands in for its large language model."""
    import comfy.supported_models
    import comfy.text_encoders.genmo

    config = comfy.supported_models.Flux2(
        {
            **SMALL_FLUX,
            "image_model": "flux2",
            "in_channels": 128,
            "out_channels": 128,
            "patch_size": 1,
            "vec_in_dim": None,
            "axes_dim": [8, 8, 8, 8],
            "theta": 2000,
            "qkv_bias": False,
            "ops_bias": False,
            "global_modulation": True,
            "mlp_silu_act": True,
            "txt_ids_dims": [3],
        }
    )
    genmo = comfy.text_encoders.genmo
    return config, genmo.MochiT5Tokenizer, genmo.mochi_te()


def wan() -> tuple:
    """Video latents. Its tokenizer comes with the full-size encoder, so T5's is used here."""
    import comfy.sd1_clip
    import comfy.supported_models
    import comfy.text_encoders.sd3_clip
    import comfy.text_encoders.wan

    config = comfy.supported_models.WAN21_T2V(
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": 48,
            "ffn_dim": 64,
            "freq_dim": 32,
            "text_dim": 32,
            "num_heads": 2,
            "num_layers": 2,
            "in_dim": 16,
            "out_dim": 16,
        }
    )
    t5 = partial(comfy.text_encoders.sd3_clip.T5XXLTokenizer, min_length=512)
    tokenizer = partial(comfy.sd1_clip.SD1Tokenizer, clip_name="umt5xxl", tokenizer=t5)
    return config, tokenizer, comfy.text_encoders.wan.te()


def ltxv() -> tuple:
    """Video latents, and an encoder with an attention mask."""
    import comfy.supported_models

    config = comfy.supported_models.LTXV(
        {
            "image_model": "ltxv",
            "in_channels": 128,
            "cross_attention_dim": 32,
            "caption_channels": 32,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "num_layers": 2,
        }
    )
    return config, config.clip_target().tokenizer, config.clip_target().clip


LAYOUTS: dict[str, Callable[[], tuple]] = {
    "sd15": sd15,
    "sd15 v": sd15,
    "sdxl": sdxl,
    "sdxl edm v": sdxl,
    "sd3": sd3,
    "sd3.5 medium": partial(sd3, second_attention=(0,)),
    "flux": flux,
    "flux2": flux2,
    "wan": wan,
    "ltxv": ltxv,
}


@dataclass(frozen=True)
class Loaded:
    """What a loader node outputs, without a VAE."""

    name: str
    model: Any
    clip: Any


def build(name: str, dtype: torch.dtype = torch.float32) -> Loaded:
    """Build a layout as the host's loader does, with random weights. v-prediction is set by the
    host's own nodes."""
    import comfy_extras.nodes_model_advanced as sampling

    with where_present(name):
        loaded = assemble(name, *LAYOUTS[name](), dtype=dtype)
    patcher = loaded.model
    if name == "sd15 v":
        (patcher,) = sampling.ModelSamplingDiscrete().patch(patcher, "v_prediction", zsnr=True)
    if name == "sdxl edm v":
        edm = sampling.ModelSamplingContinuousEDM()
        (patcher,) = edm.patch(patcher, "v_prediction", sigma_max=120.0, sigma_min=0.002)
    return replace(loaded, model=patcher)


@contextmanager
def where_present(name: str) -> Iterator[None]:
    """Skip a layout if an older ComfyUI lacks its module or class."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        if not is_absent(error):
            raise
        pytest.skip(name)


def is_absent(error: ImportError | AttributeError) -> bool:
    """Whether a layout failed because this ComfyUI is too old for it.

    On the version that dev.py fetches, and on newer ones, a missing class is an error.
    """
    from comfyui_version import __version__

    missing = getattr(getattr(error, "obj", None), "__name__", error.name)
    older = tuple(map(int, __version__.split(".")[:3])) < (0, 30, 0)
    return older and str(missing).startswith("comfy.")


def assemble(
    name: str,
    config: Any,
    tokenizer: Any,
    encoder: Any,
    dtype: torch.dtype = torch.float32,
    tokenizer_data: dict | None = None,
    encoders: dict | None = None,
) -> Loaded:
    """A layout with random weights. encoders: sizes of encoders that SMALL_ENCODERS lacks."""
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.sd
    from comfy.supported_models_base import ClipTarget

    config.unet_config["dtype"] = dtype
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "", device="cpu")
    patcher = comfy.model_patcher.CoreModelPatcher(
        model, management.get_torch_device(), management.unet_offload_device()
    )
    clip = comfy.sd.CLIP(
        ClipTarget(tokenizer, encoder),
        tokenizer_data=tokenizer_data or {},
        model_options={**SMALL_ENCODERS, **(encoders or {})},
    )
    generator = torch.Generator().manual_seed(0)
    for root in (model.diffusion_model, clip.cond_stage_model):
        for tensor in (*root.parameters(), *root.buffers()):
            if tensor.is_floating_point():
                fill(tensor, generator)
    return Loaded(name, patcher, clip)


def fill(tensor: torch.Tensor, generator: torch.Generator) -> None:
    """Fill with random values: matrices that keep the norm of their input, and vectors near one."""
    if tensor.ndim > 1:
        values = torch.randn(tensor.shape, generator=generator) * tensor[0].numel() ** -0.5
    else:
        values = 1 + 0.1 * torch.randn(tensor.shape, generator=generator)
    tensor.copy_(values)
