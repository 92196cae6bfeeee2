"""python -m unlearn when it is told to end, and when something happens that nobody foresaw."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_pipelines
import torch
from commands import sentence
from conftest import ROOT
from safetensors import SafetensorError
from transformers import PreTrainedModel

from testbed.host.patience import finish
from unlearn import __main__ as program
from unlearn.__main__ import main
from unlearn.cli import show
from unlearn.cli.output import RECEIPT, Failure, new_folder
from unlearn.core.erasure import Erasure

KEY = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.bias"
INTERRUPTED = "\nInterrupted; nothing was written.\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "a.safetensors"
    Erasure({KEY: {"diff": torch.ones(64)}}, {"concepts": ["cat"]}).save(file)
    return file


@pytest.fixture
def heard() -> Iterator[None]:
    """The program hears signals as when it is started, for the duration."""
    before = {number: signal.getsignal(number) for number in program.SIGNALS}
    for number in program.SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    program._interrupt_on_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# Signals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_ended_while_it_imports_it_says_so(name: str, tmp_path: Path) -> None:
    """With a PyTorch that is never through."""
    if not hasattr(signal, name):
        pytest.skip(f"this system has no {name}")
    (tmp_path / "torch").mkdir()
    slow = "import time\nprint('importing', flush=True)\ntry:\n    time.sleep(3600)\n"
    slow += "except BaseException:\n    raise ImportError('no PyTorch')\n"
    (tmp_path / "torch" / "__init__.py").write_text(slow)
    # What a shell starts in the background is deaf to Ctrl-C, and what nohup starts to SIGHUP. So
    # would be what that starts.
    hearing = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    if name != "SIGINT":
        hearing += f"signal.signal(signal.{name}, signal.SIG_DFL)\n"
    hearing += "runpy.run_module('unlearn', run_name='__main__')"
    process = subprocess.Popen(
        [sys.executable, "-c", hearing, "show", "a.safetensors"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(getattr(signal, name))
    _, err = finish(process)
    assert (process.returncode, err) == (130, INTERRUPTED)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("command", ["apply", "export"])
def test_ended_while_it_writes_it_leaves_nothing(
    command: str,
    name: str,
    file: Path,
    heard: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = small_pipelines.write(small_pipelines.sd1, tmp_path / "sd1")
    own = PreTrainedModel.save_pretrained

    def save(*given: object, **more: object) -> None:
        own(*given, **more)
        signal.raise_signal(getattr(signal, name))

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    capsys.readouterr()
    assert main([command, str(folder), str(file), "-o", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == INTERRUPTED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "sd1"]


def test_who_made_it_deaf_is_obeyed(heard: None) -> None:
    """As nohup does."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    program._interrupt_on_signals()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


# The last resort


def broken(*given: object) -> None:
    raise ZeroDivisionError("division by zero\nin the midst of it")


def test_what_nobody_foresaw_is_one_sentence(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(show, "check_record", broken)
    assert sentence(["show", file], capsys) == (
        "show failed with an unexpected error (ZeroDivisionError: division by zero); "
        '"python -m unlearn --traceback show ..." shows where.\n'
    )
    assert main(["--traceback", "show", str(file)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert "in broken" in said


def test_a_librarys_words_are_not_taken_for_a_sentence(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It raises ValueError as well, over several lines."""
    monkeypatch.setattr(show, "check_record", lambda *given: torch.empty(2).numpy().reshape(3))
    assert "show failed with an unexpected error (ValueError: cannot reshape" in sentence(
        ["show", file], capsys
    )


def test_a_file_that_cannot_be_had_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(show, "check_record", lambda *given: (file / "inside").read_bytes())
    assert sentence(["show", file], capsys) == f"Not a directory: {file / 'inside'}.\n"


# Values beyond what can be


def test_outputs_that_cannot_be_are_refused_before_any_work(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = tmp_path / ("x" * 240 + ".safetensors")
    assert "is too long; use one of at most 200 bytes" in sentence(
        ["erase", "no_model", "cat", "-o", long], capsys
    )
    root = Path(file.anchor)
    for more in ([], ["--force"]):
        assert f"{root} already exists" in sentence(
            ["apply", "no_model", file, *more, "-o", root], capsys
        )


def test_pythons_own_words_are_not_taken_for_a_sentence(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line of this package that fails, and raises nothing of its own."""
    names: dict = {}
    exec(compile("def two(*given): a, b = [1]", show.__file__, "exec"), names)
    monkeypatch.setattr(show, "check_record", names["two"])
    assert "an unexpected error (ValueError: not enough values" in sentence(["show", file], capsys)


def test_nothing_that_is_read_is_replaced(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file.read_bytes()
    onto = ["export", "no_model", file, "--as", "lora", "--force", "-o"]
    assert "is an input, so it is not replaced" in sentence([*onto, file], capsys)
    other = tmp_path / "other.safetensors"
    other.symlink_to(file)
    assert "is an input, so it is not replaced" in sentence([*onto, other], capsys)
    (file.parent / RECEIPT).touch()
    around = ["apply", "no_model", file, "--force", "-o", file.parent]
    assert f"holds {file.name}, so it is not replaced" in sentence(around, capsys)
    model = ["apply", file.parent, file, "--force", "-o", file.parent]
    assert "is an input, so it is not replaced" in sentence(model, capsys)
    picture = tmp_path / "a.png"
    picture.touch()
    for shown in (picture, tmp_path):
        chart = ["identify", "no_model", shown, "--chart", picture]
        assert "a.png is an input, so it is not replaced; name another --chart" in sentence(
            chart, capsys
        )
    assert file.read_bytes() == before


def test_a_folder_is_called_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sentence(["show", tmp_path], capsys) == (
        f"{tmp_path.name} is a folder; choose an erasure file.\n"
    )


def test_a_sentence_ends_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = sentence(["erase", "no_model", "(fox:2)", "-o", "a.safetensors"], capsys, 2)
    assert "type the words alone. See python -m unlearn erase --help" in said


def test_a_file_that_cannot_be_written_to_its_end_is_named(tmp_path: Path) -> None:
    """As safetensors says it."""
    error = SafetensorError("Error while serializing: I/O error: File too large (os error 27)")
    expected = pytest.raises(Failure, match=r"out cannot be written \(File too large\), so")
    with expected as said, new_folder(tmp_path / "out", {}):
        raise error
    assert str(said.value).endswith("free some space or name another --output.")
    assert not any(tmp_path.iterdir())
