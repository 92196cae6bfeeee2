"""Sweeps without Ray: plans, cells, what a worker does for one, the folder and the table."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import small_closed_form
import torch
from commands import CPU, sentence
from conftest import ROOT

import unlearn
from unlearn.__main__ import main
from unlearn.cli import show
from unlearn.cli.output import Failure
from unlearn.cli.sweep import on_ray, task
from unlearn.cli.sweep.cell import Cell
from unlearn.cli.sweep.plan import read_plan
from unlearn.core.erasure import Erasure
from unlearn.evaluate import known
from unlearn.evaluate.probe import settings
from unlearn.methods.registry import METHODS

pytestmark = pytest.mark.costly

CONCEPTS = '[concepts]\nobject = ["fox"]\n'
CLOSED_FORM = "[methods.closed_form]\n"
SMALL = f'models = "model"\n{CONCEPTS}{CLOSED_FORM}[options]\nsize = 64\ndevice = "cpu"\n'


@pytest.fixture
def place(tmp_path: Path, iconcanvas_folder: Path) -> Path:
    """A folder with IconCanvas as `model`."""
    (tmp_path / "model").symlink_to(iconcanvas_folder, target_is_directory=True)
    return tmp_path


def plan(place: Path, text: str) -> list[Cell]:
    (place / "plan.toml").write_text(text)
    return read_plan(place / "plan.toml", place / "out")


# Plans


def test_a_plan_is_every_combination_of_its_lists(place: Path) -> None:
    cells = plan(
        place,
        'models = ["model"]\nseeds = [0, 3]\n'
        '[concepts]\nobject = ["fox", "pizza -> guitar", "cat, owl"]\nstyle = "ink"\n'
        "[methods.closed_form]\nstrength = [0.5, 1.0]\n"
        '[[methods.key_step]]\nsteps = 2\n[[methods.key_step]]\nmode = "paper"\n',
    )
    assert len(cells) == len({cell.key for cell in cells}) == (2 + 1 + 1) * 4 * 2
    first = cells[0]
    assert first.about == {
        "model": "model",
        "concept": "fox",
        "kind": "object",
        "method": "closed_form",
        "settings": {"strength": 0.5},
        "seed": 0,
    }
    assert first.name == "fox by closed_form, seed 0, strength 0.5"
    told = {(cell.about["concept"], cell.about["kind"]) for cell in cells}
    assert told == {
        ("fox", "object"),
        ("pizza -> guitar", "object"),
        ("cat, owl", "object"),
        ("ink", "style"),
    }
    settings = [cell.about["settings"] for cell in cells if cell.about["method"] == "key_step"]
    assert settings == [{"steps": 2}] * 8 + [{"mode": "paper"}] * 8


def test_a_cell_asks_for_what_a_user_types(place: Path) -> None:
    (cell,) = plan(
        place,
        'models = "model"\n[concepts]\nstyle = "ink -> flat"\n'
        '[methods.few_shot]\nrank = 4\nprotect = "fox, cat"\nharden = true\n'
        '[options]\nhalf = true\nclip-skip = 1\nprecision = "float32"\n',
    )
    args = cell.args
    assert (args.method, args.kind, args.seed, args.rank) == ("few_shot", "style", 0, 4)
    assert args.concepts == (["ink"], {"ink": "flat"})
    assert args.protect == ("fox", "cat")
    assert args.harden == METHODS["few_shot"].described["harden"].turned_on
    assert (args.half, args.clip_skip, args.precision) == (True, 1, "float32")
    assert args.model == place / "model"
    assert args.output == place / "out" / "cells" / f"{cell.key}.safetensors"
    assert args.force, "what a lost worker left is replaced"


def key(place: Path, text: str) -> str:
    (cell,) = plan(place, text)
    return cell.key


def test_a_key_is_all_that_decides_an_erasure_and_nothing_else(
    place: Path, iconcanvas_folder: Path
) -> None:
    plain = key(place, SMALL)
    same = [
        SMALL.replace(CLOSED_FORM, f"{CLOSED_FORM}strength = 1.0\n"),  # as it is by itself
        SMALL.replace('"cpu"', '"auto"'),
        SMALL.replace('"model"', f'"{iconcanvas_folder}"'),
        SMALL.replace('"model"', '["model", "./model"]'),  # twice the same is once
        SMALL.replace('"fox"', '"fox", " fox "'),
    ]
    assert [key(place, text) for text in same] == [plain] * len(same)
    others = [
        SMALL.replace('"fox"', '"owl"'),
        SMALL.replace('"fox"', '"fox -> owl"'),
        SMALL.replace("object", "character"),
        SMALL.replace("closed_form", "few_shot"),
        SMALL.replace(CLOSED_FORM, f"{CLOSED_FORM}strength = 0.9\n"),
        SMALL.replace("size = 64", "size = 72"),
        f"seeds = 1\n{SMALL}",
    ]
    assert len({plain, *(key(place, text) for text in others)}) == 1 + len(others)
    # Another model of the same name: one byte at the end of its denoiser.
    (place / "model").unlink()
    shutil.copytree(iconcanvas_folder, place / "model")
    assert key(place, SMALL) == plain
    (weights,) = (place / "model" / "unet").glob("*.safetensors")
    with weights.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read()
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert key(place, SMALL) != plain


METHOD = f'models = "model"\n{CONCEPTS}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models = ", "plan.toml is not TOML ("),
        ('model = "model"', "plan.toml has an unknown key 'model'; it may have models, concepts,"),
        (f"{CONCEPTS}{CLOSED_FORM}", "plan.toml names no models; docs/sweeps.md has an example."),
        (f'models = "model"\n{CLOSED_FORM}', "plan.toml names no concepts;"),
        (METHOD, "plan.toml names no methods;"),
        (SMALL.replace('"model"', "3"), "plan.toml needs a list of texts as models"),
        (SMALL.replace('"model"', '"gone"'), "There is no file or folder "),
        (SMALL.replace('["fox"]', "[1]"), "plan.toml needs a list of texts as object"),
        (SMALL.replace('["fox"]', '["@a.txt"]'), "plan.toml names the file @a.txt as a concept;"),
        (SMALL.replace('["fox"]', '["(fox:2)"]'), "closed_form of '(fox:2)': CONCEPT: The concept"),
        (SMALL.replace("object", "thing"), "closed_form of 'fox': kind: invalid choice: 'thing'"),
        (f"seeds = -1\n{SMALL}", "plan.toml needs a list of whole numbers from 0 on as seeds"),
        (f"methods = 1\n{METHOD}", "plan.toml needs a table as methods"),
        (f"{METHOD}[methods.closed]", "plan.toml names an unknown method 'closed'; there are "),
        (f"{METHOD}{CLOSED_FORM}steps = 3", "gives closed_form an unknown setting 'steps'; it has"),
        (f"{METHOD}{CLOSED_FORM}seed = 3", "gives seed to closed_form; give it in seeds instead."),
        (
            f"{METHOD}{CLOSED_FORM}strength = []",
            "needs a value or a list of values for strength of",
        ),
        (
            f"{METHOD}{CLOSED_FORM}strength = -1",
            "closed_form takes at least 0; correct --strength.",
        ),
        (
            f'{METHOD}{CLOSED_FORM}strength = "much"',
            "plan.toml, closed_form of 'fox': strength: it must be a number, not 'much'.",
        ),
        (
            f'{METHOD}[methods.few_shot]\nmode = "paper"\nprotect = "owl"',
            "few_shot of 'fox': --protect is a setting of mode balanced;",
        ),
        (f'{METHOD}[methods.few_shot]\nanchor = "fox"', "is the concept itself, so nothing would"),
        (SMALL.replace("size", "sizes"), "plan.toml has an unknown option 'sizes'; options are"),
        (SMALL.replace("64", "63"), "size: it must be a whole number, at least 64 and a multiple"),
        (SMALL.replace("size = 64", "half = 1"), "plan.toml needs true or false for half, not 1."),
        (SMALL.replace("size = 64", 'config = "no"'), "is not a diffusers folder: it has no"),
    ],
)
def test_a_plan_that_cannot_be_used_gets_a_sentence(
    text: str, said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "plan.toml").write_text(text)
    arguments = ["sweep", place / "plan.toml", "-o", place / "out"]
    assert said in sentence(arguments, capsys)
    assert not (place / "out").exists()


def test_the_example_is_that_of_the_page(place: Path, iconcanvas_folder: Path) -> None:
    text = (ROOT / "docs" / "sweep.toml").read_text()
    assert f"```toml\n{text}```" in (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    cells = plan(place, text.replace("../output/iconcanvas", "model"))
    assert len(cells) == 8


# One cell


TWO = SMALL.replace('"fox"', '"owl -> cat", "fox -> koala"')


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory, iconcanvas_folder: Path
) -> Iterator[tuple[Path, Cell]]:
    """(a folder as `place`, a cell that is done there): the second of two on the open model."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "model").symlink_to(iconcanvas_folder, target_is_directory=True)
    with pytest.MonkeyPatch.context() as small:
        small.setitem(METHODS, "closed_form", small_closed_form.few(unlearn))
        small.setattr(known, "STEPS", 1)
        small.setattr(known, "DRAWS", (2, 2))
        less = {"prompts": 1, "draws": 1, "rivals": 2, "steps": 1}
        small.setattr(show, "settings", lambda *given: replace(settings(*given), **less))
        cells = plan(folder, TWO)
        cells[0].folder.mkdir(parents=True)
        for cell in cells:
            assert task.work(cell).endswith(" s")
        yield folder, cells[1]


def test_a_cell_is_what_erase_writes(swept: tuple[Path, Cell], tmp_path: Path) -> None:
    place, cell = swept
    file = tmp_path / "fox.safetensors"
    options = ["--method", "closed_form", "--size", "64", "--no-verdict", *CPU]
    assert main(["erase", str(place / "model"), "fox -> koala", *options, "-o", str(file)]) == 0
    alone, there = Erasure.load(file), Erasure.load(cell.args.output)
    assert alone.deltas.keys() == there.deltas.keys()
    for name, delta in alone.deltas.items():
        for part, tensor in delta.items():
            assert torch.equal(tensor, there.deltas[name][part]), name
    assert there.record["measured"].keys() >= {"receipt", "verdict", "seconds"}
    assert there.record["settings"] == alone.record["settings"]


def test_a_cell_that_is_done_is_not_done_again(swept: tuple[Path, Cell], place: Path) -> None:
    shutil.copytree(swept[0] / "out", place / "out")
    _, done = plan(place, TWO)
    files = [done.file, done.args.output]
    before = [file.stat().st_mtime_ns for file in files]
    assert task.work(done).endswith(" s")
    assert [file.stat().st_mtime_ns for file in files] == before
    whole = done.file.read_text()
    done.file.write_text(whole[:-40])
    assert done.result() is None, "a damaged result is none"
    done.file.write_text(whole)
    assert done.result() == json.loads(whole)
    done.args.output.unlink()
    assert done.result() is None, "a result without its erasure is none"


def test_the_table_has_what_is_done_and_what_is_not(
    swept: tuple[Path, Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    """With --table-only, which needs no Ray."""
    place, done = swept
    (place / "plan.toml").write_text(SMALL.replace('"fox"', '"fox -> koala", "cat"'))
    (place / "out" / "table.json").write_text("{}")
    arguments = ["sweep", str(place / "plan.toml"), "-o", str(place / "out"), "--table-only"]
    assert main(arguments) == 0
    assert "1 of 2 erasures are done: " in capsys.readouterr().out
    found = json.loads((place / "out" / "table.json").read_text())
    (row,) = found["cells"]
    assert (row["concept"], row["file"]) == ("fox -> koala", f"cells/{done.key}.safetensors")
    receipt = Erasure.load(place / "out" / row["file"]).record["measured"]["receipt"]
    assert row["record"]["measured"]["receipt"] == receipt
    assert [one["concept"] for one in found["missing"]] == ["cat"]
    page = (place / "out" / "table.md").read_text().splitlines()
    (line,) = [line for line in page if line.startswith("| model | fox -> koala | object | ")]
    assert f"| {receipt['shown_before']} of 1 | {receipt['shown_after']} of 1 |" in line
    assert f"| {receipt['near_changed']:.1%} |" in line
    assert "* cat by closed_form, seed 0: it has not been run" in page


# The command


def test_without_ray_it_says_what_to_install(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (place / "plan.toml").write_text(SMALL)
    arguments = ["sweep", place / "plan.toml", "-o", place / "out"]
    assert sentence(arguments, capsys) == (
        "A sweep needs Ray, which is not installed; install it with: pip install "
        '"ray[default]>=2.49,<3"\n'
    )
    assert not (place / "out").exists()
    wanted = on_ray.INSTALL.split('"')[1]
    assert f'"{wanted}",' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_a_folder_of_others_is_left_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "plan.toml").write_text(SMALL)
    (place / "out").mkdir()
    (place / "out" / "letter.txt").touch()
    arguments = ["sweep", place / "plan.toml", "-o"]
    assert "holds other files and no sweep" in sentence([*arguments, place / "out"], capsys)
    file = place / "plan.toml"
    assert "is a file, but the output is a folder" in sentence([*arguments, file], capsys)
    assert "There is no plan " in sentence(["sweep", place / "no", "-o", place / "new"], capsys)
    more = [*arguments, place / "new", "--workers", "2", "--address", "auto"]
    assert "--workers is for this machine alone" in sentence(more, capsys)


def test_a_worker_that_does_not_see_the_folder_says_so(place: Path) -> None:
    (cell,) = plan(place, SMALL)
    with pytest.raises(Failure, match="put the output on a disk that all machines share"):
        task.work(cell)


class _Board:
    """Takes notes of nobody."""

    class begin:
        remote = staticmethod(lambda key, worker: None)


def test_what_a_job_raises_is_told_in_a_sentence(place: Path) -> None:
    (cell,) = plan(place, SMALL)
    outcome = on_ray.attempt(cell.key, cell, task.work, _Board, 1)
    assert outcome.failed.endswith("and name it by the same path.")
    assert "task.py" in outcome.trace

    def broken(job: object) -> str:
        raise ZeroDivisionError("division by zero\nin the midst of it")

    outcome = on_ray.attempt("a", None, broken, _Board, 1)
    assert outcome.failed.startswith("sweep failed with an unexpected error (ZeroDivisionError: ")
    assert "\n" not in outcome.failed
