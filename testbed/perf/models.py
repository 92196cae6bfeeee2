"""The models at the sizes that are measured, for the pack and for the plain loops.

Only IconCanvas has weights that were learnt. The others have the size of real models and random
weights: what a step costs does not depend on what the weights mean.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..model import drawings, pack


@dataclass(frozen=True)
class Size:
    """One size of model."""

    title: str
    side: int
    """Of the latents; 0: there is no denoiser."""
    gib: float
    """Of the weights as the pack holds them, on a CPU."""
    network: float
    """Billions of the denoiser's weights."""
    text: float
    """Billions of the text encoders' weights."""
    threads: int = 0
    """On a CPU; 0: as many as there are cores."""


SIZES = {
    "iconcanvas": Size("IconCanvas", drawings.SIZE // 8, 0.1, 0.0116, 0.0114, 1),
    "sd15": Size("Stable Diffusion 1.5", 64, 2.0, 0.86, 0.123),
    "sdxl": Size("Stable Diffusion XL", 128, 6.4, 2.567, 0.818),
    "wide": Size("two layers of T5-XXL", 0, 1.1, 0.0, 0.52),
}
RANDOM = ("sd15", "sdxl", "wide")
WIDE_LAYERS, WIDE_WORDS = 2, 32128

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
}
LAYOUTS = {
    "sd15": {
        **UNET,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "use_linear_in_transformer": False,
        "context_dim": 768,
        "adm_in_channels": None,
    },
    "sdxl": {
        **UNET,
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "use_linear_in_transformer": True,
        "context_dim": 2048,
        "adm_in_channels": 2816,
        "num_classes": "sequential",
    },
}


def parts_of(size: str):
    """(MODEL, CLIP, VAE) of a size, as the host's loader builds them. What there is not is None."""
    if size == "iconcanvas":
        return pack.checkpoint()
    if size == "wide":
        return None, wide_encoder(), None
    return (*random_model(size), None)


def random_model(size: str = "sd15", dtype=None):
    """(MODEL, CLIP) of Stable Diffusion's full size. dtype: of the denoiser; None: half precision,
    as the host would choose."""
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.sd
    import comfy.supported_models
    import torch

    dtype = dtype or (torch.float16 if torch.cuda.is_available() else torch.bfloat16)
    layout = LAYOUTS[size]
    kind = {"sd15": comfy.supported_models.SD15, "sdxl": comfy.supported_models.SDXL}[size]
    with torch.inference_mode():  # as the host's loader nodes run
        config = kind(dict(layout))
        config.unet_config["dtype"] = dtype
        config.set_inference_dtype(dtype, None)
        model = config.get_model({}, "", device="cpu")
        patcher = comfy.model_patcher.CoreModelPatcher(
            model, management.get_torch_device(), management.unet_offload_device()
        )
        clip = comfy.sd.CLIP(config.clip_target(), parameters=int(SIZES[size].text * 1e9))
        for root in (model.diffusion_model, clip.cond_stage_model):
            fill(root)
    return patcher, clip


def wide_encoder(layers: int = WIDE_LAYERS):
    """A CLIP with a few layers as wide as those of T5-XXL, which is as wide as a language model of
    seven billion weights."""
    import comfy.sd
    import comfy.sd1_clip
    import comfy.text_encoders.sd3_clip
    import comfy.text_encoders.wan as encoders
    import torch
    from comfy.supported_models_base import ClipTarget

    t5 = partial(comfy.text_encoders.sd3_clip.T5XXLTokenizer, min_length=77)
    tokenizer = partial(comfy.sd1_clip.SD1Tokenizer, clip_name="umt5xxl", tokenizer=t5)
    sizes = json.loads((Path(encoders.__file__).parent / "umt5_config_xxl.json").read_text("utf-8"))
    sizes |= {"num_layers": layers, "vocab_size": WIDE_WORDS}
    dtype = torch.float16 if torch.cuda.is_available() else torch.bfloat16
    with torch.inference_mode():
        clip = comfy.sd.CLIP(
            ClipTarget(tokenizer, encoders.te(dtype_t5=dtype)),
            model_options={"umt5xxl_model_config": sizes},
        )
        fill(clip.cond_stage_model)
    return clip


def fill(root) -> None:
    """Give modules random weights under which numbers neither grow nor vanish."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for module in root.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter.ndim > 1:
                scale = 0.5 * parameter[0].numel() ** -0.5
                values = torch.empty(parameter.shape).normal_(0, scale, generator=generator)
                parameter.copy_(values)
            else:
                is_norm = "Norm" in type(module).__name__
                parameter.fill_(1.0 if is_norm and name == "weight" else 0.0)


def plain_pipeline(size: str):
    """What the plain loops take: a diffusers pipeline in float32, or as much of one as they use."""
    import torch

    if size == "iconcanvas":
        from ..motion.pipeline import pipeline

        found = pipeline()
    else:
        found = random_pipeline(size)
    if torch.cuda.is_available():
        for name in ("unet", "text_encoder", "text_encoder_2", "vae"):
            if (part := getattr(found, name, None)) is not None:
                part.to("cuda")
    return found


@dataclass
class Parts:
    """The parts of a pipeline that the plain loops use."""

    unet: object
    text_encoder: object
    tokenizer: object
    scheduler: object
    text_encoder_2: object = None
    tokenizer_2: object = None


def random_pipeline(size: str) -> Parts:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    from ..motion.pipeline import scheduler, tokenizer

    parts = Parts(
        UNet2DConditionModel(**DIFFUSERS[size]).eval(),
        CLIPTextModel(clip_config(768, 12, 12)).eval(),
        tokenizer(),
        scheduler(),
    )
    if size == "sdxl":
        parts.text_encoder_2 = CLIPTextModelWithProjection(clip_config(1280, 32, 20)).eval()
        parts.tokenizer_2 = parts.tokenizer
    return parts


def clip_config(width: int, layers: int, heads: int):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
        vocab_size=49408,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )


DIFFUSERS = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
"""Of UNet2DConditionModel, whose defaults are mostly Stable Diffusion 1.5's."""
