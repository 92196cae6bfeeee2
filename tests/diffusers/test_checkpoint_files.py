"""Single files of whole models: what their markers say, names that ComfyUI puts right, and a
sentence for what is missing or of another kind."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import small_pipelines
import torch
from safetensors.torch import save_file

from unlearn.diffusers_backend.load import ModelError, load_pipeline
from unlearn.diffusers_backend.model import DiffusersModel

pytestmark = pytest.mark.costly

Tensors = dict[str, torch.Tensor]
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
ENCODER = "cond_stage_model.transformer."
MARK = torch.tensor([])  # as ComfyUI writes it


class Model:
    """A folder and what a single file of the same model holds."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.folder = small_pipelines.write(getattr(small_pipelines, kind), folder)
        self.tensors = small_pipelines.checkpoint(small_pipelines.read(self.folder))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    parent = tmp_path_factory.mktemp("models")
    return {kind: Model(kind, parent / kind) for kind in ("sd1", "sd2", "xl")}


@pytest.fixture
def read(models: dict[str, Model], tmp_path: Path) -> Callable:
    """The model of a file of these tensors, with the folder of a kind for its configuration."""

    def load(kind: str, tensors: Tensors) -> DiffusersModel:
        file = tmp_path / "model.safetensors"
        save_file(tensors, file)
        return DiffusersModel(load_pipeline(file, models[kind].folder))

    return load


# What the network predicts


def test_an_xl_file_that_is_marked_so_predicts_v(models: dict[str, Model], read: Callable) -> None:
    """Its configuration says epsilon, as the one that is fetched for every XL file does."""
    plain = read("xl", models["xl"].tensors)
    marked = read("xl", {**models["xl"].tensors, "v_pred": MARK})
    x0, noise = plain.noise(2, torch.Generator().manual_seed(0)).split(1)
    t = torch.tensor([600.0])
    sigma = plain.sigmas[600].item()
    v = (noise - sigma * x0) / (sigma**2 + 1) ** 0.5
    assert torch.equal(plain.target(x0, noise, t), noise)
    assert torch.allclose(marked.target(x0, noise, t), v, atol=1e-5)
    assert torch.equal(marked.sigmas, plain.sigmas)
    assert type(marked.pipeline.scheduler) is type(plain.pipeline.scheduler)


def test_zero_terminal_snr_ends_in_pure_noise(models: dict[str, Model], read: Callable) -> None:
    marked = read("xl", {**models["xl"].tensors, "v_pred": MARK, "ztsnr": MARK})
    assert marked.pipeline.scheduler.config.prediction_type == "v_prediction"
    # rescale_zero_terminal_snr_sigmas in ComfyUI's model_sampling.py, in double precision.
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    root = torch.cumprod(1 - betas, 0).sqrt()
    signal = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    signal[-1] = 4.8973451890853435e-08
    wanted = ((1 - signal) / signal).sqrt().float()
    assert torch.allclose(marked.sigmas, wanted, rtol=2e-3)
    assert marked.sigmas[-1].item() == pytest.approx(4518.76, rel=1e-4)


def test_a_markerless_file_predicts_what_its_configuration_says(
    models: dict[str, Model], read: Callable
) -> None:
    for kind, wanted in (("sd1", "epsilon"), ("sd2", "v_prediction"), ("xl", "epsilon")):
        scheduler = read(kind, models[kind].tensors).pipeline.scheduler
        assert scheduler.config.prediction_type == wanted


@pytest.mark.parametrize(("spread", "wanted"), [(0.2, "v_prediction"), (0.02, "epsilon")])
def test_stable_diffusion_2_is_told_by_the_spread_of_a_bias(
    spread: float, wanted: str, models: dict[str, Model], read: Callable
) -> None:
    """ComfyUI's own test, whatever the configuration: the one that is fetched is 2.1's, which
    predicts v."""
    bias = torch.linspace(-1, 1, 64)
    name = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    more = {name: bias * spread / bias.std(unbiased=False)}
    scheduler = read("sd2", {**models["sd2"].tensors, **more}).pipeline.scheduler
    assert scheduler.config.prediction_type == wanted


@pytest.mark.parametrize(
    ("kind", "mark", "said"),
    [
        ("xl", "edm_mean", r"EDM's noise levels \(edm_mean\)"),
        ("xl", "edm_vpred.sigma_max", r"EDM's noise levels \(edm_vpred.sigma_max\)"),
        ("xl", "ztsnr", "is marked ztsnr, but the scheduler of its configuration is not set"),
        ("sd1", "v_pred", "is marked v_pred, but the scheduler of its configuration is not"),
        ("sd1", "ztsnr", "is marked ztsnr, but the scheduler of its configuration is not"),
    ],
)
def test_a_marker_that_cannot_be_followed_is_refused(
    kind: str, mark: str, said: str, models: dict[str, Model], read: Callable
) -> None:
    """ComfyUI looks for these in XL's files alone; in others they mean what nobody can tell."""
    with pytest.raises(ModelError, match=said):
        read(kind, {**models[kind].tensors, mark: torch.ones(1)})


# Names and parts


def test_names_without_text_model_are_read_as_comfyui_reads_them(
    models: dict[str, Model], read: Callable
) -> None:
    tensors = {
        name.replace(f"{ENCODER}text_model.", ENCODER): tensor
        for name, tensor in models["sd1"].tensors.items()
    }
    assert tensors.keys() != models["sd1"].tensors.keys()
    found, wanted = read("sd1", tensors), read("sd1", models["sd1"].tensors)
    assert found.weights.keys() == wanted.weights.keys()
    assert all(torch.equal(found.weights[key], wanted.weights[key]) for key in wanted.weights)
    del tensors[f"{ENCODER}final_layer_norm.bias"]
    with pytest.raises(ModelError, match=r"its text encoder lacks final_layer_norm\.bias"):
        read("sd1", tensors)


@pytest.mark.parametrize(
    ("kind", "part", "said"),
    [
        ("sd1", "first_stage_model.", "has no autoencoder"),
        ("sd1", "cond_stage_model.", "has no text encoder;"),
        ("sd1", ("cond_stage_model.", "first_stage_model."), r"\(VAE\) and no text encoder;"),
        ("sd2", "cond_stage_model.", "has no text encoder;"),
        ("xl", "first_stage_model.", "has no autoencoder"),
        ("xl", "conditioner.embedders.0.", "has no text encoder 1;"),
        ("xl", "conditioner.embedders.1.", "has no text encoder 2;"),
        ("xl", "model.diffusion_model.time_embed.0.bias", "some weights are missing"),
        ("sd1", "first_stage_model.decoder.conv_in.bias", "some weights are missing"),
        (
            "sd1",
            f"{ENCODER}text_model.encoder.layers.1.mlp.fc1.bias",
            "its text_encoder lacks .*mlp.fc1.bias",
        ),
    ],
)
def test_a_file_without_a_part_gets_a_sentence_that_names_it(
    kind: str, part: str | tuple, said: str, models: dict[str, Model], read: Callable
) -> None:
    whole = models[kind].tensors
    tensors = {name: tensor for name, tensor in whole.items() if not name.startswith(part)}
    assert len(tensors) < len(whole)
    with pytest.raises(ModelError, match=said) as raised:
        read(kind, tensors)
    assert "\n" not in str(raised.value)


# Other kinds


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {FIRST: torch.zeros(32, 9, 3, 3)},
            "9 input channels instead of 4, as models for inp",
        ),
        ({FIRST: torch.zeros(32, 8, 3, 3)}, "with 8 input channels"),
        ({"model.diffusion_model.out.2.scale_weight": torch.ones(1)}, "is quantised"),
        ({FIRST: torch.zeros(32, 4, 3, 3, dtype=torch.int8)}, r"is quantised \(I8\)"),
    ],
)
def test_a_network_of_another_kind_gets_a_sentence(
    changes: Tensors, said: str, models: dict[str, Model], read: Callable
) -> None:
    with pytest.raises(ModelError, match=said):
        read("sd1", {**models["sd1"].tensors, **changes})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "model.diffusion_model.double_blocks.0.img_attn.qkv.weight",
            "of an unsupported model",
        ),
        ("double_blocks.0.img_attn.qkv.weight", "not a checkpoint of a whole model"),
        ("control_model.input_blocks.0.0.weight", "not a checkpoint of a whole model"),
        ("decoder.conv_in.weight", "not a checkpoint of a whole model"),
        ("lora_unet_mid_block.lora_up.weight", "not a checkpoint of a whole model"),
    ],
)
def test_what_is_no_stable_diffusion_gets_a_sentence(name: str, said: str, read: Callable) -> None:
    """Flux with and without its wrapping, a ControlNet, a VAE and a LoRA."""
    with pytest.raises(ModelError, match=said):
        read("sd1", {name: torch.zeros(2, 2)})


@pytest.mark.parametrize(
    ("ending", "content", "said"),
    [
        ("gguf", b"GGUF" + bytes(40), "is a GGUF file; name a .safetensors file"),
        ("safetensors", b"", "is empty; download or save it again"),
        ("ckpt", b"", "is empty; download or save it again"),
        ("ckpt", b"PK\x05\x06" + bytes(18), "cannot be read safely as a checkpoint"),
    ],
)
def test_a_file_that_is_no_checkpoint_gets_a_sentence(
    ending: str, content: bytes, said: str, tmp_path: Path
) -> None:
    file = tmp_path / f"model.{ending}"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=said):
        load_pipeline(file)


def test_what_is_no_tensor_in_a_ckpt_file_does_not_count(
    models: dict[str, Model], tmp_path: Path
) -> None:
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": {**models["sd1"].tensors, FIRST: 3}, "epoch": 1}, file)
    with pytest.raises(ModelError, match="is a checkpoint of an unsupported model"):
        load_pipeline(file, models["sd1"].folder)


def test_a_ckpt_file_that_would_grow_is_refused(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.ckpt", tmp_path / "packed.ckpt"
    torch.save({"state_dict": {FIRST: torch.zeros(1000, 1000)}}, plain)
    with zipfile.ZipFile(plain) as one, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as two:
        for name in one.namelist():
            two.writestr(name, one.read(name))
    with pytest.raises(ModelError, match="cannot be read safely as a checkpoint"):
        load_pipeline(packed)
