"""The pack on what newer versions of the host do otherwise, which newer_host.py puts into ours."""

from __future__ import annotations

import json
from dataclasses import replace
from threading import Thread
from types import ModuleType
from typing import Any

import encoder_layouts
import newer_host
import other_encoder_layouts
import pytest
import torch
from layouts import Loaded
from test_encoders import comfy_model, run_node
from test_packed_networks import flux, gradients, kernels, packed  # noqa: F401

pytestmark = pytest.mark.usefixtures("node_body", "small_runs")

PROMPTS = ("a photo of a cat", "a dog in ink style and a red fox")
LAYOUTS = [*encoder_layouts.ENCODERS, *other_encoder_layouts.OTHERS]
# One of each family of blocks that changed.
FEW = ["Qwen 3, Z-Image", "Gemma 3, Lumina 2"]  # and Qwen 3.5, below


def build(name: str) -> Loaded:
    own = name in encoder_layouts.ENCODERS
    return (encoder_layouts if own else other_encoder_layouts).build(name)


def trained(
    pack: ModuleType, loaded: Loaded, select: str = "mlp-final-attn", checkpointing: bool = False
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(conditioning, gradients of every selected weight) by a loss of the network's prediction."""
    side = 320 if "PixArt" in loaded.name else 64
    model = pack.nodes.backend.model.ComfyModel(
        loaded.model, loaded.clip, None, (side, side), checkpointing=checkpointing
    )
    with model.training(), model.edit("encoder", select) as edit:
        read = model.encode(PROMPTS)
        noise = model.noise(2, torch.Generator().manual_seed(1))
        t = torch.tensor([300.0, 700.0], device=model.device)
        model.predict(noise, t, read).square().mean().backward()
        return read.cross.detach(), {key: d.full.grad for key, d in edit.deltas.items()}


def assert_trains_as_before(pack: ModuleType, name: str, patch: pytest.MonkeyPatch) -> None:
    loaded = build(name)
    read, gradients = trained(pack, loaded)
    newer_host.write_into_their_input(patch)
    found, same = trained(pack, loaded)
    assert torch.equal(found, read)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    assert largest > 0
    for key, gradient in gradients.items():
        assert torch.allclose(same[key], gradient, rtol=1e-5, atol=1e-7 * float(largest)), key
    _, recomputed = trained(pack, loaded, checkpointing=True)
    for key, gradient in gradients.items():
        apart = (recomputed[key] - gradient).abs().max()
        assert apart <= 1e-3 * gradient.abs().max() + 1e-5 * largest, key


# Blocks that write into their input


@pytest.mark.parametrize("name", FEW)
def test_blocks_that_write_into_their_input_train(
    pack: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_trains_as_before(pack, name, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in FEW])
def test_every_other_encoder_trains_with_such_blocks(
    pack: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_trains_as_before(pack, name, monkeypatch)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("add", [(3, 3), (3, 3)]),
        ("mul", [(3, 3), (3, 1)]),
        ("addcmul", [(3, 3)] * 3),
        ("matmul", [(3, 3), (3, 3)]),
        ("baddbmm", [(2, 3, 3)] * 3),
        ("sigmoid", [(3, 3)]),
    ],
)
def test_functions_that_write_do_so_where_gradients_are_on(
    pack: ModuleType, name: str, shapes: list[tuple[int, ...]]
) -> None:
    """What they write into holds the result, and gradients by it are those of the plain function;
    what it held before is still there for the backward pass."""
    with torch.inference_mode(False), torch.enable_grad():
        parts = [torch.rand(*shape, requires_grad=True) for shape in shapes]

        def learnt(writes: bool) -> tuple[torch.Tensor, ...]:
            into = parts[0] * 2
            before = into.sin()  # which keeps what is written over
            given = [into, *parts[1:]]
            function = getattr(torch, name)
            result = function(*given, out=into) if writes else function(*given)
            if writes:
                assert result is into
            wanted = (into if writes else result).square().sum() + before.sum()
            return (result.detach().clone(), *torch.autograd.grad(wanted, parts))

        wanted = learnt(writes=False)
        with pytest.raises(RuntimeError, match="automatic differentiation"):
            learnt(writes=True)
        with (
            pack.nodes.backend.differentiable.differentiable_writing(),
            torch.autograd.graph.allow_mutation_on_saved_tensors(),
        ):
            found = learnt(writes=True)
    assert all(map(torch.allclose, found, wanted))


def test_a_piece_of_a_tensor_is_written_into_and_what_is_trained_is_not(pack: ModuleType) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        leaf = torch.rand(2, 4, requires_grad=True)
        before = leaf.detach().clone()
        with (
            pack.nodes.backend.differentiable.differentiable_writing(),
            torch.autograd.graph.allow_mutation_on_saved_tensors(),
        ):
            gate, up = (leaf * 1).chunk(2, -1)
            product = torch.mul(torch.nn.functional.silu(gate), up, out=gate)
            assert torch.equal(gate, product)
            (found,) = torch.autograd.grad(product.sum(), leaf)
            doubled = torch.add(leaf, leaf, out=leaf)
        assert torch.equal(leaf, before)
        assert torch.equal(doubled, 2 * leaf)
        gate, up = leaf.chunk(2, -1)
        (wanted,) = torch.autograd.grad((torch.nn.functional.silu(gate) * up).sum(), leaf)
    assert torch.allclose(found, wanted)


def test_writing_is_as_ever_without_gradients_and_afterwards(pack: ModuleType) -> None:
    functions = {name: getattr(torch, name) for name in pack.nodes.backend.differentiable.WRITING}
    with torch.inference_mode(False):
        x, out, elsewhere = torch.ones(2, 2), torch.zeros(0), torch.zeros(2, 2)
    with pack.nodes.backend.differentiable.differentiable_writing(), torch.inference_mode(False):
        other = Thread(target=torch.add, args=(x, x), kwargs={"out": elsewhere})
        other.start()
        other.join()
        assert torch.equal(elsewhere, 2 * x)
        assert torch.add(x, x, out=out) is out
        assert torch.equal(out, 2 * x)
        assert torch.cat([x, x], out=out.resize_(0)) is out
        assert out.shape == (4, 2)
    assert all(getattr(torch, name) is function for name, function in functions.items())
    whole = torch.zeros(2, 2, dtype=torch.int64)
    refused = pytest.raises(RuntimeError, match="can't be cast")
    with refused, pack.nodes.backend.differentiable.differentiable_writing():
        torch.add(x, x, out=whole)
    assert all(getattr(torch, name) is function for name, function in functions.items())


# What a file asks for, and what is compiled


def test_attention_that_an_encoders_file_asks_for_is_set_aside(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = build("Qwen 3, Z-Image")
    _, wanted = trained(pack, loaded, "attention")
    asking = newer_host.ask_for_attention(monkeypatch, loaded.clip.cond_stage_model)
    _, found = trained(pack, loaded, "attention")
    for key, gradient in wanted.items():
        assert torch.equal(found[key], gradient), key
    root = loaded.clip.cond_stage_model
    assert asking
    assert {id(own) for own in asking} <= {id(module) for module in root.modules()}
    assert all(own.function is not None for own in asking)


@pytest.mark.parametrize("own", [False, True])
def test_nothing_is_compiled_while_it_trains(
    pack: ModuleType, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that has no such option is given none."""
    from comfy.cli_args import args

    loaded, names = build("T5, LTX"), ("disable_comfy_compiler", "disable_cuda_graphs")
    if own:
        for name in names:
            monkeypatch.setattr(args, name, False, raising=False)
    before = dict(vars(args))

    def fail() -> None:
        with comfy_model(pack, loaded).training():
            assert all(getattr(args, name) for name in names if name in before)
            assert vars(args).keys() == before.keys()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert vars(args) == before


# Weights in few bits


def awq(weight: torch.Tensor) -> Any:
    """A weight as AWQ W4A16 keeps it: four bits, in groups of 64 with a scale and a zero each."""
    from comfy_kitchen.tensor import QuantizedTensor, get_layout_class

    layout = "TensorCoreAWQW4A16Layout"
    rows, columns = weight.shape
    groups = weight.view(rows, columns // 64, 64)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = (high - low) / 15
    values = ((groups - low[..., None]) / scale[..., None]).round().to(torch.uint8)
    values = values.view(rows, columns)
    params = get_layout_class(layout).Params(
        scale=scale.t().contiguous(),
        zeros=(low + 8 * scale).t().contiguous(),
        orig_dtype=weight.dtype,
        orig_shape=tuple(weight.shape),
    )
    stored = (values[:, 0::2] | values[:, 1::2] << 4).view(torch.int8)
    return QuantizedTensor(stored, layout, params)


@pytest.mark.parametrize("form", ["awq_w4a16", "a form of tomorrow"])
def test_forms_without_a_backward_pass_are_found_by_asking(
    pack: ModuleType,
    flux: Loaded,  # noqa: F811
    form: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under whatever name; a form that has one is left to the host's own product."""
    import comfy.quant_ops

    algorithms = comfy.quant_ops.QUANT_ALGOS
    model = packed(flux, "convrot_w4a4")
    mixed = packed(flux, "int8_tensorwise")
    entry = {**algorithms["convrot_w4a4"], "comfy_tensor_layout": "TensorCoreAWQW4A16Layout"}
    monkeypatch.setitem(
        algorithms, form, entry if form == "awq_w4a16" else algorithms["convrot_w4a4"]
    )
    for layer in model.model.modules():
        if getattr(layer, "quant_format", None):
            if form == "awq_w4a16":
                layer.weight = torch.nn.Parameter(awq(layer.weight.dequantize().bfloat16()), False)
                layer.layout_type = entry["comfy_tensor_layout"]
            layer.quant_format = form
    before = kernels(model)
    asked: dict[str, bool] = {}
    host = pack.nodes.backend.model.ComfyModel(model, flux.clip, None, (64, 64))
    with host.training():
        asked = kernels(model)
    assert asked
    assert all(asked.values())
    with pack.nodes.backend.model.ComfyModel(mixed, flux.clip, None, (64, 64)).training():
        assert not any(kernels(mixed).values())
    whole = gradients(pack, flux.model, flux.clip, "encoder")
    few = gradients(pack, model, flux.clip, "encoder")
    alike = [torch.cosine_similarity(few[k], whole[k], dim=0).item() for k in whole]
    assert sorted(alike)[len(alike) // 2] > 0.5
    assert kernels(model) == before


def test_experts_that_lie_in_one_matrix_get_a_sentence(pack: ModuleType, tmp_path: Any) -> None:
    """And are unpacked where they are not trained."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    loaded = build("GPT-OSS, Lens")
    root = loaded.clip.cond_stage_model
    for layer in root.modules():
        if hasattr(layer, "num_experts") and hasattr(layer, "in_features"):
            layout = QUANT_ALGOS["int8_tensorwise"]["comfy_tensor_layout"]
            flat = layer.weight.detach().flatten(0, 1)
            layer.weight = torch.nn.Parameter(QuantizedTensor.from_float(flat, layout), False)
            assert layer.weight.ndim == 2
    for trainable in ("mlp-final-attn", "mlp", "all"):
        with pytest.raises(ValueError, match=r"experts of a layer .* attention alone") as error:
            pack.unlearn.core.trainable.encoder_weights(root, trainable)
        assert "\n" not in str(error.value)
    assert pack.unlearn.core.trainable.encoder_weights(root, "attention")


def test_frozen_experts_in_few_bits_hand_gradients_on(pack: ModuleType) -> None:
    """To the attention before them, which is what is left to train."""
    import comfy.quant_ops

    loaded = build("GPT-OSS, Lens")
    read, wanted = trained(pack, loaded, "attention")
    for layer in loaded.clip.cond_stage_model.modules():
        if hasattr(layer, "num_experts") and hasattr(layer, "expert_linear"):
            layout = comfy.quant_ops.QUANT_ALGOS["float8_e4m3fn"]["comfy_tensor_layout"]
            each = [comfy.quant_ops.QuantizedTensor.from_float(one, layout) for one in layer.weight]
            stored = [one.state_dict("weight") for one in each]
            stored = {name: torch.stack([one[name] for one in stored]) for name in stored[0]}
            how = json.dumps({"format": "float8_e4m3fn", "num_experts": len(each)})
            stored["comfy_quant"] = torch.frombuffer(bytearray(how.encode()), dtype=torch.uint8)
            layer.load_state_dict({**stored, "bias": layer.bias})
    few, found = trained(pack, loaded, "attention")
    assert not torch.equal(few, read)
    alike = [
        torch.cosine_similarity(found[key].flatten(), wanted[key].flatten(), dim=0).item()
        for key in wanted
    ]
    assert sorted(alike)[len(alike) // 2] > 0.9


# Norms that are read by what comes after them


@pytest.mark.slow
def test_norms_that_are_handed_on_are_trained(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = build("Qwen 3.5")
    _, wanted = trained(pack, loaded, "all")
    newer_host.hand_norms_on(monkeypatch)
    for checkpointing in (False, True):
        _, found = trained(pack, loaded, "all", checkpointing)
        norms = [key for key in wanted if "post_attention_layernorm" in key]
        assert norms
        for key in norms:
            if wanted[key] is not None:
                assert torch.allclose(found[key], wanted[key], rtol=1e-3, atol=1e-6), key


# Weights under other names


def test_an_erasure_of_weights_that_lie_in_one_elsewhere_gets_a_sentence(pack: ModuleType) -> None:
    """About 0.45 merges projections; there an older erasure, and here a newer one."""
    loaded = build("Qwen 3, Z-Image")
    layer = "qwen3_4b.transformer.model.layers.0"
    weights = loaded.clip.cond_stage_model.state_dict()

    def fit(key: str, shape: torch.Size) -> None:
        erasure = pack.unlearn.core.erasure.Erasure({key: {"diff": torch.ones(shape)}}, {})
        pack.nodes.backend.apply.erased_clip(loaded.clip, erasure)

    up, query = f"{layer}.mlp.up_proj.weight", f"{layer}.self_attn.q_proj.weight"
    wanted = r"ComfyUI \d\S+ keeps this in gate_proj, up_proj. Make the erasure anew here"
    with pytest.raises(ValueError, match=wanted):
        fit(up.replace("up_proj", "gate_up_proj"), weights[up].shape)
    fit(query, weights[query].shape)
    attention = loaded.clip.cond_stage_model.get_submodule(f"{layer}.self_attn")
    attention.qkv_proj = attention.q_proj
    del attention.q_proj
    with pytest.raises(ValueError, match=r"changes .*q_proj\.weight, and .* in qkv_proj"):
        fit(query, weights[query].shape)
    other = f"{layer}.self_attn.other_proj.weight"
    with pytest.raises(ValueError, match="is for another text encoder: this one has no"):
        fit(other, weights[query].shape)


# Autoencoders with a fourth channel


def test_of_an_autoencoders_four_channels_three_are_the_picture(
    pack: ModuleType, checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the live picture, which is a JPEG."""
    import testbed.model.pack

    model, clip, vae = testbed.model.pack.checkpoint(checkpoint)
    host = pack.nodes.backend.model.ComfyModel(model, clip, vae, (64, 64))
    with host.training():
        latent = host.noise(1, torch.Generator().manual_seed(0))
        wanted = host.decode_latents(latent)
        decode = vae.decode

        def with_opacity(*args: Any) -> torch.Tensor:
            pictures = decode(*args)
            return torch.cat([pictures, torch.full_like(pictures[..., :1], 0.5)], -1)

        monkeypatch.setattr(vae, "decode", with_opacity)
        assert torch.equal(host.decode_latents(latent), wanted)
        progress = pack.nodes.progress.Progress(None, "", lambda: host.decode_latents(latent))
        kind, picture, _ = progress._preview()
        assert kind == "JPEG"
        assert picture.mode == "RGB"
    drawn = pack.nodes.compare.draw(
        model, clip, vae, ["a fox"], [1], (1, 1.0, "euler", "normal"), (64, 64), lambda _: None
    )
    assert drawn[0].shape == (1, 64, 64, 3)


# What nobody foresaw


def refuse(*args: Any, **kwargs: Any) -> None:
    raise NotImplementedError("new_kernel: no derivative\nand a long trace")


@pytest.mark.parametrize(
    ("version", "advice"),
    [("0.30.0", "without other nodes' patches"), ("0.99.1", "update this pack")],
)
def test_what_a_host_refuses_at_the_start_names_its_version(
    pack: ModuleType, version: str, advice: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfyui_version

    loaded = build("T5, LTX")
    monkeypatch.setattr(comfyui_version, "__version__", version)
    monkeypatch.setattr(type(loaded.clip.cond_stage_model), "encode_token_weights", refuse)
    with pytest.raises(RuntimeError, match=rf"ComfyUI {version} cannot .* {advice}") as error:
        run_node(pack, loaded, tmp_path)
    said = str(error.value)
    assert "NotImplementedError: new_kernel: no derivative)" in said
    assert "\n" not in said
    assert isinstance(error.value.__cause__, NotImplementedError)


def test_only_a_hosts_errors_at_the_start_are_told_so(pack: ModuleType) -> None:
    """Own sentences, cancels, memory that is short and what comes later go through as they are."""
    from comfy.model_management import InterruptProcessingException

    model = comfy_model(pack, build("T5, LTX"))
    errors = [
        InterruptProcessingException(),
        torch.cuda.OutOfMemoryError("out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError("none"),
        ValueError("a sentence"),
        FloatingPointError("diverged"),
    ]
    for error in errors:
        with pytest.raises(type(error)) as found, model.training():
            raise error
        assert found.value is error
    for error in (RuntimeError("odd"), TypeError("odd"), KeyError("odd"), AttributeError("odd")):
        with pytest.raises(RuntimeError, match="cannot train through") as found, model.training():
            raise error
        assert found.value.__cause__ is error
    model._began = True  # a step has gone well
    later = RuntimeError("a graphics card gone")
    with pytest.raises(RuntimeError) as found, model.training():
        raise later
    assert found.value is later


def test_an_own_sentence_from_the_start_of_a_run_stays(
    pack: ModuleType, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the loss is not finite at the very first step."""
    loaded = build("T5, LTX")
    weight = next(iter(loaded.model.model.diffusion_model.parameters()))
    weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="Nothing was learnt, so nothing is kept") as error:
        run_node(pack, replace(loaded), tmp_path)
    assert "fewer steps" not in str(error.value)  # of which there were none
