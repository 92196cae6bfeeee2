"""Models whose weights stay where they are while they are used.

With its dynamic VRAM, which it turns on by itself on most of NVIDIA's cards, the host brings a
layer's weight to the card when the layer runs, and may put another in its place right after. A
backward pass needs the weight again. So what is trained or attacked is the same model as the host
loads it without that: read from its file once more, with the same patches, for as long as a run
lasts.
"""

from __future__ import annotations

import weakref

LOADED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
"""The host's model -> a weak reference to the patcher of its other one. A run may use several
patchers of one model, with and without an erasure: they share that, too."""


def static_model(patcher):
    """A MODEL as it is, or, where its weights come and go, one whose weights do not.

    Raises ValueError where the host cannot say which file it is from.
    """
    if not _comes_and_goes(patcher):
        return patcher
    if patcher.cached_patcher_init is None:
        raise ValueError(
            "Where dynamic VRAM is on, ComfyUI must load what is trained from its file once more, "
            "and does not know this model's file; use one of its own loaders, or start it with "
            "--disable-dynamic-vram."
        )
    fresh = LOADED.get(patcher.model, lambda: None)()
    if fresh is None:
        load, given, *place = patcher.cached_patcher_init
        fresh = load(*given, disable_dynamic=True)
        fresh = fresh[place[0]] if place else fresh
        LOADED[patcher.model] = weakref.ref(fresh)
    copy = patcher.clone(disable_dynamic=True, model_override=fresh.get_clone_model_override())
    # The host may have loaded the model for this patcher, and counts it as leaked without it.
    copy.fresh = fresh
    return copy


def static_clip(clip):
    """The same of a CLIP."""
    if not _comes_and_goes(clip.patcher):
        return clip
    copy = clip.clone()
    copy.patcher = static_model(clip.patcher)
    copy.cond_stage_model = copy.patcher.model
    return copy


def _comes_and_goes(patcher) -> bool:
    # Older versions of the host do not ask.
    return getattr(patcher, "is_dynamic", bool)()
