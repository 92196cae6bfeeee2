"""apply and export of an erasure of the denoiser: the weights change by what is in the file,
and a LoRA misses no more of it than its rank must."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import small_pipelines
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from small_pipelines import read

from unlearn.__main__ import main
from unlearn.core.erasure import NETWORK, Erasure
from unlearn.diffusers_backend.model import DiffusersModel

pytestmark = pytest.mark.costly

RANK = 3
SELECTIONS = ("cross-attention", "outside-cross-attention")
# The first is linear layers alone, the second has convolutions, too; some have biases.
each_selection = pytest.mark.parametrize("select", SELECTIONS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_pipelines.write(small_pipelines.sd1, tmp_path_factory.mktemp("model") / "sd1")


def make(model: DiffusersModel, file: Path, select: str, rank: int = 0) -> Erasure:
    """Changes of a tenth of the weights' size, whose singular values fall slowly."""
    generator, deltas = torch.Generator().manual_seed(0), {}
    for key, weight in model.selected("denoiser", select).items():
        rows, columns = len(weight), weight[0].numel()
        size = 0.1 * weight.square().mean().sqrt()
        if rank and weight.ndim > 1:
            up = torch.randn(rows, rank, generator=generator)
            down = torch.randn(rank, columns, generator=generator)
            deltas[key] = {"lora_up": size * up, "lora_down": down}
        else:
            deltas[key] = {"diff": size * torch.randn(weight.shape, generator=generator)}
    record = {"concepts": ["cat"], "base": model.fingerprints(deltas)}
    Erasure(deltas, record).save(file, torch.float32)
    return Erasure.load(file)


@pytest.mark.parametrize("rank", [0, RANK])
@each_selection
def test_apply_adds_exactly_the_changes(
    select: str, rank: int, folder: Path, tmp_path: Path
) -> None:
    file, target = tmp_path / "a.safetensors", tmp_path / "out"
    model = DiffusersModel(read(folder))
    erasure, before = make(model, file, select, rank), model.weights
    assert main(["apply", str(folder), str(file), "--strength", "-0.5", "-o", str(target)]) == 0
    after = DiffusersModel(read(target)).weights
    for key, weight in before.items():
        change = erasure.delta(key).view_as(weight) if key in erasure.deltas else 0
        assert torch.allclose(after[key], weight - 0.5 * change, rtol=0, atol=1e-7), key
        assert key in erasure.deltas or torch.equal(after[key], weight)


def test_apply_adds_changes_of_both_parts(folder: Path, tmp_path: Path) -> None:
    """Two erasures, one of the network and one of the encoder, at strengths of their own."""
    one, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    model = DiffusersModel(read(folder))
    erasure = make(model, one, "cross-attention-kv")
    bias = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.bias"
    Erasure({bias: {"diff": torch.ones(64)}}, {"concepts": ["dog"]}).save(other)
    run = ["apply", str(folder), str(one), str(other), "--strength", "1", "0.5"]
    assert main([*run, "-o", str(tmp_path / "out")]) == 0
    after = DiffusersModel(read(tmp_path / "out")).weights
    assert torch.equal(after[bias], model.weights[bias] + 0.5)
    for key in erasure.deltas:
        assert torch.equal(after[key], model.weights[key] + erasure.delta(key)), key


@pytest.mark.filterwarnings("ignore:.*lora_bias")
@each_selection
def test_a_lora_misses_what_its_rank_must_and_no_more(
    select: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As peft has it, through diffusers."""
    file, lora = tmp_path / "a.safetensors", tmp_path / "lora.safetensors"
    own = read(folder)
    erasure = make(DiffusersModel(own), file, select)
    found = exported(folder, own, file, lora, "--rank", str(RANK))
    said = capsys.readouterr().out
    kept = re.search(rf"unet, \d+ layers of rank {RANK}, which keep ([\d.]+)% of the change", said)
    assert all(name.startswith("unet.") for name in load_file(lora))
    with safe_open(lora, framework="pt") as content:
        assert json.loads(content.metadata()["concept_unlearn"]) == erasure.record
    missed = whole = 0.0
    for key in erasure.deltas:
        rest = erasure.delta(key) - found[key].view_as(erasure.delta(key))
        if key.endswith(".bias"):
            assert not rest.any(), "biases travel whole"
            continue
        values = torch.linalg.svdvals(erasure.delta(key).flatten(1)).square()
        must = values[RANK:].sum().item()
        assert rest.square().sum().item() == pytest.approx(must, rel=1e-3), key
        missed, whole = missed + must, whole + values.sum().item()
    assert not any(change.any() for key, change in found.items() if key not in erasure.deltas)
    assert float(kept[1]) == pytest.approx(100 * (1 - missed / whole) ** 0.5, abs=0.01)


@pytest.mark.filterwarnings("ignore:.*lora_bias")
def test_without_a_rank_a_lora_misses_a_ten_thousandth_at_most(
    folder: Path, tmp_path: Path
) -> None:
    file, own = tmp_path / "a.safetensors", read(folder)
    erasure = make(DiffusersModel(own), file, "cross-attention")
    found = exported(folder, own, file, tmp_path / "lora.safetensors")
    for key in erasure.deltas:
        rest = erasure.delta(key) - found[key]
        assert rest.square().sum() <= 1.01e-4 * erasure.delta(key).square().sum(), key


def exported(
    folder: Path, own: StableDiffusionPipeline, file: Path, lora: Path, *more: str
) -> dict[str, torch.Tensor]:
    """What a LoRA, put on the pipeline, adds to the network's weights and biases."""
    model = DiffusersModel(own)
    modules = {module: name for name, module in model.views["denoiser"].named_modules()}
    run = ["export", str(folder), str(file), "--as", "lora", *more, "-o", str(lora)]
    assert main(run) == 0
    own.load_lora_weights(lora.parent, weight_name=lora.name)
    changes = {}
    for module in own.unet.modules():
        if hasattr(module, "get_delta_weight"):
            (name,) = module.lora_A
            key = NETWORK + modules[module.base_layer]
            changes[f"{key}.weight"] = module.get_delta_weight(name).detach()
            if module.lora_B[name].bias is not None:
                changes[f"{key}.bias"] = module.lora_B[name].bias.detach()
    return changes


def test_a_lora_is_fused_into_the_weights(folder: Path, tmp_path: Path) -> None:
    """Of keys and values, which have no biases; peft fuses none where some layers have them."""
    file, own = tmp_path / "a.safetensors", read(folder)
    model = DiffusersModel(own)
    erasure = make(model, file, "cross-attention-kv", RANK)
    before = {key: weight.detach().clone() for key, weight in model.weights.items()}
    exported(folder, own, file, tmp_path / "lora.safetensors")
    own.fuse_lora()
    own.unload_lora_weights()
    for key, weight in DiffusersModel(own).weights.items():
        change = erasure.delta(key) if key in erasure.deltas else 0
        assert torch.allclose(weight, before[key] + change, rtol=0, atol=1e-7), key


def test_a_rank_is_for_full_erasures_and_others_stay_exact(folder: Path, tmp_path: Path) -> None:
    file, lora = tmp_path / "a.safetensors", tmp_path / "lora.safetensors"
    model = DiffusersModel(read(folder))
    erasure = make(model, file, "cross-attention-kv", RANK)
    run = ["export", str(folder), str(file), "--as", "lora", "--rank", "1", "-o", str(lora)]
    assert main(run) == 0
    tensors = load_file(lora)
    ups = sorted(name for name in tensors if ".lora_B." in name)
    found = [tensors[up] @ tensors[up.replace("lora_B", "lora_A")] for up in ups]
    wanted = [erasure.delta(key) for key in erasure.deltas]
    assert len(found) == len(wanted)
    for one in wanted:
        assert any(one.shape == other.shape and torch.equal(one, other) for other in found)
