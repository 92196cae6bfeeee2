"""Small pipelines with random weights, written as diffusers folders.

They have small widths and few layers. Which layers are read, what the denoiser predicts and how a
folder is written is as in Stable Diffusion 1.5, 2.1 and XL, and AnimateDiff on them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    AnimateDiffSDXLPipeline,
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    MotionAdapter,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import testbed.host.process
from unlearn.diffusers_backend.model import DiffusersModel
from unlearn.diffusers_backend.save import with_usual_names

TOKENS, LETTERS = 4096, 512
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def tokenizer(**options: Any) -> CLIPTokenizer:
    """CLIP's tokenizer, cut to its first tokens and the start and end tokens, so it loads fast."""
    source = testbed.host.process.path() / "comfy" / "sd1_tokenizer"
    numbers = json.loads((source / "vocab.json").read_text(encoding="utf-8"))
    first = {token: number for token, number in numbers.items() if number < TOKENS - 2}
    vocabulary = first | {"<|startoftext|>": TOKENS - 2, "<|endoftext|>": TOKENS - 1}
    # The first line names the version. Each merge adds one token to the single letters.
    merges = (source / "merges.txt").read_text(encoding="utf-8").split("\n")
    with TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        some = "\n".join(merges[: 1 + TOKENS - 2 - LETTERS])
        (Path(folder) / "merges.txt").write_text(some + "\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77, **options)


def sd1() -> StableDiffusionPipeline:
    return _plain(
        CLIPTextModel(_clip(32)),
        _network(32),
        PNDMScheduler(**NOISE, skip_prk_steps=True, steps_offset=1),
    )


def sd2() -> StableDiffusionPipeline:
    """OpenCLIP-H without its last layer, recognised by its width. The denoiser predicts v."""
    config = _clip(1024, num_hidden_layers=2, num_attention_heads=16, hidden_act="gelu")
    noise = DDIMScheduler(
        **NOISE, prediction_type="v_prediction", clip_sample=False, steps_offset=1
    )
    network = _network(1024, use_linear_projection=True)
    return _plain(CLIPTextModel(config), network, noise, tokenizer(pad_token="!"))


def xl() -> StableDiffusionXLPipeline:
    """Two encoders of different widths, and a pooled vector."""
    return StableDiffusionXLPipeline(
        vae=_autoencoder(scaling_factor=0.13025),
        text_encoder=CLIPTextModel(_clip(32)),
        text_encoder_2=CLIPTextModelWithProjection(_clip(48, hidden_act="gelu")),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(pad_token="!"),
        unet=_network(
            32 + 48,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=48 + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
    )


def animatediff() -> AnimateDiffPipeline:
    return _animated(AnimateDiffPipeline, sd1())


def animatediff_xl() -> AnimateDiffSDXLPipeline:
    return _animated(AnimateDiffSDXLPipeline, xl())


def write(make: Callable[[], DiffusionPipeline], folder: Path) -> Path:
    """Write the pipeline with the usual names, whatever the version of transformers, and always
    with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make().save_pretrained(folder)
    for part in ("text_encoder", "text_encoder_2"):
        with_usual_names(folder / part)
    return folder


def read(folder: Path) -> DiffusionPipeline:
    """The pipeline in a folder, by diffusers' own loader."""
    return DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


def checkpoint(pipeline: DiffusionPipeline) -> dict[str, torch.Tensor]:
    """The model's tensors under the names of a single checkpoint file, by the host's conversion."""
    model, to_file = DiffusersModel(pipeline), _conversion()
    tensors = {
        f"model.diffusion_model.{name}": weight
        for name, weight in model.views["denoiser"].state_dict().items()
    }
    tensors |= {
        f"first_stage_model.{name}": weight
        for name, weight in to_file.convert_vae_state_dict(pipeline.vae.state_dict()).items()
    }
    first = "conditioner.embedders.0" if model.is_xl else "cond_stage_model"
    places = {"clip_l": first, "clip_h": "cond_stage_model.model"}
    places["clip_g"] = "conditioner.embedders.1.model"
    for encoder in model.encoders:
        own = {
            name.replace(encoder, places[encoder], 1): weight
            for name, weight in model.weights.items()
            if name.startswith(encoder)
        }
        tensors |= own if encoder == "clip_l" else to_file.convert_text_enc_state_dict_v20(own)
    return {name: weight.detach().contiguous() for name, weight in tensors.items()}


def _conversion() -> ModuleType:
    """ComfyUI's module diffusers_convert, loaded without ComfyUI."""
    file = testbed.host.process.path() / "comfy" / "diffusers_convert.py"
    spec = importlib.util.spec_from_file_location("diffusers_convert", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _plain(
    encoder: CLIPTextModel, network: UNet2DConditionModel, noise: Any, words: Any = None
) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=_autoencoder(),
        text_encoder=encoder,
        tokenizer=words or tokenizer(),
        unet=network,
        scheduler=noise,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _animated(kind: type, image: Any) -> Any:
    adapter = MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_mid_block_layers_per_block=1,
        use_motion_mid_block=False,
    )
    network = UNetMotionModel.from_unet2d(image.unet, adapter)
    names = kind.__init__.__annotations__
    parts = {name: part for name, part in image.components.items() if name in names and part}
    return kind(**{**parts, "unet": network, "motion_adapter": adapter})


def _clip(width: int, **options: Any) -> CLIPTextConfig:
    own = {
        "hidden_size": width,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "projection_dim": width,
        "vocab_size": TOKENS,
        "bos_token_id": TOKENS - 2,
        "eos_token_id": TOKENS - 1,
    }
    return CLIPTextConfig(**{**own, **options})


def _network(width: int, **options: Any) -> UNet2DConditionModel:
    own = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": width,
        "attention_head_dim": 2,
    }
    return UNet2DConditionModel(**{**own, **options})


def _autoencoder(**options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[32] * 4,
        layers_per_block=2,
        **options,
    )
