"""The network's methods on every kind of network: what trains, what stays, what an erasure changes.

The methods speak to a DiffusionModel alone, so each kind of network that the host has must answer
as one: the small ones of layouts.py do here.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from families import family_first, only
from layouts import LAYOUTS, SIDE, Loaded, build

pytestmark = pytest.mark.usefixtures("node_body", "small_runs")

SELECTIONS = ("cross-attention", "cross-attention-kv", "outside-cross-attention")
PROMPTS = ("a photo of a cat", "a dog in ink style")
# In 0..1000, as the methods draw them: both ends, and the first and last steps of a trajectory.
TIMESTEPS = (0.0, 1.0, 21.0, 500.0, 981.0, 999.0)


@pytest.fixture(scope="module", params=family_first(LAYOUTS))
def loaded(request: pytest.FixtureRequest, pack: ModuleType) -> Loaded:
    with torch.inference_mode():  # as the host's loader nodes run
        return build(request.param)


def comfy_model(pack: ModuleType, loaded: Loaded, **options: Any) -> Any:
    return pack.nodes.backend.model.ComfyModel(
        loaded.model, loaded.clip, None, (SIDE, SIDE), **options
    )


def batch(model: Any, count: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x_t, t, what to predict), of random latents."""
    generator = torch.Generator().manual_seed(1)
    x0, noise = model.noise(count, generator), model.noise(count, generator)
    t = torch.linspace(300, 700, count, device=model.device)
    return model.add_noise(x0, noise, t), t, model.target(x0, noise, t)


def test_a_network_that_is_told_its_guidance_draws_by_that_alone(
    pack: ModuleType, loaded: Loaded
) -> None:
    """Flux dev's pictures burn where classifier-free guidance comes on top."""
    with comfy_model(pack, loaded).training() as model:
        weak, strong = (model.sample(["a cat"], 0, steps=2, guidance=g) for g in (2.0, 8.0))
    assert torch.equal(weak, strong) == loaded.name.startswith("flux")


def test_a_prompt_with_weights_stands_beside_others(pack: ModuleType, loaded: Loaded) -> None:
    """The host encodes it apart, and tells what networks of this kind may not read."""
    with comfy_model(pack, loaded).training() as model, torch.no_grad():
        both = one_by_one(pack, model, ("a (cat:1.2)", "a dog"))
        x_t, t, _ = batch(model)
        swapped = pack.unlearn.core.conditioning.Conditioning.cat([both.single(1), both.single(0)])
        found = model.predict(x_t, t, both)
        assert found.isfinite().all()
        other = model.predict(x_t.flip(0), t.flip(0), swapped).flip(0)
    torch.testing.assert_close(found, other, rtol=1e-3, atol=1e-4)


def one_by_one(pack: ModuleType, model: Any, prompts: tuple[str, ...] = PROMPTS) -> Any:
    """Conditioning of prompts, each encoded by itself, as the network's methods have it."""
    parts = [model.encode([prompt]) for prompt in prompts]
    return pack.unlearn.core.conditioning.Conditioning.cat(parts)


def loss_of(pack: ModuleType, model: Any) -> torch.Tensor:
    """The denoising loss of two random latents under two prompts."""
    x_t, t, target = batch(model)
    return (model.predict(x_t, t, one_by_one(pack, model)) - target).square().mean()


# What trains


def gradients(
    pack: ModuleType, loaded: Loaded, select: str, rank: int = 0, **options: Any
) -> dict[str, torch.Tensor | None]:
    """Of the denoising loss by each delta; of a low-rank one by its `up`.

    `up` begins at zero, and `down` has no gradient until it has moved.
    """
    with (
        comfy_model(pack, loaded, **options).training() as model,
        model.edit("denoiser", select, rank) as edit,
    ):
        loss_of(pack, model).backward()
        return {key: delta.parameters()[0].grad for key, delta in edit.deltas.items()}


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("select", SELECTIONS)
def test_gradient_reaches_every_selected_weight(
    pack: ModuleType, loaded: Loaded, select: str, rank: int
) -> None:
    found = gradients(pack, loaded, select, rank)
    assert found
    for key, gradient in found.items():
        assert gradient is not None, key
        assert gradient.isfinite().all(), key
        assert gradient.abs().max() > 0, key


def test_frozen_weights_take_no_gradient(pack: ModuleType, loaded: Loaded) -> None:
    gradients(pack, loaded, "cross-attention")
    for root in (loaded.model.model, loaded.clip.cond_stage_model):
        assert all(parameter.grad is None for parameter in root.parameters())


def test_first_token_teaches_keys_and_values_nothing(pack: ModuleType, loaded: Loaded) -> None:
    if loaded.name == "flux2":
        pytest.skip("It is padded in front: its first token is none of the prompt's.")
    with (
        comfy_model(pack, loaded).training() as model,
        model.edit("denoiser", "cross-attention-kv") as edit,
    ):
        whole = model.encode(PROMPTS[:1])
        extra = {k: v[:, :1] if torch.is_tensor(v) else v for k, v in whole.extra.items()}
        first = pack.unlearn.core.conditioning.Conditioning(whole.cross[:, :1], whole.pooled, extra)
        x_t, t, target = batch(model, 1)
        (model.predict(x_t, t, first) - target).square().mean().backward()
        for key, delta in edit.deltas.items():
            assert delta.full.grad is None or not delta.full.grad.any(), key


def test_selections_share_out_all_layers(pack: ModuleType, loaded: Loaded) -> None:
    root = loaded.model.model.diffusion_model
    cross, keys_and_values, outside = (
        set(pack.unlearn.core.trainable.network_weights(root, select)) for select in SELECTIONS
    )
    assert keys_and_values < cross
    # What is of both is shared out by its rows.
    first, last = (pack.unlearn.core.trainable.network_rows(root, SELECTIONS[i]) for i in (0, 2))
    assert cross & outside == set(first) & cross == set(last) & cross
    for key in cross & outside:
        assert first[key].start == 0
        assert first[key].stop == last[key].start
        assert last[key].stop == root.get_parameter(key).shape[0]
    assert cross | outside == {
        f"{name}.{kind}"
        for name, module in root.named_modules()
        if hasattr(module, "in_features") or hasattr(module, "kernel_size")
        for kind, _ in module.named_parameters(recurse=False)
    }


def test_only_what_reads_the_prompt_is_of_the_cross_attention(
    pack: ModuleType, loaded: Loaded
) -> None:
    """Every layer of the keys and values is fed by tokens of the prompt, as many as it has."""
    with comfy_model(pack, loaded).training() as model, torch.no_grad():
        root = model.network.diffusion_model
        prompts = model.encode(PROMPTS[:1])
        tokens = 512 if loaded.name == "flux2" else prompts.cross.shape[1]
        seen: dict[str, int] = {}
        hooks = [
            root.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: seen.update({name: inputs[0].shape[1]})
            )
            for name in {
                key.rpartition(".")[0]
                for key in pack.unlearn.core.trainable.network_weights(root, "cross-attention-kv")
            }
        ]
        try:
            x_t, t, _ = batch(model, 1)
            model.predict(x_t, t, prompts)
        finally:
            for hook in hooks:
                hook.remove()
    assert len(seen) == len(hooks)
    assert set(seen.values()) == {tokens}, seen


@pytest.mark.parametrize("select", SELECTIONS)
def test_checkpointed_gradients_equal_unchecked_ones(
    pack: ModuleType, loaded: Loaded, select: str
) -> None:
    plain = gradients(pack, loaded, select, checkpointing=False)
    assert_gradients_agree(gradients(pack, loaded, select, checkpointing=True), plain)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_projected_step_has_the_gradients_of_a_plain_one(
    pack: ModuleType, loaded: Loaded, checkpointing: bool
) -> None:
    """Where what erases also keeps, the concept-preserving gradient takes nothing out."""
    found = {}
    for projection in ("off", "orthogonal"):
        with (
            comfy_model(pack, loaded, checkpointing=checkpointing).training() as model,
            model.edit("denoiser", "cross-attention") as edit,
        ):
            loss, keep = loss_of(pack, model), loss_of(pack, model)
            optimiser = torch.optim.SGD(edit.parameters(), 0.0)
            edit.step(optimiser, loss, keep=keep, projection=projection)
            found[projection] = {key: delta.full.grad for key, delta in edit.deltas.items()}
    assert_gradients_agree(found["orthogonal"], found["off"])


@pytest.mark.parametrize("loaded", only("sd15", of=LAYOUTS), indirect=True)
def test_steps_leave_nothing_behind(pack: ModuleType, loaded: Loaded) -> None:
    """Nor what a step with two gradients does not go through to its end."""

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    with (
        comfy_model(pack, loaded).training() as model,
        model.edit("denoiser", "cross-attention") as edit,
    ):
        optimiser = torch.optim.SGD(edit.parameters(), 0.0)
        counts = []
        for _ in range(3):
            loss, keep = loss_of(pack, model), loss_of(pack, model)
            edit.step(optimiser, loss, keep=keep, projection="orthogonal")
            del loss, keep
            counts.append(alive())
    assert counts[2] == counts[1], counts


def assert_gradients_agree(found: dict, wanted: dict, tolerance: float = 1e-3) -> None:
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for key, gradient in wanted.items():
        assert found[key] is not None, key
        apart = (found[key] - gradient).abs().max()
        assert apart <= tolerance * gradient.abs().max() + 1e-5 * largest, key


def test_half_precision_gives_the_same_gradients(pack: ModuleType) -> None:
    """What lifts small gradients over half precision's threshold must not reach the deltas."""
    full, half = build("sd15"), build("sd15", torch.float16)
    for weight, same in zip(
        full.model.model.diffusion_model.parameters(),
        half.model.model.diffusion_model.parameters(),
    ):
        weight.copy_(same)
    wanted = gradients(pack, full, "cross-attention")
    assert_gradients_agree(gradients(pack, half, "cross-attention"), wanted, tolerance=0.1)


# What stays


def test_edit_that_is_off_and_one_that_is_over_are_the_original(
    pack: ModuleType, loaded: Loaded
) -> None:
    with comfy_model(pack, loaded).training() as model, torch.no_grad():
        prompts = one_by_one(pack, model)
        x_t, t, _ = batch(model)
        original = model.predict(x_t, t, prompts)
        for select in SELECTIONS:
            with model.edit("denoiser", select) as edit:
                for delta in edit.deltas.values():
                    delta.full.data.fill_(0.01)
                changed = model.predict(x_t, t, prompts)
                with edit.off():
                    assert torch.equal(model.predict(x_t, t, prompts), original)
                assert torch.equal(model.predict(x_t, t, prompts), changed)
            assert not torch.allclose(changed, original, atol=1e-4)
            assert torch.equal(model.predict(x_t, t, prompts), original)
    with comfy_model(pack, loaded).training() as model, torch.no_grad():
        assert torch.equal(model.predict(x_t, t, prompts), original)


# What a prediction means


def test_clean_undoes_noised_and_target(pack: ModuleType, loaded: Loaded) -> None:
    with comfy_model(pack, loaded).training() as model:
        generator = torch.Generator().manual_seed(1)
        count = len(TIMESTEPS)
        x0, noise = model.noise(count, generator), model.noise(count, generator)
        t = torch.tensor(TIMESTEPS, device=model.device)
        target = model.target(x0, noise, t)
        found = model.predict_x0(model.add_noise(x0, noise, t), t, target)
    for one, means, wanted, time in zip(found, target, x0, TIMESTEPS):
        assert means.isfinite().all(), time
        assert torch.allclose(one, wanted, rtol=1e-3, atol=1e-3), time


def test_prediction_is_finite_at_every_timestep(pack: ModuleType, loaded: Loaded) -> None:
    with comfy_model(pack, loaded).training() as model, torch.no_grad():
        prompts = model.encode(PROMPTS[:1]).repeated(len(TIMESTEPS))
        x_t = model.noise(len(TIMESTEPS), torch.Generator().manual_seed(1))
        predicted = model.predict(x_t, torch.tensor(TIMESTEPS, device=model.device), prompts)
    for one, time in zip(predicted, TIMESTEPS):
        assert one.isfinite().all(), time


def test_timesteps_cover_the_hosts_noise_levels(pack: ModuleType, loaded: Loaded) -> None:
    with comfy_model(pack, loaded).training() as model:
        t = torch.tensor((*TIMESTEPS, 1000.0), device=model.device)
        nothing = torch.zeros_like(model.noise(len(t), torch.Generator()))
        level = model.add_noise(nothing, torch.ones_like(nothing), t).flatten(1)[:, 0]
        sampling = model.network.model_sampling
    assert (level.diff() >= 0).all()
    assert level[1] < 0.05, "the last step of a trajectory is nearly clean"
    assert level[-1] > 0.9 * float(sampling.sigma_max), "the first is nearly noise"


def test_prompts_predict_together_as_each_alone(pack: ModuleType, loaded: Loaded) -> None:
    prompts = (*PROMPTS, "")
    with comfy_model(pack, loaded).training() as model, torch.no_grad():
        x_t, t, _ = batch(model, 1)
        alone = torch.cat([model.predict(x_t, t, model.encode([prompt])) for prompt in prompts])
        x_t, t = torch.cat([x_t] * 3), torch.cat([t] * 3)
        joined = model.predict(x_t, t, one_by_one(pack, model, prompts))
        encoded = model.predict(x_t, t, model.encode(prompts))
    near = 0.01 * float((alone[0] - alone[1]).abs().max())
    assert near > 1e-4, "a test on prompts that the network cannot tell apart"
    assert torch.allclose(joined, alone, atol=near)
    assert torch.allclose(encoded, alone, atol=near)


def test_memory_is_planned(pack: ModuleType, loaded: Loaded) -> None:
    model = comfy_model(pack, loaded)
    full, low_rank = (
        model.prepare("denoiser", "cross-attention", rank, batch=4) for rank in (0, 2)
    )
    assert full.activations > 0
    assert full.state > low_rank.state > 0


def test_prompts_of_a_trained_encoder_count(pack: ModuleType, loaded: Loaded) -> None:
    """They are measured: no architecture is known by name."""
    model = comfy_model(pack, loaded)
    none, few, more = (
        model.prepare("encoder", "mlp-final-attn", 2, 1, prompts).activations
        for prompts in (0, 4, 8)
    )
    assert none < few < more
    assert more - few == pytest.approx(few - none, rel=0.01)
    weights, given = model.selected("encoder", "mlp-final-attn"), model.checkpointing
    full, recomputed = pack.nodes.backend.memory.encoding_bytes(model, weights, 4)
    assert 0 < recomputed < full
    assert model.checkpointing == given


class VideoVae:
    """As the host's VAE of a video model: a batch of pictures is one video, each four a latent."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        count, height, width, _ = images.shape
        return torch.zeros(1, 16, 1 + (count - 1) // 4, height // 8, width // 8)


@pytest.mark.parametrize("loaded", ["wan"], indirect=True)
def test_pictures_are_no_frames_of_one_video(pack: ModuleType, loaded: Loaded) -> None:
    model = pack.nodes.backend.model.ComfyModel(loaded.model, loaded.clip, VideoVae(), (SIDE, SIDE))
    with model.training():
        assert model.encode_images(torch.zeros(3, SIDE, SIDE, 3)).shape == (3, 16, 1, 8, 8)


# What an erasure changes


def weights(patcher: Any) -> dict[str, torch.Tensor]:
    """The weights as this MODEL has them, patches applied."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([patcher])
    return {key: value.clone() for key, value in patcher.model.state_dict().items()}


def random_erasure(pack: ModuleType, loaded: Loaded, rank: int) -> Any:
    """Of every linear and convolution layer of the network."""
    root = loaded.model.model.diffusion_model
    network_weights, prefix = (
        pack.unlearn.core.trainable.network_weights,
        pack.unlearn.core.erasure.NETWORK,
    )
    every = {**network_weights(root, SELECTIONS[0]), **network_weights(root, SELECTIONS[2])}
    generator = torch.Generator().manual_seed(2)
    with torch.inference_mode(False):
        edit = pack.unlearn.core.edit.Edit({prefix + key: w for key, w in every.items()}, rank)
        for parameter in edit.parameters():
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    deltas = {key: delta.tensors() for key, delta in edit.deltas.items()}
    return pack.unlearn.core.erasure.Erasure(deltas, {"concepts": ["cat"]})


@pytest.mark.parametrize("rank", [0, 2])
def test_erasure_changes_the_weights_as_the_stock_loader_does(
    pack: ModuleType, loaded: Loaded, rank: int, tmp_path: Path
) -> None:
    import comfy.sd
    import comfy.utils

    random_erasure(pack, loaded, rank).save(tmp_path / "a.safetensors")
    erasure = pack.unlearn.core.erasure.Erasure.load(tmp_path / "a.safetensors")
    lora = comfy.utils.load_torch_file(str(tmp_path / "a.safetensors"), safe_load=True)
    original = weights(loaded.model)
    convolutions = [key for key in erasure.deltas if original[key].ndim > 2]
    assert bool(convolutions) != loaded.name.startswith(("flux", "ltxv"))
    for strength in (1.0, -0.5):
        erased, warning = pack.nodes.backend.apply.erased_model(loaded.model, erasure, strength)
        assert warning == ""
        ours = weights(erased)
        stock = weights(comfy.sd.load_lora_for_models(loaded.model, None, lora, strength, 0)[0])
        for key, value in original.items():
            assert torch.equal(ours[key], stock[key]), key
            wanted = value
            if key in erasure.deltas:
                wanted = value + strength * erasure.delta(key).view(value.shape).to(value)
            assert torch.allclose(ours[key], wanted, atol=1e-6), key
    now = weights(loaded.model)
    assert all(torch.equal(now[key], value) for key, value in original.items())


@pytest.mark.parametrize("rank", [0, 2])
def test_minus_one_after_one_restores(pack: ModuleType, loaded: Loaded, rank: int) -> None:
    original = weights(loaded.model)
    erasure = random_erasure(pack, loaded, rank)
    erased, _ = pack.nodes.backend.apply.erased_model(loaded.model, erasure, 1.0)
    restored, _ = pack.nodes.backend.apply.erased_model(erased, erasure, -1.0)
    for key, value in weights(restored).items():
        assert torch.allclose(value, original[key], atol=1e-6), key


# The methods


def run_key_step(pack: ModuleType, model: Any, mode: str) -> Any:
    methods = pack.unlearn.methods.key_step
    settings = methods.KeyStepSettings(mode=mode, steps=4, start=2, iterations=3)
    return methods.key_step(model, ["cat"], settings)


def run_domain_correction(pack: ModuleType, model: Any, mode: str) -> Any:
    methods = pack.unlearn.methods.domain_correction
    settings = methods.DomainCorrectionSettings(
        mode=mode, pictures=2, iterations=3, alone=1, batch=2
    )
    return methods.domain_correction(model, ["cat"], settings)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["balanced", "paper"])
@pytest.mark.parametrize("run", [run_key_step, run_domain_correction])
def test_method_runs_and_moves_the_prediction(
    pack: ModuleType, loaded: Loaded, run: Callable, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack.unlearn.methods.parts.retention.RetentionSet, "COUNT", 4)
    before = weights(loaded.model)
    with comfy_model(pack, loaded, checkpointing=True).training() as model:
        erasure = run(pack, model, mode)
    assert erasure.norm() > 0
    assert erasure.record["moved"]["cat"] > 0
    erased, warning = pack.nodes.backend.apply.erased_model(loaded.model, erasure)
    assert warning == ""
    assert set(erasure.deltas) == set(erased.patches)
    after = weights(loaded.model)
    assert all(torch.equal(after[key], value) for key, value in before.items())


# Other names for keys and values, on networks of full width without their memory


def pixart(**options: Any) -> torch.nn.Module:
    from comfy.ldm.pixart.pixartms import PixArtMS

    return PixArtMS(depth=2, **options)


def hunyuan_dit(**options: Any) -> torch.nn.Module:
    from comfy.ldm.hydit.models import HunYuanDiT

    return HunYuanDiT(depth=2, **options)


def kandinsky(**options: Any) -> torch.nn.Module:
    from comfy.ldm.kandinsky5.model import Kandinsky5

    return Kandinsky5(num_visual_blocks=2, **options)


def aura_flow(**options: Any) -> torch.nn.Module:
    from comfy.ldm.aura.mmdit import MMDiT

    return MMDiT(n_layers=2, n_double_layers=2, **options)


@pytest.mark.parametrize(
    ("network", "names"),
    [
        (pixart, {"kv_linear"}),
        (hunyuan_dit, {"kv_proj"}),
        (kandinsky, {"to_key", "to_value"}),
        (aura_flow, {"w1k", "w1v"}),
    ],
)
def test_keys_and_values_are_found_under_other_names(
    pack: ModuleType, network: Callable[..., torch.nn.Module], names: set[str]
) -> None:
    import comfy.ops

    root = network(dtype=torch.float32, device="meta", operations=comfy.ops.disable_weight_init)
    found = pack.unlearn.core.trainable.network_weights(root, "cross-attention-kv")
    # Where words and picture attend to each other, the words' own queries may be among them.
    assert {key.split(".")[-2] for key in found} - {"w1q"} == names
