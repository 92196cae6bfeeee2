"""python -m unlearn erase, cut short: by Ctrl-C, by a loss that diverges, by a full disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import small_pipelines
import torch
from commands import CPU, sentence
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from unlearn.__main__ import main
from unlearn.cli import erase
from unlearn.core.edit import Edit
from unlearn.core.erasure import Erasure
from unlearn.core.resume import Resume
from unlearn.diffusers_backend.model import DiffusersModel

pytestmark = pytest.mark.costly

STEPS, CUT = 4, 3
METHODS = {
    "few_shot": ["--shots", "1"],
    "key_step": ["--method", "key_step", "--start", "0"],
    "key_step, paper": ["--method", "key_step", "--mode", "paper", "--start", "0"],
    "domain_correction": ["--method", "domain_correction", "--shots", "2"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_pipelines.write(small_pipelines.sd1, tmp_path_factory.mktemp("model") / "sd1")


@pytest.fixture
def always_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state after every step, for which a minute need not go by."""
    monkeypatch.setattr(erase, "Resume", partial(Resume, every=0.0))


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AbstractContextManager[list]]:
    """In the block the n-th step of the optimiser has its loss from elsewhere."""
    own = Edit.step

    @contextmanager
    def at(number: int, changed: Callable[[torch.Tensor], torch.Tensor]):
        counter, taken = count(1), []

        def step(edit, optimiser, loss, *more, **others):
            if next(counter) == number:
                loss = changed(loss)
            taken.append(loss)
            return own(edit, optimiser, loss, *more, **others)

        with monkeypatch.context() as patch:
            patch.setattr(Edit, "step", step)
            yield taken

    return at


def stop(*given) -> None:
    """What Ctrl-C does."""
    raise KeyboardInterrupt


def arguments(folder: Path, file: Path, method: str, *more: str) -> list[str]:
    options = ["--steps", str(STEPS), "--precision", "float32", *METHODS[method], *CPU, *more]
    options.append("--no-verdict")
    return ["erase", str(folder), "cat", *options, "-o", str(file)]


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def without_figures(file: Path) -> dict:
    return {k: v for k, v in Erasure.load(file).record.items() if k not in ("measured", "date")}


# Ctrl-C


@pytest.mark.parametrize(
    "method", ["key_step", pytest.param("domain_correction", marks=pytest.mark.slow)]
)
def test_an_interrupted_run_goes_on_to_the_very_same_erasure(
    method: str,
    folder: Path,
    tmp_path: Path,
    at_step: Callable,
    always_kept: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, here = tmp_path / "whole.safetensors", tmp_path / "here"
    assert main(arguments(folder, whole, method)) == 0
    assert inside(tmp_path) == [whole.name]
    capsys.readouterr()

    run = arguments(folder, here / "a.safetensors", method)
    with pytest.raises(SystemExit) as end, at_step(CUT, stop):
        main(run)
    assert end.value.code == 130
    out, err = capsys.readouterr()
    assert (out, err) == ("", "\nInterrupted; the same command goes on from here.\n")
    (state,) = here.glob("*.resume")
    assert re.fullmatch(r"a_[0-9a-f]{8}\.resume", state.name)
    assert all(name.startswith(state.name) for name in inside(here)), "nothing half written"

    with at_step(0, stop) as taken:
        assert main(run) == 0
    assert capsys.readouterr().err == f"Going on with an interrupted run ({state.name}).\n"
    assert len(taken) == STEPS - (CUT - 1)
    assert inside(here) == ["a.safetensors"]
    found, wanted = load_file(here / "a.safetensors"), load_file(whole)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert without_figures(here / "a.safetensors") == without_figures(whole)


def test_other_settings_begin_a_run_of_their_own(
    folder: Path,
    tmp_path: Path,
    at_step: Callable,
    always_kept: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = partial(arguments, folder, tmp_path / "a.safetensors", "key_step, paper")
    with pytest.raises(SystemExit), at_step(CUT, stop):
        main(run())
    (state,) = inside(tmp_path)
    capsys.readouterr()
    with at_step(0, stop) as taken:
        assert main(run("--seed", "1")) == 0
    assert "Going on" not in capsys.readouterr().err
    assert len(taken) == STEPS
    assert inside(tmp_path) == ["a.safetensors", state]


def test_interrupted_before_anything_is_kept_it_says_so(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(DiffusersModel, "sample", stop)
    assert main(arguments(folder, tmp_path / "a.safetensors", "key_step")) == 130
    assert capsys.readouterr().err == "\nInterrupted; nothing was written.\n"
    assert inside(tmp_path) == []


# A loss that is finite no more


@pytest.mark.parametrize("method", ["few_shot", "key_step, paper"])
def test_what_was_good_of_a_run_that_diverges_is_kept(
    method: str,
    folder: Path,
    tmp_path: Path,
    at_step: Callable,
    always_kept: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, kept = tmp_path / "a.safetensors", tmp_path / "a_unfinished.safetensors"
    with at_step(CUT, lambda loss: loss * torch.nan):
        said = sentence(arguments(folder, output, method), capsys)
    assert said == (
        "The loss became nan after step 2; use fewer steps or a smaller rate. What was reached "
        f"after step 1 is kept in {kept}.\n"
    )
    assert inside(tmp_path) == [kept.name], "the state for resuming is gone: it leads nowhere"
    erasure = Erasure.load(kept)
    assert (erasure.record["steps"], len(erasure.record["loss"])) == (1, 1)
    assert erasure.norm() > 0
    # It is one like any other.
    assert main(["apply", str(folder), str(kept), "-o", str(tmp_path / "out")]) == 0


# Too little of something


def test_a_full_disk_loses_no_training(
    folder: Path,
    tmp_path: Path,
    at_step: Callable,
    always_kept: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = arguments(folder, tmp_path / "a.safetensors", "key_step, paper")

    def full(*given) -> None:
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    with monkeypatch.context() as patch:
        patch.setattr("unlearn.core.erasure.save_file", full)
        said = sentence(run, capsys)
    assert "a.safetensors cannot be written (No space left on device)" in said
    assert said.endswith("free some space, and the same command continues from its last state.\n")
    (state,) = inside(tmp_path)
    assert state.endswith(".resume")
    with at_step(0, stop) as taken:
        assert main(run) == 0
    assert not taken
    assert inside(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("command", ["apply", "export"])
def test_a_full_disk_leaves_no_half_written_folder(
    command: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is full at the text encoder, before which `apply` has written others."""
    file = tmp_path / "a.safetensors"
    key = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.bias"
    Erasure({key: {"diff": torch.ones(64)}}, {"concepts": ["cat"]}).save(file)

    def full(*given, **more) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    said = sentence([command, folder, file, "-o", tmp_path / "out"], capsys)
    assert said == "The disk is full; free some space, nothing was written.\n"
    assert inside(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 bytes"),
    ],
    ids=["GPU", "CPU"],
)
def test_too_little_memory_gets_a_sentence(
    error: Exception,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*given) -> None:
        raise error

    monkeypatch.setattr(DiffusersModel, "predict", full)
    run = arguments(folder, tmp_path / "a.safetensors", "few_shot")
    assert sentence(run, capsys) == (
        "The device has too little memory; try --half, --save-memory, --rank 8 or a smaller "
        "--size.\n"
    )
    assert inside(tmp_path) == []
