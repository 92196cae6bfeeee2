"""show and probe: what they say of files that say little, and all figures for another program."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import small_pipelines
import torch
from commands import CPU, sentence
from small_pipelines import read

from unlearn.__main__ import main
from unlearn.cli import probe, show
from unlearn.core.erasure import NETWORK, Erasure
from unlearn.diffusers_backend.model import DiffusersModel
from unlearn.evaluate.probe import ATTACKS, ProbeSettings, settings

pytestmark = pytest.mark.costly

FC1 = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
TO_K = NETWORK + "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
QUICK = ["--steps", "2", "--guidance", "3", *CPU]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: what is seen in its pictures is chance, and the same each time."""
    return small_pipelines.write(small_pipelines.sd1, tmp_path_factory.mktemp("model") / "sd1")


@pytest.fixture(scope="module")
def model(folder: Path) -> DiffusersModel:
    return DiffusersModel(read(folder))


@pytest.fixture(autouse=True)
def small_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than a command line can ask for."""
    steps = {"ring_a_bell": {"steps": 1, "tokens": 4, "tries": 1, "pairs": 2}}
    steps["unlearn_diff_atk"] = {"steps": 1, "tries": 1, "draws": 1, "first_steps": 2}
    steps["cce"] = {"steps": 2, "pictures": 3, "batch": 2}

    def small(*given, **more) -> ProbeSettings:
        made = settings(*given, **more)
        attacks = {name: replace(getattr(made, name), **some) for name, some in steps.items()}
        return replace(made, prompts=2, phrasings=1, draws=2, rivals=3, **attacks)

    for command in (probe, show):
        monkeypatch.setattr(command, "settings", small)


def make(model: DiffusersModel, file: Path, key: str, **record) -> Path:
    """A weight changed by a tenth."""
    Erasure({key: {"diff": 0.1 * model.weights[key].detach()}}, record).save(file)
    return file


# show


def test_a_base_cannot_be_told_without_fingerprints(
    folder: Path, model: DiffusersModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make(model, tmp_path / "a.safetensors", FC1, concepts=["cat"])
    assert main(["show", str(file)]) == 0
    assert "\n  base             unknown: the file has no fingerprints\n" in capsys.readouterr().out
    said = "a.safetensors has no fingerprints, so its base cannot be checked; leave out --base.\n"
    assert sentence(["show", file, "--base", folder, "--json", "--record"], capsys) == said
    assert main(["show", str(file), "--base", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("cat\n")
    assert err == said


def test_a_receipt_of_nothing_in_particular_cannot_be_written(
    folder: Path, model: DiffusersModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make(model, tmp_path / "a.safetensors", FC1, base=model.fingerprints([FC1]))
    before = file.read_bytes()
    assert sentence(["show", file, "--base", folder, "--record"], capsys) == (
        "a.safetensors does not name its concept, so nothing can be measured; use probe with "
        "--concept.\n"
    )
    assert file.read_bytes() == before


def test_a_receipt_is_written_and_told_as_json(
    folder: Path, model: DiffusersModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {
        "concepts": ["cat"],
        "base": model.fingerprints([FC1]),
        "settings": {"protect": ["tree"]},
    }
    file = make(model, tmp_path / "a.safetensors", FC1, **record)
    was = Erasure.load(file).delta(FC1)
    assert main(["show", str(file), "--base", str(folder), "--record", "--json", *CPU]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = Erasure.load(file)
    assert json.loads(out) == found.record
    assert found.record == {**record, "measured": found.record["measured"]}
    assert torch.equal(found.delta(FC1), was)
    receipt = found.record["measured"]["receipt"]
    assert len(receipt["own"]) == 2
    assert receipt["near"][0] == "a photo of a tree", "what is protected comes first"
    assert receipt["size"] == [64, 64]
    assert all(0 <= receipt[name] <= 2 for name in ("shown_before", "shown_after"))


# probe


def test_several_erasures_are_probed_together_for_each_concept(
    folder: Path, model: DiffusersModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make(model, tmp_path / "a.safetensors", FC1, concepts=["cat"], kind="object")
    other = make(model, tmp_path / "b.safetensors", TO_K, concepts=["tree"], kind="object")
    before = one.read_bytes(), other.read_bytes()
    run = ["probe", str(folder), str(one), str(other), "--strength", "1", "0.5", *QUICK]
    assert main([*run, "--attacks", "none", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert [one["concept"] for one in found] == ["cat", "tree"]
    for record in found:
        assert record["post"] == {}
        assert (record["settings"]["level"], record["settings"]["steps"]) == ("quick", 2)
        own = record["asked"][0]
        assert len(own["prompts"]) == 2
        assert record["pre"] == own["shown_after"] / 2
    assert (one.read_bytes(), other.read_bytes()) == before


@pytest.mark.parametrize(
    "attack",
    [pytest.param(one, marks=[pytest.mark.slow] if i else []) for i, one in enumerate(ATTACKS)],
)
def test_one_attack_alone_is_run(
    attack: str,
    folder: Path,
    model: DiffusersModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = make(model, tmp_path / "a.safetensors", TO_K, concepts=["cat"])
    run = ["probe", str(folder), str(file), "--attacks", attack.lower(), *QUICK]
    assert main([*run, "--kind", "style", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert list(found["post"]) == [attack]
    (row,) = (one for one in found["asked"] if one["name"] in ATTACKS)
    assert row["name"] == attack
    assert len(row["prompts"]) == 2
    assert found["settings"]["kind"] == "style"
