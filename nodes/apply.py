"""Putting an erasure on a CLIP, the way the stock LoRA loader would, and checking that it fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import comfy.lora
import comfy.utils
import torch

from ..unlearn.erasure import Erasure, ErasureError, name_of
from .host import OFTEN_MISSING, fingerprints

# Where other tools put CLIP's text model, and where the host has it.
FOREIGN_PREFIXES = (
    "clip_l.transformer.",
    "text_encoders.clip_l.transformer.",
    "cond_stage_model.transformer.",
    "conditioner.embedders.0.transformer.",
    "text_encoder.",
    "",
)


def erased_clip(clip, erasure: Erasure, strength: float = 1.0):
    """A CLIP with the erasure at a strength: 0 is the original, -1 undoes, linear between.

    Returns (clip, warning); the warning is empty unless the erasure was trained on other weights.
    Raises ErasureError when it does not fit this encoder.
    """
    own = clip.cond_stage_model.state_dict()
    for key, delta in erasure.deltas.items():
        if key.startswith("diffusion_model."):
            continue
        if key not in own:
            raise ErasureError(
                f"{name_of(erasure)} is for another text encoder: this one has no {key}. "
                "Connect the CLIP of the model it was made with."
            )
        shape = (
            delta["diff"].shape
            if "diff" in delta
            else (delta["lora_up"].shape[0], delta["lora_down"].shape[1])
        )
        if tuple(shape) != tuple(own[key].shape):
            raise ErasureError(
                f"{name_of(erasure)} is for a text encoder of another size: {key} is "
                f"{tuple(own[key].shape)} here and {tuple(shape)} in the file."
            )
    copy = clip.clone()
    if strength == 0:
        return copy, ""
    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    patches = comfy.lora.load_lora(erasure.state_dict(), names, log_missing=False)
    wanted = {key for key in erasure.deltas if not key.startswith("diffusion_model.")}
    missed = wanted - set(copy.add_patches(patches, strength))
    if missed:
        raise ErasureError(
            f"ComfyUI did not take {len(missed)} of the deltas, {min(missed)} first."
        )
    return copy, base_warning(clip, erasure)


def base_warning(clip, erasure: Erasure) -> str:
    """A sentence when the encoder's own weights are not those the erasure was trained on."""
    recorded = {
        k: v
        for k, v in erasure.record.get("base", {}).items()
        if k in erasure.deltas and not k.startswith("diffusion_model.")
    }
    found = fingerprints(clip.patcher, recorded)
    differing = sum(found[key] != value for key, value in recorded.items())
    if not differing:
        return ""
    return (
        f"Warning: {differing} of {len(recorded)} weights differ from those this erasure was "
        "trained on, so what was measured may not hold for this model; probe it again."
    )


def foreign_erasure(clip, tensors: Mapping[str, torch.Tensor], name: str) -> Erasure:
    """A text encoder that others erased, as deltas to this one, so that strength and undo work.

    tensors: a whole encoder as the host's CLIPSave or a Hugging Face text_encoder folder has it.
    Raises ErasureError when it holds no text encoder, or one of another kind or size.
    """
    own = {key: key for key in clip.cond_stage_model.state_dict()}
    deltas = {}
    for prefix in FOREIGN_PREFIXES:
        renamed = {
            "clip_l.transformer." + key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        shared = {
            k: v
            for k, v in renamed.items()
            if k in own and k.endswith((".weight", ".bias")) and not k.endswith(OFTEN_MISSING)
        }
        if shared:
            break
    else:
        raise ErasureError(
            f"{name} holds neither an erasure nor a text encoder of this kind; choose another file."
        )
    for key, value in shared.items():
        backup = clip.patcher.backup.get(key)
        base = comfy.utils.get_attr(clip.patcher.model, key) if backup is None else backup.weight
        if base.shape != value.shape:
            raise ErasureError(
                f"{name} is a text encoder of another size: {key} is {tuple(base.shape)} here and "
                f"{tuple(value.shape)} in the file."
            )
        difference = value.float() - base.detach().float().cpu()
        if difference.any():
            deltas[key] = {"diff": difference}
    return Erasure(deltas, {"method": "foreign", "concepts": [Path(name).stem]})
