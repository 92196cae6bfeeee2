"""What tells two models apart, and which weights are a model's own.

All branches of a graph share one module. Its weights at this moment may be another branch's:
patched with a LoRA, or with hooks that are switched on for a while. So the patcher decides here,
not the module.

A model's own weights are those of its checkpoint, with everything that was merged into them: a
saved merge would be a checkpoint like any other. LoRAs and hooks are not part of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import comfy.lora
import comfy.model_management as management
import comfy.utils
import torch

from ...unlearn.core.erasure import fingerprint
from .aliasing import is_quantised

# Checkpoints of Stable Diffusion 1.5 lack these weights. The host leaves them uninitialised.
OFTEN_MISSING = ("text_projection.weight", "logit_scale")


def without_hooks(clip):
    """A clone of the CLIP without the hooks of Set CLIP Hooks. The CLIP given keeps them.

    A hook changes weights for a part of the sampling only, so training must not depend on it.
    """
    if not has_hooks(clip):
        return clip
    copy = clip.clone()
    copy.patcher.forced_hooks = None
    copy.apply_hooks_to_conds = None
    copy.use_clip_schedule = False
    return copy


def has_hooks(clip) -> bool:
    # Older hosts have no hooks.
    return getattr(clip.patcher, "forced_hooks", None) is not None or bool(
        getattr(clip, "apply_hooks_to_conds", None)
    )


def architecture(model, clip) -> str:
    """What kind of model it is, by the host's names: for people, in an erasure's record.

    model: None where only the text encoder is there.
    """
    parts = [] if model is None else [type(model.model.model_config).__name__]
    return ", ".join([*parts, f"text encoder {type(clip.cond_stage_model).__name__}"])


def signature(patcher) -> str:
    """A quick hash of a patcher's weights and patches (64 values of each).

    It tells models apart, and one model with different LoRAs. Hooks do not count, since training
    leaves them out.
    """
    digest = hashlib.sha256()
    tensors = patcher.model.state_dict()
    # Object patches: whole objects that a node puts in place of the model's own, such as its noise
    # schedule. The shared module may hold another branch's at the moment.
    for name in {*patcher.object_patches, *patcher.object_patches_backup}:
        tensors = {key: t for key, t in tensors.items() if not key.startswith(f"{name}.")}
        own = patcher.get_model_object(name)
        if isinstance(own, torch.nn.Module):
            tensors |= {f"{name}.{key}": t for key, t in own.state_dict().items()}
    for name, replacement in sorted(patcher.object_patches.items()):
        kinds = [kind.__qualname__ for kind in type(replacement).__mro__]
        digest.update(repr((name, kinds, getattr(replacement, "__qualname__", ""))).encode())
    for name, weight in _backups(patcher).items():
        own = weight.state_dict(name) if is_quantised(weight) else {name: weight}
        tensors |= own if name in tensors else {}
    for name, tensor in sorted(tensors.items()):
        if name.endswith(OFTEN_MISSING):
            continue
        values = tensor.flatten()[:64]
        digest.update(name.encode() + values.to("cpu", torch.float16).numpy().tobytes())
    for name, patches in sorted(patcher.patches.items()):
        digest.update(name.encode())
        for leaf in _leaves(patches):
            if isinstance(leaf, torch.Tensor):
                digest.update(leaf.flatten()[:64].to("cpu", torch.float32).numpy().tobytes())
            elif isinstance(leaf, (int, float, str)):
                digest.update(repr(leaf).encode())
    return digest.hexdigest()[:16]


def _backups(patcher) -> dict[str, torch.Tensor]:
    """Weights that the host keeps beside the module while it has changed them there, by name.

    `backup` has the weights without patches. `hook_backup` has them with patches and without hooks.
    """
    hooked = getattr(patcher, "hook_backup", {})
    return {name: backup[0] for name, backup in hooked.items()} | {
        name: backup.weight for name, backup in patcher.backup.items()
    }


def _leaves(value) -> Iterator:
    """The numbers and tensors that patches are made of, those of LoRAs and of merged models."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    elif not isinstance(value, torch.Tensor) and hasattr(value, "weights"):
        yield from _leaves(value.weights)
    else:
        yield value


def own_weight(patcher, key: str) -> torch.Tensor:
    """A model's own weight: with merges, without LoRAs and hooks."""
    backup = _backups(patcher).get(key)
    weight = comfy.utils.get_attr(patcher.model, key) if backup is None else backup
    weight = (weight.dequantize() if is_quantised(weight) else weight).detach()
    merges = [patch for patch in patcher.patches.get(key, ()) if _is_merge(patch)]
    if not merges:
        return weight
    # In the host's own precision for merging, so that a saved merge has the same values.
    precision = management.lora_compute_dtype(patcher.load_device)
    merged = comfy.lora.calculate_weight(merges, weight.to(precision, copy=True), key)
    return merged.to(weight.dtype)


def _is_merge(patch: tuple) -> bool:
    """Whether a patch (strength, change, ...) is a merge: its change is then a list, which says how
    to compute the other model's weight."""
    return isinstance(patch[1], list)


def fingerprints(patcher, keys: Iterable[str]) -> dict[str, str]:
    """Hashes of a patcher's own weights (see `own_weight`)."""
    return {key: fingerprint(own_weight(patcher, key)) for key in keys}
