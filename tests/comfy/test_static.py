"""Where the host's dynamic VRAM is on, what is trained is a model whose weights stay in place."""

from __future__ import annotations

import gc
from types import ModuleType

import pytest
import torch

import testbed.model.drawings
import testbed.model.pack


@pytest.fixture
def dynamic(host: ModuleType, monkeypatch: pytest.MonkeyPatch) -> tuple:
    """IconCanvas by the host's loader, which takes its patchers for dynamic ones.

    The real ones need a card. These load nothing by themselves; what is asked of them here, and how
    the host makes a static one, is the same.
    """
    import comfy.model_patcher

    class Dynamic(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self) -> bool:
            return True

    *_, vae = testbed.model.pack.checkpoint()  # which no gradient goes through
    with monkeypatch.context() as patch:
        patch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic)
        model, clip, _ = testbed.model.pack.checkpoint()
    assert model.is_dynamic()
    assert clip.patcher.is_dynamic()
    return model, clip, vae


def erased(pack: ModuleType, parts: tuple):
    few_shot = pack.unlearn.methods.few_shot
    with torch.inference_mode():
        model = pack.nodes.backend.model.ComfyModel(*parts, size=(64, 64))
        assert not model.patcher.is_dynamic()
        assert not model.clip.patcher.is_dynamic()
        assert model.encoder is model.clip.patcher.model
        shots = testbed.model.drawings.of("fox")[:1]
        with model.training():
            return few_shot.few_shot(
                model, ["fox"], shots, few_shot.FewShotSettings(max_steps=2, batch=1), None
            )


def test_trained_is_the_same_model_loaded_anew(pack: ModuleType, dynamic: tuple) -> None:
    found, plain = erased(pack, dynamic), erased(pack, testbed.model.pack.checkpoint())
    assert found.record["base"] == plain.record["base"]
    for key in plain.deltas:
        assert torch.equal(found.delta(key), plain.delta(key))


def test_it_has_the_patches_and_leaves_the_users_model_alone(
    pack: ModuleType, dynamic: tuple
) -> None:
    model, clip, vae = dynamic
    erasure = erased(pack, dynamic)
    patched, warning = pack.nodes.backend.apply.erased_clip(clip, erasure)
    assert not warning
    again = pack.nodes.backend.model.ComfyModel(model, patched, vae, size=(64, 64))
    assert again.clip.patcher.patches.keys() == erasure.deltas.keys()
    assert again.patcher is not model
    assert not model.patches
    assert model.model is not again.network


@pytest.mark.slow
def test_several_patchers_of_a_model_share_what_was_loaded(
    pack: ModuleType, dynamic: tuple
) -> None:
    model, clip, vae = dynamic
    loaded = []
    load, *rest = model.cached_patcher_init
    model.cached_patcher_init = (
        lambda *given, **how: loaded.append(1) or load(*given, **how),
        *rest,
    )
    one = pack.nodes.backend.model.ComfyModel(model, clip, vae, size=(64, 64))
    other = pack.nodes.backend.model.ComfyModel(model.clone(), clip.clone(), vae, size=(64, 64))
    assert other.network is one.network
    assert other.encoder is one.encoder
    assert len(loaded) == 1
    del one, other
    gc.collect()
    pack.nodes.backend.model.ComfyModel(model, clip, vae, size=(64, 64))
    assert len(loaded) == 2, "it lives as long as what uses it"


def test_a_model_of_no_known_file_gets_a_sentence(pack: ModuleType, dynamic: tuple) -> None:
    model, clip, vae = dynamic
    model.cached_patcher_init = None
    with pytest.raises(ValueError, match="Use one of ComfyUI's own loaders") as error:
        pack.nodes.backend.model.ComfyModel(model, clip, vae)
    assert "\n" not in str(error.value)
