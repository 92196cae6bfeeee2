"""Putting an erasure on a CLIP or a MODEL, as the stock LoRA loader would, if it fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import comfy.lora
import comfy.utils
import torch
from torch.utils._pytree import tree_leaves

from ...unlearn.core import fit
from ...unlearn.core.erasure import (
    NETWORK,
    Erasure,
    ErasureError,
    check_strength,
    name_of,
)
from ...unlearn.core.fit import check_delta
from .checks import check_clip
from .identity import OFTEN_MISSING, fingerprints, own_weight
from .version import host_version

# Where other tools put CLIP's text model, and where the host has it.
FOREIGN_PREFIXES = (
    "clip_l.transformer.",
    "text_encoders.clip_l.transformer.",
    "cond_stage_model.transformer.",
    "conditioner.embedders.0.transformer.",
    "text_encoder.",
    "",
)
OWN_PREFIX = "clip_l.transformer."
# Below it stands a level that newer transformers leave out.
FOREIGN_LEVELS = ("", "text_model.")
# What newer hosts keep in one weight, of language models, and what older ones keep of it apart.
MERGED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


def erased_clip(clip, erasure: Erasure, strength: float = 1.0):
    """A CLIP with the erasure at a strength: 0 is the original, -1 undoes, linear between.

    Returns (clip, warning); the warning is empty unless the erasure was trained on other weights.
    Raises ErasureError when it does not fit this encoder.
    """
    check_clip(clip)
    copy = clip.clone()
    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    return copy, _patch(copy.patcher, names, erasure, strength, CLIP)


def erased_model(model, erasure: Erasure, strength: float = 1.0):
    """A MODEL with the erasure at a strength; as `erased_clip`, for the denoising network."""
    copy = model.clone()
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    return copy, _patch(copy, names, erasure, strength, MODEL)


def erased(model, clip, erasure: Erasure, strength: float = 1.0):
    """(MODEL, CLIP) with whatever the erasure changes, in either or in both."""
    if has_part(erasure, "MODEL"):
        model, _ = erased_model(model, erasure, strength)
    if has_part(erasure, "CLIP"):
        clip, _ = erased_clip(clip, erasure, strength)
    return model, clip


def alike(one, other) -> bool:
    """Whether two MODELs change the same weights alike, but for the rounding of a file; None is
    nothing changed."""
    if one is None or other is None:
        return one is other
    return one.patches.keys() == other.patches.keys() and all(
        len(patches) == len(other.patches[key])
        and all(map(_same_patch, patches, other.patches[key]))
        for key, patches in one.patches.items()
    )


def alike_clips(one, other) -> bool:
    """`alike` of two CLIPs."""
    return alike(*(None if clip is None else clip.patcher for clip in (one, other)))


ROUNDED = 0.01  # of a change, at the most, in a file of 16 bits


def _same_patch(one: tuple, other: tuple) -> bool:
    """Of the host's patches: (strength, change, strength of the weight, ...)."""
    ours, theirs = _scaled(one), _scaled(other)
    return one[2] == other[2] and len(ours) == len(theirs) and all(map(_same_part, ours, theirs))


def _scaled(patch: tuple) -> list:
    """A change's tensors and numbers, the first tensor by its strength: that of half an erasure
    and of an erasure at half strength are one."""
    parts = tree_leaves(getattr(patch[1], "weights", patch[1]))
    first = next((i for i, part in enumerate(parts) if torch.is_tensor(part)), None)
    return [part * patch[0] if i == first else part for i, part in enumerate(parts)]


def _same_part(one, other) -> bool:
    if not (torch.is_tensor(one) and torch.is_tensor(other)):
        return type(one) is type(other) and one == other
    if one.shape != other.shape:
        return False
    one, other = one.float().cpu(), other.float().cpu()
    return bool((one - other).norm() <= ROUNDED * one.norm())


@dataclass(frozen=True)
class Part:
    """How the sentences name a part of a model."""

    name: str
    socket: str
    other: str

    def has(self, key: str) -> bool:
        return key.startswith(NETWORK) == (self.socket == "MODEL")


CLIP = Part("text encoder", "CLIP", "Load Erased Model")
MODEL = Part("model", "MODEL", "Load Erased CLIP")


def has_part(erasure: Erasure, socket: str) -> bool:
    """Whether it changes the text encoder ("CLIP") or the network ("MODEL")."""
    return any(key.startswith(NETWORK) == (socket == "MODEL") for key in erasure.deltas)


def _patch(patcher, names: dict, erasure: Erasure, strength: float, part: Part) -> str:
    """Put the part's deltas on a patcher of our own; returns the warning."""
    wanted = {key for key in erasure.deltas if part.has(key)}
    if erasure.deltas and not wanted:
        raise ErasureError(
            f"{name_of(erasure)} changes nothing in the {part.name}; use {part.other} for it."
        )
    check_strength(strength)
    own = patcher.model.state_dict()
    deltas = {key: _fitting(patcher, own, erasure, key, part) for key in wanted}
    if strength == 0:
        return ""
    patches = comfy.lora.load_lora(Erasure(deltas).state_dict(), names, log_missing=False)
    missed = wanted - set(patcher.add_patches(patches, strength))
    if missed:
        raise ErasureError(
            f"ComfyUI did not take {len(missed)} of the deltas, {min(missed)} first."
        )
    return base_warning(patcher, erasure, wanted)


def _fitting(
    patcher, own: Mapping, erasure: Erasure, key: str, part: Part
) -> dict[str, torch.Tensor]:
    """The change of one of a patcher's own weights, in its shape. Raises ErasureError when there is
    no such weight, or one of another size."""
    delta = erasure.deltas[key]
    if other := kept_otherwise(key, own):
        raise ErasureError(
            f"{name_of(erasure)} changes {key}, and ComfyUI {host_version()} keeps this in "
            f"{other}. Make the erasure anew here, or load it in the ComfyUI, and with the "
            "model's file, that it was made with."
        )
    # Not from the state dict: it packs two values of a quantised weight into one number.
    weight = comfy.utils.get_attr(patcher.model, key) if key in own else None
    remedy = f"Connect the {part.socket} of the model it was made with."
    check_delta(erasure, key, weight, part.name, remedy)
    # The host passes over one of another shape without a word.
    return {"diff": delta["diff"].reshape(weight.shape)} if "diff" in delta else dict(delta)


def fits(model, clip, erasure: Erasure, socket: str) -> bool:
    """Whether it changes something in this part alone, and only what this MODEL or CLIP has."""
    part, patcher = (CLIP, clip.patcher) if socket == "CLIP" else (MODEL, model)
    own = patcher.model.state_dict()
    try:
        for key in erasure.deltas:
            _fitting(patcher, own, erasure, key, part)
    except ErasureError:
        return False
    return bool(erasure.deltas) and all(map(part.has, erasure.deltas))


def kept_otherwise(key: str, own: Iterable[str]) -> str:
    """Where a model has a weight that another version of the host keeps under another name; empty
    where it has that name, or none of them."""
    path, _, kind = key.rpartition(".")
    path, _, name = path.rpartition(".")
    others = [whole for whole, parts in MERGED.items() if name in parts] or MERGED.get(name, ())
    found = [other for other in others if f"{path}.{other}.{kind}" in own]
    return "" if key in own else ", ".join(found)


def base_warning(patcher, erasure: Erasure, keys: Iterable[str]) -> str:
    """A sentence when a patcher's own weights are not those the erasure was trained on."""
    own = patcher.model.state_dict()

    def of_own(recorded: Iterable[str]) -> Mapping[str, str]:
        return fingerprints(patcher, [key for key in recorded if key in own])

    return fit.base_warning(erasure, keys, of_own)


def other_base(model, clip, erasure: Erasure) -> str:
    """The same sentence of a MODEL and a CLIP."""
    parts = ((model, MODEL), (clip.patcher, CLIP))
    found = (
        base_warning(patcher, erasure, filter(part.has, erasure.deltas)) for patcher, part in parts
    )
    return " ".join(filter(None, found))


def foreign_erasure(clip, tensors: Mapping[str, torch.Tensor], name: str) -> Erasure:
    """A text encoder that others erased, as deltas to this one, so that strength and undo work.

    tensors: a whole encoder as the host's CLIPSave or a Hugging Face text_encoder folder has it;
    where nothing differs there are no deltas. Raises ErasureError when it holds no text encoder, a
    part of one, one of another kind or size, or values that are no finite numbers.
    """
    own = {
        key
        for key in clip.cond_stage_model.state_dict()
        if key.startswith(OWN_PREFIX)
        and key.endswith((".weight", ".bias"))
        and not key.endswith(OFTEN_MISSING)
    }
    namings = product(FOREIGN_LEVELS, FOREIGN_PREFIXES)
    found = max((_renamed(tensors, own, *naming) for naming in namings), key=len)
    if not found:
        raise ErasureError(
            f"{name} holds neither an erasure nor a text encoder of this kind; choose another "
            "file. LoRAs are for the Load LoRA node."
        )
    if len(found) < len(own):
        raise ErasureError(
            f"{name} holds {len(found)} of the {len(own)} weights of this text encoder, the first "
            f"that it lacks is {min(own - found.keys())}; choose a file that has all."
        )
    deltas = {}
    for key, value in found.items():
        base = own_weight(clip.patcher, key).cpu()
        if base.shape != value.shape:
            raise ErasureError(
                f"{name} is a text encoder of another size: {key} is {tuple(base.shape)} here and "
                f"{tuple(value.shape)} in the file."
            )
        if not value.is_floating_point() or not value.float().isfinite().all():
            holds = "NaN or infinite values" if value.is_floating_point() else value.dtype
            raise ErasureError(
                f"{name} cannot be used: its {key} holds {holds}; save or download it again."
            )
        if not (_same_in(value.dtype, base, value) or _same_in(base.dtype, value, base)):
            deltas[key] = {"diff": value.float() - base.float()}
    # A file does not say what was erased.
    return Erasure(deltas, {"method": "foreign", "concepts": []})


def _renamed(tensors: Mapping, own: set[str], level: str, prefix: str) -> dict:
    """Those of a file's tensors that are weights of ours, by our names."""
    names = ((OWN_PREFIX + level + key.removeprefix(prefix), key) for key in tensors)
    return {to: tensors[key] for to, key in names if to in own and key.startswith(prefix)}


def _same_in(dtype: torch.dtype, one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether one rounds to the other: a file of another precision was not changed."""
    return torch.equal(one.to(dtype).float(), other.float())
