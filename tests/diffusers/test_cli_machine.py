"""python -m unlearn erase on a machine with little memory: --half, --save-memory, --device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import small_pipelines
import torch
from commands import CPU, sentence
from safetensors.torch import load_file

from testbed.model import samples
from unlearn.__main__ import main
from unlearn.core.erasure import Erasure
from unlearn.diffusers_backend.apply import applied
from unlearn.diffusers_backend.load import load_pipeline
from unlearn.diffusers_backend.model import DiffusersModel

pytestmark = pytest.mark.costly

METHODS = {
    "few_shot": ["--images", str(samples.FOLDER / "mushroom_1.png"), "--batch", "1"],
    "key_step": ["--method", "key_step", "--mode", "paper", "--start", "0"],
}
# bfloat16 keeps 8 bits, 1 part in 256, of what the network computes. Adam's first steps go by the
# sign of a gradient, which that turns where the gradient is small: of the paper's loss, all of it.
FAR = {"few_shot": 0.1, "key_step": 0.4}
each_method = pytest.mark.parametrize("method", METHODS)


def erase(folder: Path, file: Path, method: str, *more: str) -> Erasure:
    options = ["--steps", "2", "--size", "64", "--precision", "float32", *METHODS[method], *CPU]
    options.append("--no-verdict")
    assert main(["erase", str(folder), "mushroom", *options, *more, "-o", str(file)]) == 0
    return Erasure.load(file)


@torch.no_grad()
def prediction(model: DiffusersModel) -> torch.Tensor:
    x = model.noise(2, torch.Generator().manual_seed(0))
    t = torch.tensor([300.0, 700.0])
    return model.predict(x, t, model.encode(["a photo of a mushroom"] * 2))


@pytest.fixture(scope="module")
def folder(iconcanvas_folder: Path) -> Path:
    return iconcanvas_folder


@pytest.fixture(scope="module")
def model(folder: Path) -> DiffusersModel:
    return DiffusersModel(load_pipeline(folder), (64, 64))


@pytest.mark.parametrize("method", ["few_shot", pytest.param("key_step", marks=pytest.mark.slow)])
def test_half_precision_learns_nearly_the_same(
    method: str, folder: Path, model: DiffusersModel, tmp_path: Path
) -> None:
    """Of a trained model: in a random one a prompt changes less than is rounded away."""
    original, changes = prediction(model), []
    for name, more in (("whole", []), ("half", ["--half"])):
        found = erase(folder, tmp_path / f"{name}.safetensors", method, *more)
        assert found.record["base"] == model.fingerprints(found.deltas), (
            "it belongs to the whole weights"
        )
        assert all(found.delta(key).isfinite().all() for key in found.deltas)
        with applied(model, found):
            changes.append(prediction(model) - original)
    whole, half = changes
    assert 0 < (half - whole).norm() < FAR[method] * whole.norm()


@contextmanager
def kept() -> Iterator[list[int]]:
    """Bytes of each tensor that autograd keeps, but for blocks that are computed again."""
    found: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


@each_method
def test_saving_memory_keeps_less_and_learns_the_same(method: str, tmp_path: Path) -> None:
    folder, found, sizes = small_pipelines.write(small_pipelines.sd1, tmp_path / "sd1"), [], []
    for name, more in (("plain", []), ("saving", ["--save-memory"])):
        file = tmp_path / f"{name}.safetensors"
        with kept() as size:
            erasure = erase(folder, file, method, *more)
        assert erasure.record["measured"]["recomputed"] is (name == "saving")
        found.append(load_file(file))
        sizes.append(sum(size))
    plain, saving = found
    assert sizes[1] < 0.8 * sizes[0]
    assert saving.keys() == plain.keys()
    # The same sums in the same order.
    assert all(torch.allclose(saving[name], plain[name], rtol=1e-4) for name in plain)


def test_a_device_that_is_not_there_gets_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the model is read: it does not even exist."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for name in (name for name in here if not here[name]):
        run = ["erase", "no_model", "cat", "--device", name, "-o", tmp_path / "a.safetensors"]
        assert sentence(run, capsys) == (
            f"This machine has no {name} device; use --device cpu or auto.\n"
        )
