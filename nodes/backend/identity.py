"""Whose weights these are: what tells two models apart, and what counts as a model's own.

The host shares one module among all branches of a graph. What lies in it at the moment may be
another branch's: patched with a LoRA, or with hooks that are switched on for a while. What counts
here is what the patcher says.

A model's own weights are those of its checkpoint, with whatever was merged into them: saved, the
merge would be a checkpoint like any other. LoRAs and hooks lie on top of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import comfy.lora
import comfy.model_management as management
import comfy.utils
import torch

from ...unlearn.core.erasure import fingerprint
from .patching import is_quantised

# Stable Diffusion 1.5's checkpoints lack these: the host leaves them as uninitialised memory.
OFTEN_MISSING = ("text_projection.weight", "logit_scale")


def without_hooks(clip):
    """A CLIP without the hooks that Set CLIP Hooks put on it. The one given keeps them.

    A hook changes weights for a part of the sampling only, so what is learnt must not depend on it.
    """
    if not has_hooks(clip):
        return clip
    copy = clip.clone()
    copy.patcher.forced_hooks = None
    copy.apply_hooks_to_conds = None
    copy.use_clip_schedule = False
    return copy


def has_hooks(clip) -> bool:
    # Older versions of the host have none.
    return getattr(clip.patcher, "forced_hooks", None) is not None or bool(
        getattr(clip, "apply_hooks_to_conds", None)
    )


def signature(patcher) -> str:
    """A quick hash of a patcher's weights and patches: it tells models apart, and LoRAs on them.

    Hooks do not count: training leaves them out.
    """
    digest = hashlib.sha256()
    tensors = patcher.model.state_dict()
    # Whole objects that a node has put in place of the model's own, such as its noise schedule. All
    # branches of a graph share the module: what is in it now may be another branch's.
    for name in {*patcher.object_patches, *patcher.object_patches_backup}:
        tensors = {key: t for key, t in tensors.items() if not key.startswith(f"{name}.")}
        own = patcher.get_model_object(name)
        if isinstance(own, torch.nn.Module):
            tensors |= {f"{name}.{key}": t for key, t in own.state_dict().items()}
    for name, replacement in sorted(patcher.object_patches.items()):
        kinds = [kind.__qualname__ for kind in type(replacement).__mro__]
        digest.update(repr((name, kinds, getattr(replacement, "__qualname__", ""))).encode())
    for name, weight in _set_aside(patcher).items():
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


def _set_aside(patcher) -> dict[str, torch.Tensor]:
    """Weights of the checkpoint that the host keeps beside the module, by name.

    While patches are in the module it keeps the weights without them in `backup`. While hooks are,
    it keeps those without hooks, but with patches, in `hook_backup`.
    """
    hooked = getattr(patcher, "hook_backup", {})
    return {name: kept[0] for name, kept in hooked.items()} | {
        name: kept.weight for name, kept in patcher.backup.items()
    }


def _leaves(value) -> Iterator:
    """What patches are made of: numbers and tensors, of LoRAs, and of whole models merged in."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    elif not isinstance(value, torch.Tensor) and hasattr(value, "weights"):
        yield from _leaves(value.weights)
    else:
        yield value


def own_weight(patcher, key: str) -> torch.Tensor:
    """A weight as the model has it by itself: with merges, without LoRAs and hooks."""
    kept = _set_aside(patcher).get(key)
    weight = comfy.utils.get_attr(patcher.model, key) if kept is None else kept
    weight = (weight.dequantize() if is_quantised(weight) else weight).detach()
    merges = [patch for patch in patcher.patches.get(key, ()) if _is_merge(patch)]
    if not merges:
        return weight
    # In the precision that the host merges in, so that a saved merge has the same values.
    precision = management.lora_compute_dtype(patcher.load_device)
    merged = comfy.lora.calculate_weight(merges, weight.to(precision, copy=True), key)
    return merged.to(weight.dtype)


def _is_merge(patch: tuple) -> bool:
    """Of the host's patches, (strength, change, ...): of a merge the change is the list of what the
    other model's weight is made of."""
    return isinstance(patch[1], list)


def fingerprints(patcher, keys: Iterable[str]) -> dict[str, str]:
    """Hashes of a patcher's own weights (see `own_weight`)."""
    return {key: fingerprint(own_weight(patcher, key)) for key in keys}
