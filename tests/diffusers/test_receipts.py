"""Receipts: what an erasure's record says, measured again on IconCanvas as a diffusers folder."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from commands import CPU, sentence

from unlearn.__main__ import main
from unlearn.cli.output import rewrite
from unlearn.core.erasure import Erasure, combine
from unlearn.diffusers_backend.apply import ways
from unlearn.diffusers_backend.model import DiffusersModel
from unlearn.evaluate.probe import ProbeSettings, probe
from unlearn.evaluate.receipt import FIGURES, Figure, count_tolerance, near, receipt

RING, TOKEN = "Ring-A-Bell", "CCE"
pytestmark = pytest.mark.costly

FC1 = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
QUICK = ProbeSettings(prompts=1, phrasings=1, draws=1, rivals=1, steps=2, guidance=5.0)


# By hand


def test_a_figure_agrees_up_to_its_tolerance() -> None:
    assert Figure("a", 0.1, 0.12, 0.02).agrees
    assert not Figure("a", 0.1, 0.1201, 0.02).agrees
    assert not Figure("a", float("nan"), 0.1, 0.02).agrees
    assert Figure("a", 3, 4, 1, of=4).agrees
    assert not Figure("a", 2, 4, 1, of=4).agrees


def test_a_count_may_differ_by_one_picture_of_eight() -> None:
    assert [count_tolerance(count) for count in (1, 4, 8, 9, 24)] == [1, 1, 1, 2, 3]


def test_others_are_protected_words_and_usual_ones() -> None:
    assert near(["house"], "object", ["fox", "cat"]) == [
        "a photo of a fox",
        "a photo of a cat",
        "a photo of a apple",
        "a photo of a guitar",
    ]
    assert [prompt.rpartition(" ")[2] for prompt in near(["watercolor"], "style")] == [
        "cat",
        "house",
        "sketch",
        "photograph",
    ]


# On a model


@pytest.fixture(scope="module")
def folder(iconcanvas_folder: Path) -> Path:
    return iconcanvas_folder


@pytest.fixture(scope="module")
def shaken(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An erasure that knows its base, by a shaken encoder, with a small receipt and probe."""
    from unlearn.diffusers_backend.load import load_pipeline

    model = DiffusersModel(load_pipeline(folder))
    model.size = 64, 64  # a quarter of the work; what is seen in the pictures does not matter
    change = 0.1 * torch.randn(768, 192, generator=torch.Generator().manual_seed(0))
    record = {"concepts": ["guitar"], "kind": "object", "base": model.fingerprints([FC1])}
    file = tmp_path_factory.mktemp("erasures") / "shaken.safetensors"
    Erasure({FC1: {"diff": change}}, record).save(file)
    both = ways(model, Erasure.load(file))
    found = receipt(*both, ["guitar"], QUICK)
    probed = probe(*both, "guitar", frozenset({"encoder"}), QUICK, attacks=()).record()
    # As an attack by prompts and one by a token leave it.
    own = copy.deepcopy(probed["asked"][0])
    probed["asked"] += [{**own, "name": RING}, {**own, "name": TOKEN}]
    rewrite(file, lambda e: e.with_measured(receipt=found, probe=[probed], seconds=1.5))
    return file


def with_record(file: Path, target: Path, **measured) -> Path:
    """A copy of an erasure with other figures."""
    erasure = Erasure.load(file)
    Erasure(erasure.deltas, {**erasure.record, "measured": measured}).save(target)
    return target


def test_what_was_measured_comes_out_again(
    folder: Path, shaken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = shaken.read_bytes()
    assert main(["show", str(shaken), "--base", str(folder), *CPU, "--measure"]) == 0
    said = capsys.readouterr().out
    assert "is its base: all 1 recorded fingerprints match" in said
    assert re.search(r"recorded +measured +tolerance\n", said)
    assert re.search(r"its own prompts show it, before +\d of 1 +\d of 1 +1\n", said)
    assert re.search(r"other pictures changed +(\d+\.\d%) +\1 +1\.0%\n", said)
    assert "guitar: own prompts, after " in said
    assert f"guitar: {RING}, after " in said
    assert f"guitar: {RING}, before" not in said, "an attack has pictures after only"
    assert TOKEN not in said.partition("tolerance")[2], "no record holds a trained token"
    assert re.search(r"All \d+ figures agree\.\n$", said)
    assert shaken.read_bytes() == before


def test_what_does_not_come_out_again_ends_with_one(
    folder: Path, shaken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Erasure.load(shaken).record["measured"]["receipt"]
    better = {**told, "near_changed": told["near_changed"] - 0.011}
    file = with_record(shaken, tmp_path / "better.safetensors", receipt=better)
    assert main(["show", str(file), "--base", str(folder), *CPU, "--measure", "--json"]) == 1
    out, err = capsys.readouterr()
    assert err == (
        "1 of 6 figures differ by more than the tolerance, so the record of better.safetensors is "
        "wrong; probe it again before you rely on it.\n"
    )
    found = json.loads(out)
    assert found["measured"] == {"receipt": better}
    (wrong,) = (one for one in found["measured_again"] if not one["agrees"])
    assert wrong["name"] == "other pictures changed"
    assert wrong["measured"] == pytest.approx(told["near_changed"], abs=1e-3)


def test_measuring_needs_the_base_that_it_was_made_with(
    folder: Path, shaken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    assert main(["apply", str(folder), str(shaken), "-o", str(other)]) == 0
    assert main(["show", str(shaken), "--base", str(other), *CPU, "--measure"]) == 1
    out, err = capsys.readouterr()
    assert "1 of 1 weights differ" in err
    assert "tolerance" not in out


@pytest.mark.slow
def test_a_receipt_is_written_once_and_holds(
    folder: Path, shaken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = with_record(shaken, tmp_path / "a.safetensors", seconds=1.5)
    assert main(["show", str(file), "--base", str(folder), *CPU, "--record"]) == 0
    assert "Written into a.safetensors." in capsys.readouterr().out
    written, was = Erasure.load(file), Erasure.load(shaken)
    assert written.record["measured"]["seconds"] == 1.5
    assert written.record["measured"]["receipt"]["shown_before"] == 4
    assert torch.equal(written.delta(FC1), was.delta(FC1))
    said = sentence(["show", file, "--base", folder, *CPU, "--record"], capsys)
    assert "a.safetensors already has a receipt; check it with --measure" in said
    assert main(["show", str(file), "--base", str(folder), *CPU, "--measure"]) == 0


# In words


def test_show_says_what_was_measured(shaken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(shaken)]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"\n  base             fingerprints of 1 weights, together [0-9a-f]{8}\n", said
    )
    assert re.search(r"\nmeasured\n", said)
    assert (
        "\n    receipt        1 pictures of it, 3 others, counted by the original model\n" in said
    )
    for name, allowed in FIGURES.values():
        assert re.search(
            rf"\n      {name} +{'[0-9] of 1' if allowed is None else '[-0-9.]+%'}", said
        )
    assert "\n    probe          guitar, quick, counted by the original model\n      " in said
    assert "\n    seconds        1.5\n" in said
    assert "{" not in said, "no figure is dumped as it is"


def test_show_says_what_was_combined(
    shaken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "both.safetensors"
    one = Erasure.load(shaken)
    combine([one, one], [1.0, 0.5]).with_measured(conflict=["guitar weakens guitar"]).save(file)
    assert main(["show", str(file)]) == 0
    said = capsys.readouterr().out
    assert "\n    of             guitar at strength 0.5: unknown method, undated\n" in said
    assert "\n    conflict\n      guitar weakens guitar\n" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--measure"], "--measure needs the model of the erasure; name it with --base"),
        (["--record"], "--record needs the model of the erasure; name it with --base"),
        (["--measure", "--base", "no_model"], "has no figures that can be measured again"),
    ],
)
def test_bad_input_gets_a_sentence_before_any_work(
    options: list[str],
    said: str,
    shaken: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = with_record(shaken, tmp_path / "a.safetensors", seconds=1.5)
    assert said in sentence(["show", file, *options], capsys)


def test_both_at_once_is_bad_usage(shaken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = sentence(["show", shaken, "--measure", "--record"], capsys, code=2)
    assert "not allowed with argument" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"own": []}, "measured.receipt (own is [])"),
        ({"shown_after": None}, "measured.receipt (shown_after is None)"),
        ({"settings": {"kind": "noise"}}, "measured.receipt (settings kind is 'noise')"),
        ({"settings": None}, "measured.receipt (settings is None)"),
        ({"size": [8192, 8192]}, "measured.receipt (size is 8192)"),
        ({"near": ["a"] * 4000, "size": [4096, 4096]}, "runs of the denoiser at 4096 x 4096)"),
    ],
)
def test_a_receipt_that_cannot_be_read_gets_a_sentence(
    change: dict,
    said: str,
    folder: Path,
    shaken: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = {**Erasure.load(shaken).record["measured"]["receipt"], **change}
    file = with_record(shaken, tmp_path / "a.safetensors", receipt=told)
    found = sentence(["show", file, "--base", folder, *CPU, "--measure", "--json"], capsys)
    assert "has no figures that can be measured again" in found
    assert said in found
