"""Puts the trained parts into one checkpoint in Stable Diffusion 1.5's layout."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import testbed
from unlearn.files.writing import whole_file

LATENT_SCALE = 0.18215  # of Stable Diffusion 1.5, whose UNet works on latents times this

WEIGHTS = testbed.FOLDER / "weights" / "iconcanvas.safetensors"
PREFIXES = {
    "unet": "model.diffusion_model.",
    "text": "cond_stage_model.transformer.text_model.",
    "encoder": "first_stage_model.taesd_encoder.",
    "decoder": "first_stage_model.taesd_decoder.",
}


def assemble(folder: Path, file: Path = WEIGHTS) -> None:
    """Write the checkpoint, in float16, from the final states in `folder`."""
    tensors = {}
    for stage, parts in (
        ("unet", ("unet",)),
        ("text", ("text",)),
        ("autoencoder", ("encoder", "decoder")),
    ):
        state = torch.load(folder / f"{stage}.final.pt", weights_only=True)["modules"]
        for key, value in state.items():
            part = next((p for p in parts if key.startswith(p + ".")), parts[0])
            if not key.endswith("position_ids"):
                tensors[PREFIXES[part] + key.removeprefix(part + ".")] = value.half().contiguous()
    # The UNet works on the encoder's output without a scale. The host scales by 0.18215 for Stable
    # Diffusion 1.5, and these two values undo that.
    tensors["first_stage_model.vae_scale"] = torch.tensor(LATENT_SCALE)
    tensors["first_stage_model.vae_shift"] = torch.tensor(0.0)
    _write(tensors, file)
    print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")


def _write(tensors: dict[str, torch.Tensor], file: Path) -> None:
    about = {"format": "pt", "model": "IconCanvas", "license": "Apache-2.0"}
    with whole_file(file) as new:
        save_file(tensors, new, about)


def unpack(folder: Path, file: Path = WEIGHTS, keep: bool = False) -> None:
    """The inverse of `assemble`: write the final states of the parts, to continue training.

    keep: leave the states alone that are already in the folder.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {"unet": {}, "text": {}, "autoencoder": {}}
    for key, value in load_file(file).items():
        for part, prefix in PREFIXES.items():
            if key.startswith(prefix):
                name = key.removeprefix(prefix)
                if part in ("encoder", "decoder"):
                    parts["autoencoder"][f"{part}.{name}"] = value.float()
                else:
                    parts[part][name] = value.float()
    for stage, state in parts.items():
        final = folder / f"{stage}.final.pt"
        if not (keep and final.exists()):
            torch.save({"modules": state}, final)
