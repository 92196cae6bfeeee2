"""Puts an erasure on a CLIP or a MODEL as the stock LoRA loader does, once it is known to fit."""

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

# The prefixes under which other tools store CLIP's text model, and the host's own.
FOREIGN_PREFIXES = (
    "clip_l.transformer.",
    "text_encoders.clip_l.transformer.",
    "cond_stage_model.transformer.",
    "conditioner.embedders.0.transformer.",
    "text_encoder.",
    "",
)
OWN_PREFIX = "clip_l.transformer."
# After the prefix comes a level that newer versions of transformers leave out.
FOREIGN_LEVELS = ("", "text_model.")
# Weights of language models that newer hosts merge into one, and the parts that older hosts keep.
MERGED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


def erased_clip(clip, erasure: Erasure, strength: float = 1.0):
    """A clone of the CLIP with the erasure on it.

    strength: 0 is the original, 1 the erasure, -1 undoes it; linear in between. Returns (clip,
    warning). The warning is empty unless the erasure was trained on other weights. Raises
    ErasureError if the erasure does not fit this encoder.
    """
    check_clip(clip)
    copy = clip.clone()
    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    return copy, _patch(copy.patcher, names, erasure, strength, CLIP)


def erased_model(model, erasure: Erasure, strength: float = 1.0):
    """A clone of the MODEL with the erasure on it; the same as `erased_clip`, for the denoiser."""
    copy = model.clone()
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    return copy, _patch(copy, names, erasure, strength, MODEL)


def erased(model, clip, erasure: Erasure, strength: float = 1.0):
    """(MODEL, CLIP), each with what the erasure changes in it; an unchanged one stays as it is."""
    if has_part(erasure, "MODEL"):
        model, _ = erased_model(model, erasure, strength)
    if has_part(erasure, "CLIP"):
        clip, _ = erased_clip(clip, erasure, strength)
    return model, clip


def alike(one, other) -> bool:
    """Whether two MODELs carry the same patches, up to the rounding of a file.

    None stands for a MODEL without an erasure.
    """
    if one is None or other is None:
        return one is other
    return one.patches.keys() == other.patches.keys() and all(
        len(patches) == len(other.patches[key])
        and all(map(_same_patch, patches, other.patches[key]))
        for key, patches in one.patches.items()
    )


def alike_clips(one, other) -> bool:
    """`alike` for two CLIPs."""
    return alike(*(None if clip is None else clip.patcher for clip in (one, other)))


ROUNDED = 0.01  # how much of a change a 16-bit file may round away


def _same_patch(one: tuple, other: tuple) -> bool:
    """Compares two patches of the host: (strength, change, strength of the weight, ...)."""
    ours, theirs = _scaled(one), _scaled(other)
    return one[2] == other[2] and len(ours) == len(theirs) and all(map(_same_part, ours, theirs))


def _scaled(patch: tuple) -> list:
    """A patch's tensors and numbers, with the first tensor multiplied by the patch's strength.

    So an erasure at half strength equals half the erasure at strength 1.
    """
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
    """How messages name a part of a model."""

    name: str
    socket: str
    other: str

    def has(self, key: str) -> bool:
        return key.startswith(NETWORK) == (self.socket == "MODEL")


CLIP = Part("text encoder", "CLIP", "Load Erased Model")
MODEL = Part("model", "MODEL", "Load Erased CLIP")


def has_part(erasure: Erasure, socket: str) -> bool:
    """Whether the erasure changes the text encoder ("CLIP") or the denoiser ("MODEL")."""
    return any(key.startswith(NETWORK) == (socket == "MODEL") for key in erasure.deltas)


def _patch(patcher, names: dict, erasure: Erasure, strength: float, part: Part) -> str:
    """Add the part's deltas to a patcher, which must be a clone. Returns the warning."""
    wanted = {key for key in erasure.deltas if part.has(key)}
    if erasure.deltas and not wanted:
        raise ErasureError(
            f"{name_of(erasure)} changes nothing in the {part.name}; use {part.other} for it."
        )
    check_strength(strength)
    own = patcher.model.state_dict()
    deltas = {key: _checked_delta(patcher, own, erasure, key, part) for key in wanted}
    if strength == 0:
        return ""
    patches = comfy.lora.load_lora(Erasure(deltas).state_dict(), names, log_missing=False)
    missed = wanted - set(patcher.add_patches(patches, strength))
    if missed:
        raise ErasureError(
            f"ComfyUI did not take {len(missed)} of the erasure's changes; the first is "
            f"{min(missed)}. Update ComfyUI or this pack."
        )
    return base_warning(patcher, erasure, wanted)


def _checked_delta(
    patcher, own: Mapping, erasure: Erasure, key: str, part: Part
) -> dict[str, torch.Tensor]:
    """The erasure's change of the weight `key`, in the shape of that weight.

    own: the patcher's state dict. Raises ErasureError if the weight is missing or has another size.
    """
    delta = erasure.deltas[key]
    if other := kept_otherwise(key, own):
        raise ErasureError(
            f"{name_of(erasure)} changes {key}, and ComfyUI {host_version()} keeps this in "
            f"{other}. Make the erasure anew here, or load it with the version of ComfyUI and the "
            "model file that it was made with."
        )
    # Not from the state dict: it packs two values of a quantised weight into one number.
    weight = comfy.utils.get_attr(patcher.model, key) if key in own else None
    remedy = f"Connect the {part.socket} of the model it was made with."
    check_delta(erasure, key, weight, part.name, remedy)
    # The host passes over one of another shape without a word.
    return {"diff": delta["diff"].reshape(weight.shape)} if "diff" in delta else dict(delta)


def fits(model, clip, erasure: Erasure, socket: str) -> bool:
    """Whether the erasure changes this part only, and fits the MODEL or CLIP."""
    part, patcher = (CLIP, clip.patcher) if socket == "CLIP" else (MODEL, model)
    own = patcher.model.state_dict()
    try:
        for key in erasure.deltas:
            _checked_delta(patcher, own, erasure, key, part)
    except ErasureError:
        return False
    return bool(erasure.deltas) and all(map(part.has, erasure.deltas))


def kept_otherwise(key: str, own: Iterable[str]) -> str:
    """The names under which this host keeps a weight that another version names `key`.

    Empty if the model has `key` itself, or none of the other names.
    """
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
    """`base_warning` for a MODEL and a CLIP together."""
    parts = ((model, MODEL), (clip.patcher, CLIP))
    found = (
        base_warning(patcher, erasure, filter(part.has, erasure.deltas)) for patcher, part in parts
    )
    return " ".join(filter(None, found))


def foreign_erasure(clip, tensors: Mapping[str, torch.Tensor], name: str) -> Erasure:
    """A text encoder that somebody else erased, as deltas to this CLIP.

    As deltas it can be scaled and undone. tensors: a whole encoder, as the host's CLIPSave or a
    Hugging Face text_encoder folder stores it. Weights that are equal get no delta. name: the
    file's name, for messages. Raises ErasureError if the tensors hold no text encoder, only a part
    of one, one of another kind or size, or values that are not finite.
    """
    own = {
        key
        for key in clip.cond_stage_model.state_dict()
        if key.startswith(OWN_PREFIX)
        and key.endswith((".weight", ".bias"))
        and not key.endswith(OFTEN_MISSING)
    }
    namings = product(FOREIGN_LEVELS, FOREIGN_PREFIXES)
    found = max((_under_own_names(tensors, own, *naming) for naming in namings), key=len)
    if not found:
        raise ErasureError(
            f"{name} holds neither an erasure nor a text encoder of this kind; choose another "
            "file. Load LoRAs with the Load LoRA node."
        )
    if len(found) < len(own):
        raise ErasureError(
            f"{name} holds {len(found)} of the {len(own)} weights of this text encoder; the first "
            f"that it lacks is {min(own - found.keys())}. Choose a file that has all."
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
        if not (_equal_in(value.dtype, base, value) or _equal_in(base.dtype, value, base)):
            deltas[key] = {"diff": value.float() - base.float()}
    # The file does not say which concepts were erased.
    return Erasure(deltas, {"method": "foreign", "concepts": []})


def _under_own_names(tensors: Mapping, own: set[str], level: str, prefix: str) -> dict:
    """The file's tensors that are weights of the host's encoder, under the host's names."""
    names = ((OWN_PREFIX + level + key.removeprefix(prefix), key) for key in tensors)
    return {to: tensors[key] for to, key in names if to in own and key.startswith(prefix)}


def _equal_in(dtype: torch.dtype, one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether `one`, rounded to dtype, equals `other`. A file in another precision is no change."""
    return torch.equal(one.to(dtype).float(), other.float())
