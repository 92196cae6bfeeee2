"""Models whose weights stay in place during a run.

With dynamic VRAM, which the host turns on by itself on most NVIDIA cards, it copies a layer's
weight to the card when the layer runs, and may overwrite it right after. A backward pass needs the
weight again. So for a training or an attack the model is loaded from its file a second time,
without dynamic VRAM and with the same patches. The second copy lasts as long as the run.
"""

from __future__ import annotations

import weakref

SECOND_COPIES: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
"""From the host's model to a weak reference to the patcher of its second copy. A run may use
several patchers of one model, with and without an erasure; they share the second copy."""


def static_model(patcher):
    """The MODEL itself, or a second copy of it if its weights are dynamic.

    Raises ValueError if the host does not know which file the model is from.
    """
    if not _is_dynamic(patcher):
        return patcher
    if patcher.cached_patcher_init is None:
        raise ValueError(
            "Dynamic VRAM is on, so ComfyUI must load this model from its file a second time to "
            "train it, and it does not know the file. Use one of ComfyUI's own loaders, or start "
            "ComfyUI with --disable-dynamic-vram."
        )
    fresh = SECOND_COPIES.get(patcher.model, lambda: None)()
    if fresh is None:
        load, given, *place = patcher.cached_patcher_init
        fresh = load(*given, disable_dynamic=True)
        fresh = fresh[place[0]] if place else fresh
        SECOND_COPIES[patcher.model] = weakref.ref(fresh)
    copy = patcher.clone(disable_dynamic=True, model_override=fresh.get_clone_model_override())
    # The host may have loaded the model for `fresh`. Without this reference it reports a leak.
    copy.fresh = fresh
    return copy


def static_clip(clip):
    """`static_model` for a CLIP."""
    if not _is_dynamic(clip.patcher):
        return clip
    copy = clip.clone()
    copy.patcher = static_model(clip.patcher)
    copy.cond_stage_model = copy.patcher.model
    return copy


def _is_dynamic(patcher) -> bool:
    # Older hosts have no such method.
    return getattr(patcher, "is_dynamic", bool)()
