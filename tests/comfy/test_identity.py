"""Whose weights these are, whatever another branch of the graph has put into the shared module."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_erasures import ENCODER, few_shot_that, of_the_encoder

import testbed.model.pack

pytestmark = pytest.mark.usefixtures("node_body")

FC1 = ENCODER.format(0)
PROMPT = "a photo of a cat"


@pytest.fixture(scope="module")
def model(parts: tuple) -> Any:
    return parts[0]


@pytest.fixture
def clip(pack: ModuleType, checkpoint: Path) -> Any:
    return testbed.model.pack.checkpoint(checkpoint)[1]


def other_weights(clip: Any) -> dict[str, torch.Tensor]:
    """A LoRA file's tensors that change two weights a lot."""
    names = [ENCODER.format(layer).removesuffix(".weight") for layer in (0, 2)]
    own = clip.cond_stage_model.state_dict()
    return {f"text_encoders.{name}.diff": own[f"{name}.weight"].float() * 3 for name in names}


def hooked(clip: Any, schedule: bool = False, apply_to_conds: bool = True) -> Any:
    """By the stock node Set CLIP Hooks, with a LoRA as Create Hook LoRA makes it."""
    import comfy.hooks
    from comfy_extras.nodes_hooks import SetClipHooks

    hooks = comfy.hooks.create_hook_lora(other_weights(clip), 1.0, 1.0)
    return SetClipHooks().apply_hooks(clip, schedule, apply_to_conds, hooks)[0]


def with_lora(clip: Any) -> Any:
    import comfy.sd

    return comfy.sd.load_lora_for_models(None, clip, other_weights(clip), 0.0, 1.0)[1]


def encoded(clip: Any) -> torch.Tensor:
    """As CLIP Text Encode does it. Whatever is on the CLIP is then in the shared module."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))[0][0].clone()


def prints(pack: ModuleType, clip: Any) -> dict[str, str]:
    names = [ENCODER.format(layer) for layer in range(4)]
    return pack.nodes.backend.identity.fingerprints(clip.patcher, names)


def trained(pack: ModuleType, parts: tuple, clip: Any) -> Any:
    methods, (model, _, vae) = pack.unlearn.methods.few_shot, parts
    settings = methods.FewShotSettings(max_steps=1, batch=1)
    with pack.nodes.backend.model.ComfyModel(model, clip, vae, (64, 64)).training() as host:
        return methods.few_shot(host, ["cat"], torch.full((1, 64, 64, 3), 0.5), settings)


def test_hooks_are_not_the_weights_of_the_base(pack: ModuleType, clip: Any) -> None:
    on = hooked(clip)
    before, plain = prints(pack, clip), encoded(clip)
    signature = pack.nodes.backend.identity.signature
    signed = signature(clip.patcher)
    assert not torch.allclose(encoded(on), plain)  # the hooks are in the module from here on
    assert prints(pack, clip) == prints(pack, on) == before
    assert signature(clip.patcher) == signature(on.patcher) == signed


def test_hooks_over_a_lora_hide_neither(pack: ModuleType, clip: Any) -> None:
    before = prints(pack, clip)
    on = hooked(with_lora(clip))
    encoded(on)
    assert prints(pack, on) == prints(pack, clip) == before


@pytest.mark.parametrize("schedule", [False, True])
def test_an_erasure_fits_its_checkpoint_while_hooks_are_on(
    pack: ModuleType, clip: Any, schedule: bool
) -> None:
    erasure = of_the_encoder(pack, clip)
    on = hooked(clip, schedule)
    encoded(on)
    for one in (clip, on):
        assert pack.nodes.backend.apply.erased_clip(one, erasure)[1] == ""


def test_an_encoder_of_others_is_compared_with_the_base_and_not_with_hooks(
    pack: ModuleType, clip: Any
) -> None:
    own = clip.cond_stage_model.state_dict()
    other = {key: value.clone() for key, value in own.items()}
    other[FC1] += 1.0
    encoded(hooked(clip))
    found = pack.nodes.backend.apply.foreign_erasure(clip, other, "other.safetensors")
    assert set(found.deltas) == {FC1}
    assert found.delta(FC1).mean().item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("schedule", [False, True])
def test_hooks_are_left_out_of_training_and_stay_on_the_clip(
    pack: ModuleType, parts: tuple, clip: Any, schedule: bool
) -> None:
    on = hooked(clip, schedule)
    with_hooks = encoded(on)
    one, other = trained(pack, parts, on), trained(pack, parts, clip)
    assert one.record["base"] == other.record["base"]
    assert all(torch.equal(one.delta(key), other.delta(key)) for key in other.deltas)
    assert torch.equal(encoded(on), with_hooks)
    result, _ = pack.nodes.backend.apply.erased_clip(on, other)
    assert result.patcher.forced_hooks is not None


def merged(clip: Any, other: Any, ratio: float = 0.3) -> Any:
    from comfy_extras.nodes_model_merging import CLIPMergeSimple

    return CLIPMergeSimple().merge(clip, other, ratio)[0]


def saved(clip: Any) -> Any:
    """The CLIP that a file would give that CLIP Save writes."""
    import comfy.model_management as management

    copy = testbed.model.pack.checkpoint()[1]
    management.load_models_gpu([clip.load_model()], force_patch_weights=True)
    weights = {key: value.clone() for key, value in clip.get_sd().items()}
    management.unload_all_models()
    copy.cond_stage_model.load_state_dict(weights, strict=False)
    return copy


@pytest.fixture
def other(pack: ModuleType, clip: Any) -> Any:
    """An encoder that differs in every weight."""
    copy = testbed.model.pack.checkpoint()[1]
    generator = torch.Generator().manual_seed(0)
    for weight in copy.cond_stage_model.parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.add_((0.01 * noise).to(weight))
    return copy


@pytest.mark.parametrize("loaded", [False, True], ids=["not loaded", "loaded"])
def test_a_merge_is_a_base_of_its_own_and_its_saved_file_is_the_same(
    pack: ModuleType, clip: Any, other: Any, loaded: bool
) -> None:
    merge = merged(clip, other)
    file = saved(merge)
    if loaded:
        encoded(merge)
    erasure = of_the_encoder(pack, merge)
    erased_clip = pack.nodes.backend.apply.erased_clip
    assert erased_clip(merge, erasure)[1] == ""
    assert erased_clip(file, erasure)[1] == ""
    assert "1 of 1 weights differ" in erased_clip(clip, erasure)[1]
    assert "1 of 1 weights differ" in erased_clip(other, erasure)[1]
    assert prints(pack, merge) == prints(pack, file)


def test_a_lora_on_a_merge_is_not_of_the_base(pack: ModuleType, clip: Any, other: Any) -> None:
    merge = merged(clip, other)
    before = prints(pack, merge)
    on = with_lora(merge)
    encoded(on)
    assert prints(pack, on) == prints(pack, merge) == before


def test_a_whole_model_that_is_added_or_subtracted_is_of_the_base(
    pack: ModuleType, clip: Any, other: Any
) -> None:
    from comfy_extras.nodes_model_merging import CLIPAdd, CLIPSubtract

    difference = CLIPSubtract().merge(other, clip, 1.0)[0]
    total = CLIPAdd().merge(clip, difference)[0]
    assert prints(pack, total) != prints(pack, clip)
    assert prints(pack, total) == prints(pack, saved(total))


def test_a_training_says_that_it_leaves_hooks_out(pack: ModuleType, model: Any, clip: Any) -> None:
    def said(connected: Any, prefix: str) -> str:
        training = pack.nodes.training.TrainingRun(
            method=few_shot_that(pack, lambda *_: of_the_encoder(pack, clip, loss=[1.0])),
            concepts=["cat"],
            settings=pack.unlearn.methods.few_shot.FewShotSettings(),
            model=model,
            clip=connected,
            size=64,
            prefix=prefix,
            verdict=False,
        )
        return training.run(None)[2]

    assert "The hooks on this CLIP were left out" in said(hooked(clip), "hooks")
    assert "hooks" not in said(clip, "no_hooks")
