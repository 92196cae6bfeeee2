"""Puts the trained parts into one checkpoint in Stable Diffusion 1.5's layout."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import testbed

LATENT_SCALE = 0.18215  # Stable Diffusion 1.5's: the UNet works on latents times this

WEIGHTS = testbed.FOLDER / "weights" / "iconcanvas.safetensors"
PREFIXES = {
    "unet": "model.diffusion_model.",
    "text": "cond_stage_model.transformer.text_model.",
    "encoder": "first_stage_model.taesd_encoder.",
    "decoder": "first_stage_model.taesd_decoder.",
}


def assemble(folder: Path, file: Path = WEIGHTS) -> None:
    """Write the checkpoint from the final states in `folder`, in float16."""
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
    # The UNet's latents are the encoder's output as it is; the host divides and multiplies by
    # these.
    tensors["first_stage_model.vae_scale"] = torch.tensor(LATENT_SCALE)
    tensors["first_stage_model.vae_shift"] = torch.tensor(0.0)
    _write(tensors, file)
    print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")


def teach(numbers: torch.Tensor, vectors: torch.Tensor, file: Path = WEIGHTS) -> None:
    """Put other vectors, (N, width), in the places of these words of the encoder's vocabulary."""
    tensors = load_file(file)
    table = tensors[PREFIXES["text"] + "embeddings.token_embedding.weight"]
    table[numbers] = vectors.to(table.dtype)
    _write(tensors, file)


def _write(tensors: dict[str, torch.Tensor], file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_suffix(".tmp")
    save_file(tensors, temporary, {"format": "pt", "model": "IconCanvas", "license": "Apache-2.0"})
    temporary.replace(file)


def unpack(folder: Path, file: Path = WEIGHTS) -> None:
    """The inverse of `assemble`: the final states of the parts, so that training can go on."""
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
        torch.save({"modules": state}, folder / f"{stage}.final.pt")
