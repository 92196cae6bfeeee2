"""IconCanvas as a diffusers pipeline: python -m testbed.motion.pipeline FOLDER

IconCanvas has Stable Diffusion 1.5's layout, but other widths and another autoencoder. So no
configuration of diffusers fits its checkpoint, and the pipeline is built part by part here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from unlearn.diffusers_backend.comfy_names import encoder_modules, network_modules, view
from unlearn.diffusers_backend.save import with_usual_names

from ..host import process as host
from ..model.checkpoint import PREFIXES, WEIGHTS
from .motion import Motion, adapter

WIDTH = 192
LEVELS = ("", "CrossAttn", "CrossAttn", "")  # which levels read the prompt, from the finest down


def network() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 128, 64),
        down_block_types=[f"{kind}DownBlock2D" for kind in LEVELS],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(LEVELS)],
        cross_attention_dim=WIDTH,
        # Despite its name, this is the number of heads. Each is 32 wide.
        attention_head_dim=(2, 4, 4, 2),
    )


def text_encoder() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=6,
            vocab_size=49408,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )


def tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer, from the host's files, which lack the length of a prompt."""
    folder = host.path() / "comfy" / "sd1_tokenizer"
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=77)


def scheduler(**options) -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **options,
    )


def pipeline(file: Path = WEIGHTS) -> StableDiffusionPipeline:
    """IconCanvas with the weights of a checkpoint, in float32."""
    tensors = load_file(file)
    unet, text, vae = network(), text_encoder(), AutoencoderTiny()
    view(network_modules(unet)).load_state_dict(_part(tensors, "unet"))
    names = {f"text_model.{name}": tensor for name, tensor in _part(tensors, "text").items()}
    view(encoder_modules(text)).load_state_dict(names)
    vae.encoder.layers.load_state_dict(_part(tensors, "encoder"))
    # TAESD's decoder begins with a clamp, which in diffusers is not part of the list.
    decoder = {
        f"{int(number) - 1}.{rest}": tensor
        for number, _, rest, tensor in (
            (*name.partition("."), tensor) for name, tensor in _part(tensors, "decoder").items()
        )
    }
    vae.decoder.layers.load_state_dict(decoder)
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=tokenizer(),
        unet=unet.eval(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def animatediff(image: StableDiffusionPipeline, motion: Motion) -> AnimateDiffPipeline:
    """A pipeline for clips, which shares text encoder and autoencoder with the image pipeline.

    Its denoiser is a copy of the image pipeline's, with the motion modules in it.
    """
    modules = adapter(motion)
    noise = DPMSolverMultistepScheduler.from_config(image.scheduler.config, use_karras_sigmas=True)
    video = AnimateDiffPipeline(
        vae=image.vae,
        text_encoder=image.text_encoder,
        tokenizer=image.tokenizer,
        unet=UNetMotionModel.from_unet2d(image.unet, modules).eval(),
        motion_adapter=modules,
        scheduler=noise,
    )
    video.set_progress_bar_config(disable=True)
    return video


def _part(tensors: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    prefix = PREFIXES[part]
    return {
        name.removeprefix(prefix): tensor.float()
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def write(folder: Path, file: Path = WEIGHTS) -> Path:
    """Write IconCanvas as a diffusers folder, in half precision like its checkpoint."""
    pipeline(file).to(dtype=torch.float16).save_pretrained(folder)
    with_usual_names(folder / "text_encoder")
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Name the folder to write: python -m testbed.motion.pipeline FOLDER")
    print(write(Path(sys.argv[1])))
