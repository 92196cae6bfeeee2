"""python -m unlearn identify: on IconCanvas as a diffusers folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import CPU, sentence
from PIL import Image

from testbed.model import samples
from unlearn.__main__ import main
from unlearn.core.erasure import Erasure

pytestmark = pytest.mark.costly

PICTURES = [str(samples.FOLDER / f"mushroom_{i}.png") for i in (1, 3)]
WORDS = "cat, pizza, mushroom, house"
FC1 = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"


@pytest.fixture(scope="module")
def folder(iconcanvas_folder: Path) -> Path:
    return iconcanvas_folder


@pytest.fixture
def shaken(tmp_path: Path) -> Path:
    """An erasure that moves every word: a layer's feed-forward weights, shaken."""
    change = 0.2 * torch.randn(768, 192, generator=torch.Generator().manual_seed(0))
    file = tmp_path / "shaken.safetensors"
    Erasure({FC1: {"diff": change}}, {"concepts": ["mushroom"]}).save(file)
    return file


def asked(folder: Path, *more: str) -> list[str]:
    return ["identify", str(folder), *PICTURES, "--draws", "12", *CPU, *more]


def test_it_says_the_word_and_how_sure_it_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chart = tmp_path / "new" / "chart.png"
    assert main(asked(folder, "--words", WORDS, "--chart", str(chart))) == 0
    said = capsys.readouterr().out
    assert re.match(r"The model calls it: mushroom \(confidence (over )?\d+%\)\.\n", said)
    assert re.search(r"\n +word +explains +error +draws\n1\. +mushroom +\d+\.\d% +12\n2\. ", said)
    assert re.search(r"4 candidates, 2 pictures, 60 evaluations of the denoiser, \d+\.\d s", said)
    pixels = np.asarray(Image.open(chart).convert("RGB"), dtype=int)
    # The first bar is dark, the others pale.
    assert (np.abs(pixels - (20, 60, 150)).sum(2) < 30).sum() > 500


def test_all_figures_for_another_program(
    folder: Path, shaken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The words from a file, the pictures from a folder, and what an erasure moved."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, name in enumerate(PICTURES):
        Image.open(name).resize((200, 200)).save(pictures / f"{i}.jpg")
    file = tmp_path / "words.txt"
    file.write_text("cat, pizza\nmushroom\n\nhouse\n", encoding="utf-8")
    more = ["--words-file", str(file), "--erasure", str(shaken), "--draws", "12", "--json"]
    assert main(["identify", str(folder), str(pictures), *CPU, *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["word"] == "mushroom"
    assert (found["pictures"], found["draws"], found["evaluations"]) == (2, 12, 60)
    assert {word["word"] for word in found["words"]} == {"mushroom", "cat", "pizza", "house"}
    assert found["words"][0]["explained"] > found["words"][1]["explained"]
    # Never the concept itself.
    assert {one["word"] for one in found["neighbours"]} == {"cat", "pizza", "house"}
    assert set(found["protect"]) == {"cat", "pizza", "house"}
    moved = [one["moved"] for one in found["neighbours"]]
    assert moved == sorted(moved, reverse=True)


def test_it_proposes_what_an_erasure_moved_along(
    folder: Path, shaken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked(folder, "--words", WORDS, "--erasure", str(shaken))) == 0
    assert re.search(
        r"\nWords to protect, with how far the erasure moves each: (\w+ \d+%, ){2}\w+ \d+%\.\n",
        capsys.readouterr().out,
    )


def test_the_model_stays_what_it_is(folder: Path, shaken: Path) -> None:
    """Asked again after an erasure was put on it, it moves each word as far."""
    from unlearn.cli.identify import moved_along
    from unlearn.cli.models import load_model
    from unlearn.evaluate.classifier import Ranking, Word

    model, ranking = load_model(folder), Ranking([Word("mushroom", 0.1, 0, 12)], 1.0, 1)
    erasure = Erasure.load(shaken)
    once, again = (
        moved_along(model, erasure, ["cat", "pizza"], "object", ranking) for _ in range(2)
    )
    assert once == again


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nowhere.png"], "There is no picture or folder nowhere.png; name another"),
        ([*PICTURES, "--words", "fox"], "1 candidate is given; type at least two"),
        ([*PICTURES, "--words", " ,"], "--words holds no words; give at least two"),
        ([*PICTURES, "--words-file", "{tmp}/none.txt"], "is not a UTF-8 text file"),
        ([*PICTURES, "--words-file", PICTURES[0]], "is not a UTF-8 text file"),
        ([*PICTURES, "--words-file", "{tmp}/binary.txt"], "is not a UTF-8 text file"),
        ([*PICTURES, "--words", "\x1b,\u200b"], "--words holds no words; give at least two"),
        ([*PICTURES, "--words-file", "{tmp}/empty.txt"], "empty.txt holds no words"),
        ([*PICTURES, "--chart", "chart.jpg"], "does not end in .png; name a --chart"),
        ([*PICTURES, "--erasure", "{tmp}/none"], "There is no file none; choose another"),
        (
            [*PICTURES, "--erasure", "{tmp}/network"],
            "network changes only the denoiser, so",
        ),
        ([*PICTURES, "--erasure", "{tmp}/nothing"], "nothing changes no weight, so it would"),
    ],
)
def test_bad_input_gets_a_sentence_before_any_work(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model does not even exist."""
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    (tmp_path / "binary.txt").write_bytes(b"\0\x1b[31m,fox,cat")
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    Erasure({key: {"diff": torch.zeros(2, 2)}}, {}).save(tmp_path / "network")
    Erasure({"clip_l.weight": {"diff": torch.zeros(2, 2)}}, {}).save(tmp_path / "nothing")
    filled = [option.replace("{tmp}", str(tmp_path)) for option in options]
    assert said in sentence(["identify", "no_model", *filled], capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "the following arguments are required: PICTURE"),
        (["a.png", "--draws", "1"], "it must be a whole number, at least 12, not '1'"),
        (["a.png", "--words", "a,b", "--words-file", "c"], "not allowed with argument --words"),
    ],
)
def test_bad_usage_gets_a_sentence_and_two(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in sentence(["identify", "model", *options], capsys, code=2)
