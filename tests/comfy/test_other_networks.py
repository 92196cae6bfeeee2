"""Networks that another node has changed, that need more than a prompt, or compute in fp8."""

from __future__ import annotations

from types import ModuleType

import layouts
import pytest
import torch
from test_layouts import comfy_model

import testbed.model.pack
from testbed.model import checkpoint

pytestmark = pytest.mark.usefixtures("node_body")


def test_an_inpainting_network_is_asked_to_keep_nothing(pack: ModuleType) -> None:
    """It predicts what it does where the host's own sampler gives it an empty picture."""
    config, tokenizer, encoder = layouts.LAYOUTS["sd15"]()
    config.unet_config["in_channels"] = 9
    loaded = layouts.assemble("sd15 inpainting", config, tokenizer, encoder)
    loaded.model.model.set_inpaint()
    loaded.model.model.concat_keys = ("mask", "masked_image")
    inputs = []
    network = loaded.model.model.diffusion_model
    handle = network.register_forward_hook(lambda _, given, __: inputs.append(given[0][:1]))
    with comfy_model(pack, loaded).training() as model:
        conditioning = model.encode(["a photo of a cat"])
        noise = model.noise(1, torch.Generator())
        found = model.predict(noise, torch.tensor([500.0]), conditioning)
        assert found.shape == noise.shape
        assert found.isfinite().all()
        model.sample(["a photo of a cat"], 0, steps=1)
    handle.remove()
    asked, drawn = inputs[0][:, 4:], inputs[-1][:, 4:]
    assert torch.equal(asked, drawn)


@pytest.mark.parametrize("name", ["diffusion_model", "diffusion_model.input_blocks.1"])
def test_a_compiled_network_gets_a_sentence(pack: ModuleType, name: str) -> None:
    loaded = layouts.build("sd15")
    compiled = loaded.model.clone()
    compiled.add_object_patch(name, torch.compile(loaded.model.get_model_object(name)))
    with pytest.raises(
        ValueError, match=r"This MODEL was compiled by another node\. Connect it as"
    ):
        pack.nodes.backend.model.ComfyModel(compiled, loaded.clip)


def test_products_in_fp8_are_not_taken_while_training(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no change the student predicts just what its teacher does."""
    import comfy.model_management as management
    import comfy.ops
    import comfy.sd
    from safetensors.torch import load_file

    monkeypatch.setattr(management, "supports_fp8_compute", lambda *_, **__: True)
    prefix = "model.diffusion_model."
    state = load_file(checkpoint.WEIGHTS)
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    # As Load Diffusion Model has it for fp8_e4m3fn_fast.
    options = {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True}
    network = comfy.sd.load_diffusion_model_state_dict(state, model_options=options)
    layers = network.model.diffusion_model.modules()
    assert any(isinstance(layer, comfy.ops.fp8_ops.Linear) for layer in layers)
    _, clip, vae = testbed.model.pack.checkpoint()
    before = comfy.ops.fp8_linear
    model = pack.nodes.backend.model.ComfyModel(network, clip, vae, (128, 128))
    with model.training(), model.edit("denoiser", "cross-attention") as edit:
        x, t = model.noise(1, torch.Generator()), torch.tensor([700.0])
        prompt = model.encode(["a photo of a cat"])
        with edit.off():
            teacher = model.predict(x, t, prompt)
        assert torch.equal(model.predict(x, t, prompt), teacher)
    assert comfy.ops.fp8_linear is before
