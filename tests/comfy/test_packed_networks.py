"""Weights in few bits: through those of the host's own forms it trains, others are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from types import ModuleType
from typing import Any

import layouts
import pytest
import torch
from layouts import Loaded

pytestmark = pytest.mark.usefixtures("host", "node_body")
FORMS = [
    "float8_e4m3fn",
    "int8_tensorwise",
    "convrot_w4a4",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("float8_e5m2", "nvfp4", "mxfp8")),
    pytest.param("int8 rotated", marks=pytest.mark.slow),
]


@pytest.fixture
def flux(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """A small Flux in bfloat16, as wide as the narrowest that all forms take."""
    monkeypatch.setitem(layouts.SMALL_FLUX, "hidden_size", 256)
    monkeypatch.setitem(layouts.SMALL_FLUX, "num_heads", 8)
    return layouts.build("flux", torch.bfloat16)


def packed(loaded: Loaded, form: str) -> Any:
    """The same network, the large weights of its blocks in one of the host's forms."""
    import comfy.model_management as management
    import comfy.model_patcher
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    rotated = {"convrot": True, "convrot_groupsize": 256} if "rotated" in form else {}
    name = "int8_tensorwise" if rotated else form
    layout = QUANT_ALGOS[name]["comfy_tensor_layout"]
    how = torch.frombuffer(
        bytearray(json.dumps({"format": name, **rotated}).encode()), dtype=torch.uint8
    )
    stored: dict[str, torch.Tensor] = {}
    for key, weight in loaded.model.model.diffusion_model.state_dict().items():
        stored[key] = weight
        if weight.ndim == 2 and "blocks" in key and "_mod" not in key and "modulation" not in key:
            options = {"convrot": True, "per_channel": True} if rotated else {}
            few = QuantizedTensor.from_float(weight, layout, **options)
            stored |= few.state_dict(key)
            stored[key.removesuffix("weight") + "comfy_quant"] = how
    config, *_ = layouts.LAYOUTS["flux"]()
    config.unet_config["dtype"] = torch.bfloat16
    config.set_inference_dtype(torch.bfloat16, None)
    config.quant_config = {"mixed_ops": True}
    network = config.get_model({}, "", device="cpu")
    network.diffusion_model.load_state_dict(stored)
    return comfy.model_patcher.CoreModelPatcher(
        network, management.get_torch_device(), management.unet_offload_device()
    )


def gradients(pack: ModuleType, model: Any, clip: Any, part: str) -> dict[str, torch.Tensor]:
    """Of one denoising loss."""
    select = "mlp-final-attn" if part == "encoder" else "cross-attention"
    host = pack.nodes.backend.model.ComfyModel(model, clip, None, (64, 64))
    with host.training() as training, training.edit(part, select) as edit:
        generator = torch.Generator().manual_seed(1)
        x0, noise = host.noise(1, generator), host.noise(1, generator)
        t = torch.tensor([500.0], device=host.device)
        predicted = host.predict(host.add_noise(x0, noise, t), t, host.encode(["a photo of a cat"]))
        (predicted - host.target(x0, noise, t)).square().mean().backward()
        return {key: delta.full.grad.flatten() for key, delta in edit.deltas.items()}


def kernels(patcher: Any) -> dict[str, bool]:
    """Of each packed layer, whether it is unpacked before it multiplies."""
    return {
        name: module._full_precision_mm
        for name, module in patcher.model.named_modules()
        if getattr(module, "quant_format", None)
    }


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_unpacked_network(
    pack: ModuleType, flux: Loaded, form: str
) -> None:
    import comfy.quant_ops

    needed = "int8_tensorwise" if form == "int8 rotated" else form
    if needed not in comfy.quant_ops.QUANT_ALGOS:
        pytest.skip(f"this ComfyUI has no {form}")
    model = packed(flux, form)
    before = kernels(model)
    assert before
    for part in ("encoder", "denoiser"):
        whole = gradients(pack, flux.model, flux.clip, part)
        few = gradients(pack, model, flux.clip, part)
        assert few.keys() == whole.keys()
        alike = [
            torch.cosine_similarity(few[key], whole[key], dim=0).item()
            for key in whole
            if whole[key].any()
        ]
        # Four bits leave a network that is only roughly the same.
        least = 0.5 if form in ("nvfp4", "convrot_w4a4") else 0.9
        assert sorted(alike)[len(alike) // 2] > least, part
    assert kernels(model) == before, "as the host had chosen them"


class Foreign(torch.Tensor):
    """Bytes that another extension's layers know how to read, as of a GGUF file."""


def foreign(patcher: Any) -> Any:
    """A weight of each, packed, of a patcher's model."""
    module = next(m for m in patcher.model.modules() if isinstance(m, torch.nn.Linear))
    raw = module.weight.detach().half().view(torch.uint8).as_subclass(Foreign)
    module.weight = torch.nn.Parameter(raw, requires_grad=False)
    return patcher


def nodes(pack: ModuleType, loaded: Loaded) -> dict[str, Any]:
    """What a user would start with a model."""
    from test_encoders import run_node

    def identify(folder: Any) -> Any:
        return pack.nodes.backend.model.ComfyModel(loaded.model, loaded.clip, None, (64, 64))

    return {"train": lambda folder: run_node(pack, loaded, folder), "ask": identify}


@pytest.mark.parametrize("act", ["train", "ask"])
@pytest.mark.parametrize("socket", ["MODEL", "CLIP"])
def test_what_another_extension_packed_gets_a_sentence(
    pack: ModuleType, socket: str, act: str, tmp_path: Any
) -> None:
    loaded = layouts.build("sd15")
    foreign(loaded.model if socket == "MODEL" else loaded.clip.patcher)
    with pytest.raises(ValueError, match=rf"weights of this {socket} .* such as GGUF; load it"):
        nodes(pack, loaded)[act](tmp_path)


@pytest.mark.parametrize("act", ["train", "ask"])
def test_a_bypassed_lora_gets_a_sentence(pack: ModuleType, act: str, tmp_path: Any) -> None:
    """It stands beside the layers, where nothing tells one from another."""
    import comfy.sd

    loaded = layouts.build("sd15")
    name, weight = next(
        (name, weight)
        for name, weight in loaded.model.model.state_dict().items()
        if name.endswith("attn2.to_k.weight")
    )
    lora = {
        f"{name.removesuffix('.weight')}.lora_up.weight": torch.ones(weight.shape[0], 2),
        f"{name.removesuffix('.weight')}.lora_down.weight": torch.ones(2, weight.shape[1]),
    }
    model, clip = comfy.sd.load_bypass_lora_for_models(loaded.model, loaded.clip, lora, 1.0, 1.0)
    assert model.injections
    with pytest.raises(ValueError, match=r"changes this MODEL while .* Use Load LoRA"):
        nodes(pack, replace(loaded, model=model, clip=clip))[act](tmp_path)
