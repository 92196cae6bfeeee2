"""Wan 2.1 1.3B with UMT5-XXL: what unlearning in its text encoder needs, from measured parts.

The whole pair is too large for a small machine. So the encoder is built at full width with a few
layers, and the memory for one more layer is measured. The weights are counted. For the denoiser the
pack's own estimate is used, which was measured on Stable Diffusion 1.5.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch

from ..model import pack

LAYERS = 24
MEASURED = (2, 4)  # layers
NETWORK = {"dim": 1536, "ffn_dim": 8960, "freq_dim": 256, "num_heads": 12, "num_layers": 30}
SMALL = {"dim": 48, "ffn_dim": 64, "freq_dim": 32, "num_heads": 2, "num_layers": 2}
LATENTS = (1, 16, 1, 60, 104)  # a picture of 832 x 480 as a video of one frame
RANK = 8


def wan(sizes: dict):
    import comfy.supported_models

    config = comfy.supported_models.WAN21_T2V(
        {
            **{"image_model": "wan2.1", "model_type": "t2v", "text_dim": 4096},
            **{"in_dim": 16, "out_dim": 16},
            **sizes,
        }
    )
    config.unet_config["dtype"] = torch.bfloat16
    config.set_inference_dtype(torch.bfloat16, None)
    return config


def pair(layers: int):
    """(MODEL, CLIP): a few of UMT5-XXL's layers at full width, and a small denoiser.

    UMT5's tokenizer comes with its weights. T5's is used here; its prompts have as many tokens.
    """
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.sd
    import comfy.sd1_clip
    import comfy.text_encoders.sd3_clip
    import comfy.text_encoders.wan as encoders
    from comfy.supported_models_base import ClipTarget

    model = wan(SMALL).get_model({}, "", device="cpu")
    devices = management.get_torch_device(), management.unet_offload_device()
    patcher = comfy.model_patcher.CoreModelPatcher(model, *devices)
    t5 = partial(comfy.text_encoders.sd3_clip.T5XXLTokenizer, min_length=512)
    tokenizer = partial(comfy.sd1_clip.SD1Tokenizer, clip_name="umt5xxl", tokenizer=t5)
    sizes = json.loads((Path(encoders.__file__).parent / "umt5_config_xxl.json").read_text("utf-8"))
    clip = comfy.sd.CLIP(
        ClipTarget(tokenizer, encoders.te(dtype_t5=torch.bfloat16)),
        model_options={"umt5xxl_model_config": {**sizes, "num_layers": layers}},
    )
    for root in (model.diffusion_model, clip.cond_stage_model):
        for tensor in (*root.parameters(), *root.buffers()):
            if tensor.is_floating_point():
                tensor.data.fill_(0.01)
    return patcher, clip


def measured(layers: int) -> dict[str, int]:
    """Bytes for an encoder with this number of layers, by purpose."""
    package = pack.load()
    settings = package.unlearn.methods.few_shot.FewShotSettings(rank=RANK, batch=1)
    with torch.inference_mode():
        patcher, clip = pair(layers)
        host = package.nodes.backend.model.ComfyModel(patcher, clip)
        weights = host.selected("encoder", settings.trainable)
        memory = package.nodes.backend.memory
        full, recomputed = memory.encoding_bytes(host, weights, settings.prompts)
    values = package.unlearn.core.edit.trained_values(weights, RANK)
    return {
        "text encoder, weights": _bytes(clip.cond_stage_model),
        "text encoder, activations": full,
        "text encoder, activations, recomputed": recomputed,
        "text encoder, changed weights": sum(w.nbytes for w in weights.values()),
        "deltas, gradients, optimiser": values * package.nodes.backend.memory.TRAINING_STATE,
    }


def measure_wan() -> dict:
    """MiB for each part, and the sums with and without recomputed blocks."""
    package = pack.load()
    few, more = (measured(layers) for layers in MEASURED)
    step = MEASURED[1] - MEASURED[0]
    left = LAYERS - MEASURED[0]
    parts = {key: few[key] + (more[key] - few[key]) * left // step for key in few}
    whole = wan(NETWORK).get_model({}, "", device="meta")
    parts["network, weights"] = _bytes(whole.diffusion_model)
    parts["network, activations"] = package.nodes.backend.memory.need(
        whole, "encoder", LATENTS
    ).full
    full, recomputed = package.nodes.backend.memory.UNITS["encoder"]
    parts["network, activations, recomputed"] = int(
        parts["network, activations"] * recomputed / full
    )
    sums = {
        "all, recomputed": (
            "text encoder, weights",
            "text encoder, activations, recomputed",
            "network, weights",
            "network, activations, recomputed",
            "deltas, gradients, optimiser",
        ),
        "all, in full": (
            "text encoder, weights",
            "text encoder, activations",
            "text encoder, changed weights",
            "network, weights",
            "network, activations",
            "deltas, gradients, optimiser",
        ),
    }
    parts |= {name: sum(parts[key] for key in keys) for name, keys in sums.items()}
    return {"case": "wan", **{key: value >> 20 for key, value in parts.items()}}


def wan_table(results: list[dict]) -> str:
    (result,) = results
    rows = [f"| {key} | {value} MiB |" for key, value in result.items() if key != "case"]
    return "\n".join(
        [
            "| Wan 2.1 1.3B and UMT5-XXL, bfloat16 | |",
            "|---|---|",
            *rows,
            "",
            f"Few-Shot Encoder Unlearn at rank {RANK}, one picture of 832 x 480 a step, without "
            f"the VAE. The text encoder was measured with {MEASURED[0]} and {MEASURED[1]} of its "
            f"{LAYERS} layers, and the figures extended to all. Those of the network, which is the "
            "denoiser, are the pack's own estimate.",
        ]
    )


def _bytes(module: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
