"""Small model folders and checkpoint files for `fuzz`, each with one bad part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file

from . import changes as change


def _loaded(path: Path, config: Path | None = None) -> None:
    from unlearn.cli.models import load_model

    model = load_model(path, config)
    assert model.weights
    assert all(weight.dtype == torch.float32 for weight in model.weights.values())


class Folders:
    """A diffusers folder with one file changed or removed, or a folder in its place."""

    name, share = "model-folders", 4

    def __init__(self, folder: Path) -> None:
        import small_pipelines

        self.good = small_pipelines.write(small_pipelines.sd1, folder / "good")
        self.files = sorted(one for one in self.good.rglob("*") if one.is_file())

    def make(self, rng: Random, folder: Path) -> Path:
        place = folder / "input"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.good, place)
        texts = [one for one in self.files if one.suffix == ".json"]
        source = rng.choice(texts if rng.random() < 0.7 else self.files)
        file = place / source.relative_to(self.good)
        how = rng.random()
        if how < 0.1:
            file.unlink()
        elif how < 0.2:
            file.unlink()
            file.mkdir()
        elif file.suffix == ".json" and how < 0.7 and file.stat().st_size < 20_000:
            values = change.changed_value(rng, json.loads(file.read_text("utf-8")))
            file.write_text(json.dumps(values), encoding="utf-8")
        elif file.suffix == ".safetensors" and how < 0.7:
            weights = load_file(file)
            some = dict(rng.sample(sorted(weights.items()), 8))
            bad = change.changed_value(rng, some)
            if isinstance(bad, dict):
                kept = {name: tensor for name, tensor in weights.items() if name not in some}
                tensors = {**kept, **{n: t for n, t in bad.items() if torch.is_tensor(t)}}
                file.write_bytes(change.saved(tensors, {"format": "pt"}))
        else:
            file.write_bytes(change.changed_bytes(rng, file.read_bytes()))
        return place

    def read(self, place: Path) -> None:
        _loaded(place)


class Checkpoints:
    """A single checkpoint file, with a configuration from a folder."""

    name, share = "checkpoints", 3

    def __init__(self, folder: Path) -> None:
        import small_pipelines

        self.config = small_pipelines.write(small_pipelines.sd1, folder / "good")
        tensors = small_pipelines.checkpoint(small_pipelines.read(self.config))
        self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}

    def make(self, rng: Random, folder: Path) -> Path:
        if rng.random() < 0.6:
            file = folder / "input.safetensors"
            file.write_bytes(change.safetensors(rng, self.tensors, {"format": "pt"}))
        else:
            file = folder / "input.ckpt"
            change.torch_file(rng, file, {"state_dict": self.tensors, "epoch": 3})
        return file

    def read(self, file: Path) -> None:
        _loaded(file, self.config)
