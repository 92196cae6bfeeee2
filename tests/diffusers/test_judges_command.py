"""Receipts and probes that NudeNet counts, and counts again, on IconCanvas."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nude_net
import pytest
import torch
from commands import CPU, sentence

from unlearn.__main__ import main
from unlearn.cli.output import rewrite
from unlearn.core.erasure import Erasure
from unlearn.diffusers_backend.apply import ways
from unlearn.diffusers_backend.load import load_pipeline
from unlearn.diffusers_backend.model import DiffusersModel
from unlearn.evaluate.judges.registry import judge_of
from unlearn.evaluate.probe import ProbeSettings, probe
from unlearn.evaluate.receipt import FIGURES, JUDGED, receipt

pytestmark = pytest.mark.costly

FC1 = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
QUICK = ProbeSettings(prompts=1, phrasings=1, draws=1, rivals=1, steps=2, guidance=5.0)


@pytest.fixture(scope="module")
def counted(iconcanvas_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An erasure for which NudeNet counted, in a small receipt and a small probe."""
    model = DiffusersModel(load_pipeline(iconcanvas_folder))
    model.size = 64, 64
    change = 0.1 * torch.randn(768, 192, generator=torch.Generator().manual_seed(0))
    record = {"concepts": ["guitar"], "kind": "object", "base": model.fingerprints([FC1])}
    file = tmp_path_factory.mktemp("erasures") / "counted.safetensors"
    Erasure({FC1: {"diff": change}}, record).save(file)
    both, judge = ways(model, Erasure.load(file)), judge_of("nudenet")
    with pytest.MonkeyPatch.context() as patch:
        nude_net.installed(patch, nude_net.SeesAll)
        found = receipt(*both, ["guitar"], QUICK, judge=judge)
        probed = probe(
            *both, "guitar", frozenset({"encoder"}), QUICK, attacks=(), counted_by=judge
        ).record()
    rewrite(file, lambda e: e.with_measured(receipt=found, probe=[probed]))
    return file


def measured_again(counted: Path, folder: Path, *more: str) -> list:
    return ["show", str(counted), "--base", str(folder), *CPU, "--measure", *more]


def test_the_record_says_that_nudenet_counted(
    counted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    erasure = Erasure.load(counted)
    assert not erasure.unread
    found = erasure.record["measured"]["receipt"]
    assert found["judge"]["settings"]["threshold"] == 0.45
    assert (found["shown_before"], found["shown_after"]) == (1, 1)
    assert not any(name.startswith("explained") for name in found), "the original was not asked"
    assert found["near_changed"] > 0
    (probed,) = erasure.record["measured"]["probe"]
    assert probed["judge"] == found["judge"]
    assert all(row["shown_after"] == len(row["prompts"]) for row in probed["asked"])
    assert main(["show", str(counted)]) == 0
    said = capsys.readouterr().out
    assert said.count(", counted by NudeNet") == 2
    assert "classes ANUS_EXPOSED, BUTTOCKS_EXPOSED, " in said
    assert "; threshold 0.45)" in said
    assert "of the loss it explains" not in said


def test_the_same_judge_counts_again(
    counted: Path,
    iconcanvas_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nude_net.installed(monkeypatch, nude_net.SeesAll)
    assert main(measured_again(counted, iconcanvas_folder)) == 0
    said = capsys.readouterr().out
    assert re.search(r"its own prompts show it, after +1 of 1 +1 of 1 +1\n", said)
    assert re.search(r"All \d+ figures agree\.\n$", said)
    nude_net.missing(monkeypatch)
    said = sentence(measured_again(counted, iconcanvas_folder, "--json"), capsys)
    assert said.startswith("NudeNet counted for the receipt. NudeNet is not installed.")


def test_another_judge_counts_beside_the_record(
    counted: Path,
    iconcanvas_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It needs none that the record names. What no judge decides is compared as ever."""
    nude_net.missing(monkeypatch)
    line = measured_again(counted, iconcanvas_folder, "--judge", "original", "--json")
    assert main(line) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["measured_again"]}
    for key, (name, _) in FIGURES.items():
        one = found[f"{name}, by the original model" if key in JUDGED else name]
        assert (one["recorded"] is None) == (key in JUDGED)
        assert one["agrees"]


def test_other_settings_are_not_compared(
    counted: Path, iconcanvas_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    erasure = Erasure.load(counted)
    told = erasure.record["measured"]["receipt"]
    judge = {**told["judge"], "settings": {**told["judge"]["settings"], "threshold": 0.6}}
    for changed, why in (
        (judge, "with other settings than it has here"),
        ({"key": "x", "name": "X"}, "X counted for the receipt. There is no judge 'x' here"),
    ):
        file = tmp_path / "other.safetensors"
        measured = {"receipt": {**told, "judge": changed}}
        Erasure(erasure.deltas, {**erasure.record, "measured": measured}).save(file)
        with pytest.MonkeyPatch.context() as patch:
            nude_net.installed(patch)
            said = sentence(measured_again(file, iconcanvas_folder, "--json"), capsys)
        assert why in said


def test_nudenet_counts_for_the_probe_command(
    counted: Path,
    iconcanvas_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["probe", str(iconcanvas_folder), str(counted), *CPU, "--attacks", "none"]
    line += ["--judge", "nudenet", "--steps", "1"]
    nude_net.missing(monkeypatch)
    assert sentence(line, capsys).startswith("NudeNet is not installed.")
    nude_net.installed(monkeypatch, nude_net.SeesAll)
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "its own prompts show it in 4 of 4 pictures (4 before)" in said
    assert "Counted by NudeNet. quick probe, " in said


def test_a_judge_needs_something_to_judge(
    counted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = sentence(["show", counted, "--judge", "original"], capsys)
    assert said == "--judge needs --record or --measure, which let somebody judge.\n"
