"""ComfyModel and the erased CLIP inside the real ComfyUI: what trains, what fits, what stays.

All of it runs under inference mode, as the bodies of nodes do.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import testbed.model.pack
from testbed.model import drawings

pytestmark = pytest.mark.usefixtures("node_body", "small_runs")

SIZE = (64, 64)
LAYER = "clip_l.transformer.text_model.encoder.layers"


class Broken(Exception):
    """Something that goes wrong in the middle of a training."""


@dataclass(frozen=True)
class Loaded:
    """What the stock checkpoint loader returns."""

    model: Any
    clip: Any
    vae: Any


@pytest.fixture(scope="module")
def loaded(parts: tuple) -> Loaded:
    return Loaded(*parts)


def comfy_model(pack: ModuleType, loaded: Loaded, **options: Any) -> Any:
    return pack.nodes.backend.model.ComfyModel(
        loaded.model, loaded.clip, loaded.vae, size=SIZE, **options
    )


def pictures() -> torch.Tensor:
    """Two of a cat, to learn from. Where the model draws them, that takes most of a short run."""
    return drawings.of("cat")[:2]


def train(
    pack: ModuleType,
    loaded: Loaded,
    concept: str = "cat",
    on_step: Callable | None = None,
    checkpointing: bool = False,
    **settings: Any,
) -> Any:
    """An erasure after a few steps: enough to move the conditioning, not to erase."""
    methods = pack.unlearn.methods.few_shot
    options = methods.FewShotSettings(**{"max_steps": 2, "shots": 2, **settings})
    with comfy_model(pack, loaded, checkpointing=checkpointing).training() as model:
        return methods.few_shot(model, [concept], pictures(), options, on_step)


@pytest.fixture(scope="module")
def erasure(pack: ModuleType, loaded: Loaded) -> Any:
    with torch.inference_mode():
        return train(pack, loaded)


@pytest.fixture(scope="module")
def low_rank(pack: ModuleType, loaded: Loaded) -> Any:
    with torch.inference_mode():
        return train(pack, loaded, rank=4)


def conditioning(clip: Any, prompt: str = "a photo of a cat") -> torch.Tensor:
    return clip.encode_from_tokens(clip.tokenize(prompt)).clone()


def weights(clip: Any) -> dict[str, torch.Tensor]:
    """The encoder's weights as this CLIP has them, patches applied."""
    clip.load_model()
    return {key: value.clone() for key, value in clip.cond_stage_model.state_dict().items()}


def sampled(loaded: Loaded, clip: Any = None, steps: int = 3) -> torch.Tensor:
    """Latents by the stock KSampler, 64 x 64 pixels."""
    import nodes

    clip = clip or loaded.clip
    encode = nodes.CLIPTextEncode().encode
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    positive, negative = encode(clip, "a photo of a cat")[0], encode(clip, "")[0]
    return nodes.common_ksampler(
        loaded.model, 5, steps, 7.5, "dpmpp_2m", "karras", positive, negative, latent
    )[0]["samples"]


def unchanged(now: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether all elements are what they were. What the checkpoint lacks (OFTEN_MISSING) is
    uninitialised memory, and may be NaN."""
    return torch.allclose(now, before, rtol=0, atol=0, equal_nan=True)


@contextmanager
def untouched(loaded: Loaded, same_objects: bool = True) -> Iterator[None]:
    """Checks that the block leaves the modules and all they compute exactly as they were.

    Where a LoRA or an erasure was applied and taken off again, the host itself has put new
    Parameter objects and lists in place, of the same values.
    """
    import comfy.model_management

    roots = (loaded.model.model, loaded.clip.cond_stage_model)
    outputs = conditioning(loaded.clip), sampled(loaded)
    modules = [module for root in roots for module in root.modules()]
    tables = [table for module in modules for table in (module._parameters, module._buffers)]
    tensors = [dict(table) for table in tables]
    values = [{k: v.clone() for k, v in table.items() if v is not None} for table in tables]
    functions = [getattr(module, "weight_function", None) for module in modules]
    forwards = [vars(module).get("forward") for module in modules]
    yield
    if not same_objects:
        conditioning(loaded.clip)  # the host takes off what it had put on the weights
    for table, before, copies in zip(tables, tensors, values, strict=True):
        assert table.keys() == before.keys()
        assert not same_objects or all(table[name] is before[name] for name in before)
        assert all(unchanged(table[name], copies[name]) for name in copies)
    for module, function, forward in zip(modules, functions, forwards, strict=True):
        now = getattr(module, "weight_function", None)
        assert now is function if same_objects else now == function
        assert vars(module).get("forward") is forward
    assert not comfy.model_management.in_training
    assert torch.equal(conditioning(loaded.clip), outputs[0])
    assert torch.equal(sampled(loaded), outputs[1])


# ComfyModel computes what the host computes


@pytest.mark.parametrize(
    "prompts",
    [
        ["a cat", "a dog in ink style", ""],
        ["a cat and " * 60, "a dog"],
    ],
    ids=["plain", "long"],
)
def test_prompts_encode_as_the_stock_node_does(
    pack: ModuleType, loaded: Loaded, prompts: list[str]
) -> None:
    with comfy_model(pack, loaded).training() as model:
        cross = model.encode(prompts).cross.detach()
    for prompt, encoded in zip(prompts, cross, strict=True):
        alone = conditioning(loaded.clip, prompt)[0]
        assert torch.allclose(encoded[: len(alone)], alone, atol=1e-5)
        assert not encoded[len(alone) :].any()


def test_parentheses_are_words_and_no_weights(pack: ModuleType, loaded: Loaded) -> None:
    """As the stock node encodes them escaped."""
    with comfy_model(pack, loaded).training() as model:
        (encoded,) = model.encode(["a (cat:1.4) on a bicycle"]).cross.detach()
    escaped = conditioning(loaded.clip, r"a \(cat:1.4\) on a bicycle")[0]
    weighted = conditioning(loaded.clip, "a (cat:1.4) on a bicycle")[0]
    assert torch.allclose(encoded, escaped, atol=1e-5)
    assert not torch.allclose(encoded, weighted, atol=1e-2)


def test_noised_and_target_are_the_schedules(pack: ModuleType, loaded: Loaded) -> None:
    x0, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    t = torch.tensor([0.0, 500.0, 999.0])
    alphas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square().neg().add(1).cumprod(0)
    kept = alphas[t.long()].view(3, 1, 1, 1)
    with comfy_model(pack, loaded).training() as model:
        x_t, target = model.add_noise(x0, noise, t), model.target(x0, noise, t)
    # The host's x_t is the textbook's divided by the share of x0 in it.
    textbook = kept.sqrt() * x0 + (1 - kept).sqrt() * noise
    assert torch.allclose(x_t * kept.sqrt(), textbook, atol=1e-3)
    assert torch.allclose(target, noise, atol=1e-3)


def test_without_gradients_all_is_computed_alike(pack: ModuleType, loaded: Loaded) -> None:
    found = []
    for gradients in (True, False):
        with comfy_model(pack, loaded).training(gradients=gradients) as model:
            prompts = model.encode(["a fox", ""])
            assert torch.is_grad_enabled() is gradients
            noise = model.noise(2, torch.Generator().manual_seed(0))
            found.append(model.predict(noise, torch.tensor([300.0, 700.0]), prompts).detach())
    assert torch.allclose(*found, atol=1e-5)


def test_prediction_is_the_unets_own(pack: ModuleType, loaded: Loaded) -> None:
    x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 700.0])
    with comfy_model(pack, loaded).training() as model, torch.no_grad():
        both = model.encode(["a cat", "a dog"])
        predicted = model.predict(x_t, t, both)
        sigma = model.network.model_sampling.sigma(t).view(2, 1, 1, 1)
        scaled = x_t / (sigma**2 + 1).sqrt()
        raw = model.network.diffusion_model(scaled, t, context=both.cross)
    assert torch.allclose(predicted, raw, atol=1e-4)


def test_patches_that_ask_the_sampler_are_told(pack: ModuleType, loaded: Loaded) -> None:
    """As while a picture is drawn; else training on such a MODEL would end with a KeyError."""
    from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    guided = SelfAttentionGuidance.execute(loaded.model, 0.5, 2.0).result[0]
    small = PatchModelAddDownscale.execute(
        loaded.model, 3, 2.0, 0.0, 1.0, True, "bicubic", "bicubic"
    ).result[0]
    x_t, t = torch.randn(1, 4, 8, 8), torch.tensor([700.0])
    found = []
    for patched in (loaded.model, guided, small):
        asked = comfy_model(pack, replace(loaded, model=patched))
        with asked.training() as model, torch.no_grad():
            found.append(model.predict(x_t, t, model.encode(["a cat"])))
    # What it does, it does between two predictions; but it has an attention of its own.
    assert torch.allclose(found[1], found[0], atol=1e-4)
    assert not torch.allclose(found[2], found[0])


def test_samples_are_the_stock_samplers(pack: ModuleType, loaded: Loaded) -> None:
    with comfy_model(pack, loaded).training() as model:
        latents = model.sample(["a photo of a cat"], seed=5, steps=4)
        picture = model.decode_latents(latents)
    stock = sampled(loaded, steps=4)
    assert torch.allclose(loaded.model.model.process_latent_out(latents), stock, atol=1e-4)
    assert torch.allclose(picture, loaded.vae.decode(stock).clamp(0, 1), atol=1e-4)
    assert picture.shape == (1, 64, 64, 3)


def test_latents_are_the_stock_autoencoders(pack: ModuleType, loaded: Loaded) -> None:
    images = torch.rand(2, 128, 128, 4)
    with comfy_model(pack, loaded).training() as model:
        latents = model.encode_images(images)
    stock = loaded.model.model.process_latent_in(loaded.vae.encode(images[..., :3]))
    assert torch.allclose(latents, stock, atol=1e-5)  # it encodes both at once


def test_a_drawn_latent_is_the_hosts_mean_and_its_deviation_times_noise(pack: ModuleType) -> None:
    """IconCanvas's autoencoder says no variance, so this is Stable Diffusion's kind, made small."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    sizes = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "z_channels": 4, "double_z": True}
    fixed = {"in_channels": 3, "out_ch": 3, "resolution": 16, "attn_resolutions": [], "dropout": 0}
    network = AutoencoderKL(ddconfig={**sizes, **fixed}, embed_dim=4)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    drawn_from = pack.nodes.backend.autoencoder.drawn_from
    vae, picture = SimpleNamespace(first_stage_model=network), torch.rand(1, 3, 16, 16)
    moments = network.quant_conv(network.encoder(picture))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    by_hand = moments[:, :4] + (moments[:, 4:] / 2).exp() * noise
    with drawn_from(vae, torch.Generator().manual_seed(3)):
        assert torch.allclose(network.encode(picture), by_hand, atol=1e-5)
    with drawn_from(vae, None):
        assert torch.equal(network.encode(picture), moments[:, :4])
    assert torch.equal(network.encode(picture), moments[:, :4])


def test_encoder_with_a_lora_trains_as_it_is(
    pack: ModuleType, loaded: Loaded, erasure: Any
) -> None:
    patched, _ = pack.nodes.backend.apply.erased_clip(loaded.clip, erasure)
    other = Loaded(loaded.model, patched, loaded.vae)
    with comfy_model(pack, other).training() as model, model.edit("encoder", "mlp") as edit:
        with edit.off():
            encoded = model.encode(["a photo of a cat"]).cross
        assert torch.allclose(encoded, conditioning(patched), atol=1e-5)
        base = model.fingerprints(["clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"])
    assert base.items() <= erasure.record["base"].items(), "the checkpoint's, not the LoRA's"


# Gradients


def gradients(pack: ModuleType, loaded: Loaded, checkpointing: bool, **options: Any) -> dict:
    """Of the denoising loss by each delta, for one fixed batch."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    t = torch.tensor([300.0, 600.0])
    with comfy_model(pack, loaded, checkpointing=checkpointing).training() as model:
        x_t, target = model.add_noise(x0.clone(), noise.clone(), t.clone()), noise.clone()
        with model.edit("encoder", options.get("select", "mlp-final-attn")) as edit:
            both = model.encode(["a photo of a cat", "a photo of the cool cat"])
            loss = (model.predict(x_t, t.clone(), both) - target).square().mean()
            loss.backward()
            return {key: delta.full.grad for key, delta in edit.deltas.items()}


def test_gradients_reach_exactly_the_selected_weights(pack: ModuleType, loaded: Loaded) -> None:
    found = gradients(pack, loaded, checkpointing=False)
    names = {f"{LAYER}.{i}.mlp.{name}" for i in range(4) for name in ("fc1", "fc2")}
    names |= {f"{LAYER}.3.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    assert set(found) == {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    for key, gradient in found.items():
        assert gradient is not None, key
        assert gradient.isfinite().all(), key
        # Keys' biases shift all scores of a query alike, which the softmax does not see.
        assert gradient.abs().max() > 0 or key.endswith("k_proj.bias"), key


def test_frozen_parameters_take_no_gradient(pack: ModuleType, loaded: Loaded) -> None:
    gradients(pack, loaded, checkpointing=False)
    for root in (loaded.model.model, loaded.clip.cond_stage_model):
        assert all(p.grad is None for p in root.parameters())


@pytest.mark.parametrize("select", ["mlp-final-attn", "all"])
def test_checkpointed_gradients_equal_unchecked_ones(
    pack: ModuleType, loaded: Loaded, select: str
) -> None:
    plain = gradients(pack, loaded, checkpointing=False, select=select)
    again = gradients(pack, loaded, checkpointing=True, select=select)
    largest = max(float(g.abs().max()) for g in plain.values() if g is not None)
    for key, gradient in plain.items():
        assert (gradient is None) == (again[key] is None), key
        if gradient is not None:
            assert torch.allclose(again[key], gradient, rtol=1e-3, atol=1e-4 * largest), key


def test_all_trains_embeddings_and_norms(pack: ModuleType, loaded: Loaded) -> None:
    found = gradients(pack, loaded, checkpointing=False, select="all")
    root = "clip_l.transformer.text_model"
    for name in ("embeddings.token_embedding", "final_layer_norm", "encoder.layers.0.layer_norm1"):
        assert found[f"{root}.{name}.weight"].abs().max() > 0


def test_edit_that_is_off_is_the_original_exactly(pack: ModuleType, loaded: Loaded) -> None:
    original = conditioning(loaded.clip)
    with (
        comfy_model(pack, loaded).training() as model,
        model.edit("encoder", "mlp-final-attn") as edit,
    ):
        for delta in edit.deltas.values():
            delta.full.data.fill_(0.01)
        with edit.off():
            off = model.encode(["a photo of a cat"]).cross
        on = model.encode(["a photo of a cat"]).cross.detach()
    assert torch.equal(off, original)
    assert not torch.allclose(on, original, atol=1e-3)


# Nothing stays behind


def finish(*step: Any) -> None:
    pass


def cancel(*step: Any) -> None:
    import comfy.model_management

    raise comfy.model_management.InterruptProcessingException


def fail(*step: Any) -> None:
    raise Broken


@pytest.mark.parametrize(
    ("on_step", "checkpointing"),
    [
        (finish, False),
        (cancel, True),
        (fail, True),
        pytest.param(finish, True, marks=pytest.mark.slow),
        pytest.param(cancel, False, marks=pytest.mark.slow),
        pytest.param(fail, False, marks=pytest.mark.slow),
    ],
)
def test_training_leaves_everything_as_it_was(
    pack: ModuleType, loaded: Loaded, on_step: Callable, checkpointing: bool
) -> None:
    import comfy.model_management

    with untouched(loaded):
        try:
            train(pack, loaded, on_step=on_step, checkpointing=checkpointing, max_steps=2)
        except (Broken, comfy.model_management.InterruptProcessingException):
            assert on_step is not finish
        else:
            assert on_step is finish


def test_loss_that_is_not_finite_leaves_everything_as_it_was(
    pack: ModuleType, loaded: Loaded
) -> None:
    with untouched(loaded), pytest.raises(FloatingPointError, match="The loss became"):
        train(pack, loaded, mode="paper", learning_rate=1e30)


def test_applying_leaves_the_original_as_it_was(
    pack: ModuleType, loaded: Loaded, erasure: Any
) -> None:
    original, before = conditioning(loaded.clip), weights(loaded.clip)
    erased, _ = pack.nodes.backend.apply.erased_clip(loaded.clip, erasure)
    assert not torch.equal(conditioning(erased), original)
    assert torch.equal(conditioning(loaded.clip), original)
    after = weights(loaded.clip)
    assert all(unchanged(after[key], value) for key, value in before.items())


def test_aliases_share_the_weights_memory(pack: ModuleType, loaded: Loaded) -> None:
    encoder = loaded.clip.cond_stage_model
    before = dict(encoder.named_parameters())
    with torch.inference_mode(False), pack.nodes.backend.aliasing.aliased([encoder]):
        for name, parameter in encoder.named_parameters():
            assert parameter.data_ptr() == before[name].data_ptr()
            assert not parameter.is_inference()
            assert not parameter.requires_grad
    assert all(parameter is before[name] for name, parameter in encoder.named_parameters())


def test_weight_functions_of_others_stay_and_come_first(pack: ModuleType, loaded: Loaded) -> None:
    key = f"{LAYER}.0.mlp.fc1.weight"
    module = loaded.clip.cond_stage_model.get_submodule(key.removesuffix(".weight"))
    edit = pack.unlearn.core.edit.Edit({key: module.weight}, rank=0)
    others = [lambda weight: weight * 2]
    before, module.weight_function = module.weight_function, others
    try:
        clip = loaded.clip
        with pack.nodes.backend.patching.edited(clip.patcher, clip.cond_stage_model, edit, ""):
            edit.deltas[key].full.data.fill_(1.0)
            value = torch.ones(1)
            for function in module.weight_function:
                value = function(value)
            assert torch.equal(value, torch.full(module.weight.shape, 3.0))
        assert module.weight_function is others
    finally:
        module.weight_function = before


def test_another_extensions_forward_survives_checkpointing(pack: ModuleType) -> None:
    block = torch.nn.Linear(2, 2)
    root = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([block])})

    def theirs(x: torch.Tensor) -> torch.Tensor:
        return x + 7

    block.forward = theirs
    with pack.nodes.backend.recompute.checkpointed([root]):
        assert torch.equal(block(torch.zeros(1)), torch.full((1,), 7.0))
    assert block.forward is theirs


# Which layers are read


def test_clip_skip_gives_no_delta_to_a_layer_that_is_not_read(
    pack: ModuleType, loaded: Loaded
) -> None:
    skipped = loaded.clip.clone()
    skipped.clip_layer(-2)
    result = train(pack, Loaded(loaded.model, skipped, loaded.vae), max_steps=2)
    assert not [key for key in result.deltas if key.startswith(f"{LAYER}.3.")]
    assert f"{LAYER}.2.self_attn.q_proj.weight" in result.deltas
    assert f"{LAYER}.2.mlp.fc1.weight" in result.deltas


def test_same_seed_same_erasure_in_the_host(pack: ModuleType, loaded: Loaded, erasure: Any) -> None:
    again = train(pack, loaded)
    assert set(again.deltas) == set(erasure.deltas)
    assert all(torch.equal(again.delta(key), erasure.delta(key)) for key in erasure.deltas)


# Strength


def assert_close_to(after: torch.Tensor, wanted: torch.Tensor, original: torch.Tensor) -> None:
    """The same to fp16 rounding, as measured against how far the erasure moves it."""
    moved = (wanted - original).norm()
    assert moved > 0.002 * original.norm(), "a test on a change too small to see"
    assert (after - wanted).norm() < 0.03 * moved


def test_strength_zero_is_the_original_exactly(
    pack: ModuleType, loaded: Loaded, erasure: Any
) -> None:
    same, warning = pack.nodes.backend.apply.erased_clip(loaded.clip, erasure, 0.0)
    assert torch.equal(conditioning(same), conditioning(loaded.clip))
    assert warning == ""


@pytest.mark.parametrize(
    ("kind", "strength"), [("full", -1.0), ("full", 0.5), ("low rank", 1.0), ("low rank", 2.0)]
)
def test_weights_change_in_proportion_to_strength(
    pack: ModuleType, loaded: Loaded, erasure: Any, low_rank: Any, kind: str, strength: float
) -> None:
    chosen = erasure if kind == "full" else low_rank
    before = weights(loaded.clip)
    after = weights(pack.nodes.backend.apply.erased_clip(loaded.clip, chosen, strength)[0])
    for key, value in before.items():
        wanted = value
        if key in chosen.deltas:
            change = strength * chosen.delta(key).view(value.shape)
            wanted = (value.float() + change).to(value.dtype)
        # A unit in the last place of fp16.
        now = after[key].float()
        # What the checkpoint lacks is uninitialised memory and may be NaN.
        assert torch.allclose(now, wanted.float(), 2**-10, 2**-20, equal_nan=True), key


def test_minus_one_after_one_restores(pack: ModuleType, loaded: Loaded, erasure: Any) -> None:
    original = conditioning(loaded.clip)
    erased, _ = pack.nodes.backend.apply.erased_clip(loaded.clip, erasure, 1.0)
    moved = (conditioning(erased) - original).norm()
    restored, _ = pack.nodes.backend.apply.erased_clip(erased, erasure, -1.0)
    assert (conditioning(restored) - original).norm() < 0.03 * moved


def test_stacked_erasures_equal_their_combination(
    pack: ModuleType, loaded: Loaded, erasure: Any, low_rank: Any
) -> None:
    erased_clip = pack.nodes.backend.apply.erased_clip
    stacked, _ = erased_clip(erased_clip(loaded.clip, erasure)[0], low_rank)
    together, _ = erased_clip(loaded.clip, pack.unlearn.core.erasure.combine([erasure, low_rank]))
    original = conditioning(loaded.clip)
    assert_close_to(conditioning(stacked), conditioning(together), original)


# The file, and the stock loader


@pytest.mark.parametrize("kind", ["full", "low rank"])
def test_file_gives_what_training_gave(
    pack: ModuleType, loaded: Loaded, erasure: Any, low_rank: Any, kind: str, tmp_path: Path
) -> None:
    chosen = erasure if kind == "full" else low_rank
    chosen.save(tmp_path / "a.safetensors")
    from_file = pack.unlearn.core.erasure.Erasure.load(tmp_path / "a.safetensors")
    trained, _ = pack.nodes.backend.apply.erased_clip(loaded.clip, chosen)
    read, warning = pack.nodes.backend.apply.erased_clip(loaded.clip, from_file)
    assert_close_to(conditioning(read), conditioning(trained), conditioning(loaded.clip))
    assert warning == ""


@pytest.mark.parametrize("strength", [1.0, -0.5])
@pytest.mark.parametrize("kind", ["full", "low rank"])
def test_stock_lora_loader_gives_the_same(
    pack: ModuleType,
    loaded: Loaded,
    erasure: Any,
    low_rank: Any,
    kind: str,
    strength: float,
    tmp_path: Path,
) -> None:
    import comfy.sd
    import comfy.utils

    file = tmp_path / "a.safetensors"
    (erasure if kind == "full" else low_rank).save(file)
    lora = comfy.utils.load_torch_file(str(file), safe_load=True)
    _, stock = comfy.sd.load_lora_for_models(loaded.model, loaded.clip, lora, 1.0, strength)
    from_file = pack.unlearn.core.erasure.Erasure.load(file)
    ours, _ = pack.nodes.backend.apply.erased_clip(loaded.clip, from_file, strength)
    wanted = conditioning(stock)
    assert_close_to(conditioning(ours), wanted, conditioning(loaded.clip))


def test_erasure_of_every_weight_is_taken_whole(pack: ModuleType, loaded: Loaded) -> None:
    everything = train(pack, loaded, mode="paper", trainable="all", epochs=1)
    erased, _ = pack.nodes.backend.apply.erased_clip(loaded.clip, everything)
    assert set(everything.deltas) <= set(erased.patcher.patches)


# Does it fit


def with_base(erasure: Any, **changed: str) -> Any:
    base = {**erasure.record["base"], **changed}
    return type(erasure)(erasure.deltas, {**erasure.record, "base": base})


def test_another_base_gets_a_warning_and_still_loads(
    pack: ModuleType, loaded: Loaded, erasure: Any
) -> None:
    key = f"{LAYER}.0.mlp.fc1.weight"
    other = with_base(erasure, **{key: "0123456789abcdef"})
    erased, warning = pack.nodes.backend.apply.erased_clip(loaded.clip, other)
    assert warning.startswith(f"Warning: 1 of {len(erasure.deltas)} weights differ from those")
    assert not torch.equal(conditioning(erased), conditioning(loaded.clip))


def test_lora_on_the_same_base_gets_no_warning(
    pack: ModuleType, loaded: Loaded, erasure: Any, low_rank: Any
) -> None:
    patched, _ = pack.nodes.backend.apply.erased_clip(loaded.clip, low_rank)
    conditioning(patched)  # its weights are now those in memory
    _, warning = pack.nodes.backend.apply.erased_clip(patched, erasure)
    assert warning == ""


def wider(erasure: Any) -> Any:
    deltas = {
        key: {"diff": torch.zeros([2 * n for n in erasure.delta(key).shape])}
        for key in erasure.deltas
    }
    return type(erasure)(deltas, erasure.record)


def deeper(erasure: Any) -> Any:
    key = f"{LAYER}.11.mlp.fc1.weight"
    return type(erasure)({key: {"diff": torch.zeros(768, 192)}}, erasure.record)


def of_t5(erasure: Any) -> Any:
    key = "t5xxl.transformer.encoder.block.0.layer.1.DenseReluDense.wo.weight"
    return type(erasure)({key: {"diff": torch.zeros(4, 4)}}, erasure.record)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (wider, 'The erasure of "cat" is for a text encoder of another size'),
        (deeper, 'The erasure of "cat" is for another text encoder: this one has no .*layers.11'),
        (of_t5, 'The erasure of "cat" is for another text encoder: this one has no t5xxl'),
    ],
)
def test_erasure_of_another_encoder_is_refused(
    pack: ModuleType, loaded: Loaded, erasure: Any, change: Callable, sentence: str
) -> None:
    for strength in (0.0, 1.0):
        with pytest.raises(pack.unlearn.core.erasure.ErasureError, match=sentence) as error:
            pack.nodes.backend.apply.erased_clip(loaded.clip, change(erasure), strength)
        assert "\n" not in str(error.value)


# Whole encoders that others erased


def others_encoder(clip: Any, prefix: str) -> tuple[dict[str, torch.Tensor], dict]:
    """A whole encoder in another tool's layout, two of its weights changed; and the changes."""
    own, root = weights(clip), "clip_l.transformer."
    changes = {
        f"{LAYER}.1.mlp.fc2.weight": torch.full((192, 768), 0.0625),
        f"{LAYER}.3.self_attn.q_proj.bias": torch.full((192,), 0.25),
    }
    tensors = {}
    for key, value in own.items():
        if key.startswith(root):
            tensors[prefix + key.removeprefix(root)] = value.float() + changes.get(key, 0)
    # The float32 sum rounds, so the changes are what a reader finds.
    tensors[prefix + "text_projection.weight"] = torch.full((192, 192), 9.0)  # read by nothing
    found = {key: tensors[prefix + key.removeprefix(root)] - own[key].float() for key in changes}
    return tensors, found


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "clip_l.transformer.",
        "text_encoders.clip_l.transformer.",
        "cond_stage_model.transformer.",
        "text_encoder.",
    ],
    ids=["CLIPSave and Hugging Face", "one encoder", "checkpoint", "old checkpoint", "pipeline"],
)
def test_encoder_that_others_erased_loads_as_its_difference(
    pack: ModuleType, loaded: Loaded, prefix: str, tmp_path: Path
) -> None:
    tensors, changes = others_encoder(loaded.clip, prefix)
    # Hugging Face keeps this table beside the weights.
    tensors[prefix + "text_model.embeddings.position_ids"] = torch.arange(77)[None]
    file = tmp_path / "theirs.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, file)
    read = pack.nodes.erasures.read(loaded.clip, file)
    assert set(read.deltas) == set(changes)
    assert all(torch.equal(read.delta(key), change) for key, change in changes.items())
    assert read.concepts == []  # a file does not say what was erased


@pytest.mark.parametrize("prefix", ["", "clip_l.transformer.", "text_encoder."])
def test_encoder_that_others_erased_may_lack_the_level_text_model(
    pack: ModuleType, loaded: Loaded, prefix: str, tmp_path: Path
) -> None:
    tensors, changes = others_encoder(loaded.clip, prefix)
    tensors = {key.replace("text_model.", ""): value for key, value in tensors.items()}
    tensors[prefix + "embeddings.position_ids"] = torch.arange(77)[None]
    file = tmp_path / "theirs.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, file)
    read = pack.nodes.erasures.read(loaded.clip, file)
    assert set(read.deltas) == set(changes)
    assert all(torch.equal(read.delta(key), change) for key, change in changes.items())


def test_encoder_that_others_erased_takes_a_strength(
    pack: ModuleType, loaded: Loaded, tmp_path: Path
) -> None:
    tensors, changes = others_encoder(loaded.clip, "")
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "theirs.safetensors")
    read = pack.nodes.erasures.read(loaded.clip, tmp_path / "theirs.safetensors")
    half = weights(pack.nodes.backend.apply.erased_clip(loaded.clip, read, 0.5)[0])
    before = weights(loaded.clip)
    for key, change in changes.items():
        wanted = before[key].float() + 0.5 * change
        assert torch.allclose(half[key].float(), wanted, rtol=2**-10, atol=2**-20)


def test_others_encoder_counts_from_the_checkpoint_also_while_a_lora_is_loaded(
    pack: ModuleType, loaded: Loaded, erasure: Any
) -> None:
    tensors, changes = others_encoder(loaded.clip, "")
    patched, _ = pack.nodes.backend.apply.erased_clip(loaded.clip, erasure)
    conditioning(patched)
    read = pack.nodes.backend.apply.foreign_erasure(loaded.clip, tensors, "theirs.safetensors")
    assert set(read.deltas) == set(changes)


def cut_encoder(clip: Any, file: Path) -> None:
    save_file({k: v.contiguous() for k, v in others_encoder(clip, "")[0].items()}, file)
    file.write_bytes(file.read_bytes()[:-1000])


def narrow_encoder(clip: Any, file: Path) -> None:
    tensors = {k: v[..., :64].contiguous() for k, v in others_encoder(clip, "")[0].items()}
    save_file(tensors, file)


def no_encoder(clip: Any, file: Path) -> None:
    save_file({"decoder.conv_in.weight": torch.zeros(4, 4)}, file)


def a_web_page(clip: Any, file: Path) -> None:
    file.write_text("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (cut_encoder, "theirs.safetensors is cut short or not a safetensors file"),
        (narrow_encoder, "theirs.safetensors is a text encoder of another size"),
        (no_encoder, "theirs.safetensors holds neither an erasure nor a text encoder"),
        (a_web_page, "theirs.safetensors is cut short or not a safetensors file"),
    ],
)
def test_unusable_encoder_gets_one_sentence(
    pack: ModuleType, loaded: Loaded, make: Callable, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "theirs.safetensors"
    make(loaded.clip, file)
    with pytest.raises(pack.unlearn.core.erasure.ErasureError, match=sentence) as error:
        pack.nodes.erasures.read(loaded.clip, file)
    assert "\n" not in str(error.value)


# The training node


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """ComfyUI's output folder for the duration."""
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(folder))
    try:
        yield
    finally:
        folder_paths.set_output_directory(before)


@pytest.fixture
def output(host: ModuleType, tmp_path: Path) -> Iterator[Path]:
    """ComfyUI's output folder, not there yet."""
    with output_folder(tmp_path / "output"):
        yield tmp_path / "output"


INPUTS = {
    "concept": "cat",
    "kind": "object",
    "shots": 2,
    "size": 64,
    "mode": "balanced",
    "trainable": "mlp-final-attn",
    "rank": 0,
    "max_steps": 2,
    "epochs": 1,
    "seed": 0,
    "protect": "",
    "filename_prefix": "loras/erased",
    "verdict": False,  # tests/comfy/test_verdict_nodes.py
}


def execute(pack: ModuleType, loaded: Loaded, **inputs: Any) -> tuple:
    """The outputs of Few-Shot Encoder Unlearn."""
    node = pack.nodes.few_shot.FewShotEncoderUnlearn.PREPARE_CLASS_CLONE(None)
    values = {**INPUTS, "images": pictures(), **inputs}
    return node.execute(loaded.model, loaded.clip, loaded.vae, **values).result


def test_node_hands_on_all_its_outputs(pack: ModuleType, loaded: Loaded, output: Path) -> None:
    with untouched(loaded, same_objects=False):
        clip, erasure, curve, losses, summary = execute(pack, loaded, images=None)  # it draws them
    assert not torch.equal(conditioning(clip), conditioning(loaded.clip))
    assert erasure.concepts == ["cat"]
    assert curve.shape[2:] == (512, 3)
    assert len(losses["loss"]) == 2
    for part in ("cat (object)", "2 steps", " s, peak memory ", ".safetensors", "moved by: cat "):
        assert part in summary
    (file,) = output.rglob("*.safetensors")
    assert file.parent == output / "loras" / "erased"
    assert set(pack.unlearn.core.erasure.Erasure.load(file).deltas) == set(erasure.deltas)


def test_record_holds_no_path(
    pack: ModuleType, loaded: Loaded, output: Path, untrained: None
) -> None:
    execute(pack, loaded)
    (file,) = output.rglob("*.safetensors")
    with safe_open(file, "pt") as content:
        written = " ".join([*content.metadata().values(), *content.keys()])
    assert '"cat"' in written
    for place in (str(output.parent), f"{Path.home()}{os.sep}"):
        assert place not in written
        assert json.dumps(place)[1:-1] not in written  # as the record writes it: \\ for \


def test_same_inputs_are_read_from_the_file(pack: ModuleType, loaded: Loaded, output: Path) -> None:
    first = execute(pack, loaded)
    (file,) = output.rglob("*.safetensors")
    written = file.stat().st_mtime_ns
    again = execute(pack, loaded)
    assert again[4].startswith("Trained before with these inputs")
    assert file.stat().st_mtime_ns == written
    assert_close_to(conditioning(again[0]), conditioning(first[0]), conditioning(loaded.clip))


@pytest.fixture(scope="module")
def trained_output(
    pack: ModuleType, loaded: Loaded, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An output folder with the erasure of one step in it."""
    folder = tmp_path_factory.mktemp("trained")
    with torch.inference_mode(), output_folder(folder):
        execute(pack, loaded, max_steps=1)
    return folder


@pytest.fixture
def untrained(pack: ModuleType, erasure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node hands on an erasure that is there already, in place of training one."""
    node = pack.nodes.few_shot.FewShotEncoderUnlearn
    monkeypatch.setattr(node, "METHOD", replace(node.METHOD, train=lambda *_: erasure))


@pytest.fixture
def one_trained(trained_output: Path, output: Path) -> Path:
    """A copy of it as ComfyUI's output folder: the file of the erasure."""
    shutil.copytree(trained_output, output)
    (file,) = output.rglob("*.safetensors")
    return file


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"concept": "dog"},
        {"rank": 2},
        {"images": torch.full((2, 128, 128, 3), 0.5)},
        {"protect": "dog"},
    ],
    ids=lambda inputs: next(iter(inputs)),
)
def test_other_inputs_are_trained_anew(
    pack: ModuleType, loaded: Loaded, one_trained: Path, untrained: None, other: dict
) -> None:
    again = execute(pack, loaded, **{"max_steps": 1, **other})
    assert not again[4].startswith("Trained before")
    assert len(list(one_trained.parent.iterdir())) == 2


def test_another_encoder_is_trained_anew(
    pack: ModuleType, loaded: Loaded, one_trained: Path, untrained: None, erasure: Any
) -> None:
    patched, _ = pack.nodes.backend.apply.erased_clip(loaded.clip, erasure)
    again = execute(pack, Loaded(loaded.model, patched, loaded.vae), max_steps=1)
    assert not again[4].startswith("Trained before")


def test_what_the_checkpoint_lacks_does_not_tell_encoders_apart(
    pack: ModuleType, loaded: Loaded, checkpoint: Path
) -> None:
    """The host leaves it as uninitialised memory, another one at each start."""
    _, clip, _ = testbed.model.pack.checkpoint(checkpoint)
    clip.cond_stage_model.clip_l.transformer.text_projection.weight.fill_(7)
    signature = pack.nodes.backend.identity.signature
    assert signature(clip.patcher) == signature(loaded.clip.patcher)
    clip.cond_stage_model.clip_l.transformer.text_model.final_layer_norm.bias[0] += 1
    assert signature(clip.patcher) != signature(loaded.clip.patcher)


def test_beside_a_damaged_file_it_is_trained_anew(
    pack: ModuleType, loaded: Loaded, one_trained: Path, untrained: None
) -> None:
    one_trained.write_bytes(one_trained.read_bytes()[:1000])
    again = execute(pack, loaded, max_steps=1)
    assert "Trained before" not in again[4]
    (file,) = set(one_trained.parent.glob("*.safetensors")) - {one_trained}
    assert pack.unlearn.core.erasure.Erasure.load(file).concepts == ["cat"]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"concept": " , "}, "No concept is named"),
        (
            {"concept": "cat, dog", "images": torch.zeros(3, 128, 128, 3)},
            "3 images cannot be shared .* 2 concepts",
        ),
        ({"images": torch.full((1, 128, 128, 3), torch.nan)}, "Image 1 holds NaN or infinite"),
        ({"images": torch.zeros(1, 128, 128, 2)}, "Images must be a batch of shape"),
        ({"images": torch.zeros(0, 128, 128, 3)}, "Images must be a batch of shape"),
        ({"filename_prefix": "../outside"}, "leaves ComfyUI's output folder"),
        ({"filename_prefix": "/tmp/outside"}, "leaves ComfyUI's output folder"),
    ],
    ids=["no concept", "wrong count", "nan", "channels", "no image", "parent", "absolute"],
)
def test_bad_input_gets_a_sentence_and_changes_nothing(
    pack: ModuleType, loaded: Loaded, output: Path, inputs: dict, sentence: str
) -> None:
    with untouched(loaded), pytest.raises(ValueError, match=sentence) as error:
        execute(pack, loaded, **inputs)
    assert "\n" not in str(error.value)
    assert not list(output.parent.rglob("*.safetensors"))


def test_encoder_of_another_model_gets_a_sentence(
    pack: ModuleType, loaded: Loaded, output: Path
) -> None:
    import comfy.sd

    full_size = {"text_model.encoder.layers.11.mlp.fc1.weight": torch.zeros(3072, 768)}
    other = comfy.sd.load_text_encoder_state_dicts([full_size])
    with pytest.raises(
        ValueError, match="gives 768 numbers for each token and the model reads 192"
    ):
        execute(pack, Loaded(loaded.model, other, loaded.vae))
    assert not list(output.parent.rglob("*.safetensors"))


def test_weights_that_a_model_lacks_are_not_those_of_its_base(pack: ModuleType) -> None:
    Erasure = pack.unlearn.core.erasure.Erasure
    model, clip, _ = testbed.model.pack.checkpoint()
    key = "clip_l.transformer.text_model.encoder.layers.99.mlp.fc1.weight"
    other = Erasure({key: {"diff": torch.zeros(2, 2)}}, {"base": {key: "0123"}})
    assert "1 of 1 weights differ" in pack.nodes.backend.apply.other_base(model, clip, other)
    own = next(name for name in clip.cond_stage_model.state_dict() if name.endswith("fc1.weight"))
    base = pack.nodes.backend.identity.fingerprints(clip.patcher, [own])
    assert not pack.nodes.backend.apply.other_base(model, clip, Erasure({own: {}}, {"base": base}))
