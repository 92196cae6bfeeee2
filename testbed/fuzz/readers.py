"""The readers that `fuzz` tries. Each makes bad inputs from a good one, and reads them.

A reader has a `name` and a `share` of all inputs. Its constructor gets a folder for what its inputs
have in common. `make(rng, folder)` returns an input for `read`. `read` raises what the program
raises, or AssertionError if a result is wrong.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from unlearn.cli import identify as identify_command
from unlearn.cli import pictures
from unlearn.cli.cpdm import build as cpdm_build
from unlearn.cli.cpdm import dataset as cpdm_set
from unlearn.prompts.typed import split_concepts

from .. import ROOT
from . import changes as change

SUPPORT = ROOT / "tests" / "support"  # has the small models for the readers
if str(SUPPORT) not in sys.path:
    sys.path.append(str(SUPPORT))


def fresh(folder: Path) -> Path:
    """An empty folder for one input."""
    shutil.rmtree(folder / "input", ignore_errors=True)
    (folder / "input").mkdir()
    return folder / "input"


class Concepts:
    """Concepts as a user types them."""

    name, share = "concepts", 6
    GOOD = "fox, red panda\nVincent van Gogh, \u732b"

    def __init__(self, folder: Path) -> None:
        pass

    def make(self, rng: Random, folder: Path) -> str:
        text = change.changed_text(rng, self.GOOD).decode("utf-8", "replace")
        return text if rng.random() < 0.8 else rng.choice(("", " ", ",", "\u200b", "()", "\0"))

    def read(self, text: str) -> None:
        found = split_concepts(text)
        assert found
        assert all(word.strip() == word and word for word in found)
        assert len(set(found)) == len(found)


class Words:
    """A file of candidates for identify."""

    name, share = "words", 6
    GOOD = "fox, red panda\nraccoon\nwolf, dog, cat\n"

    def __init__(self, folder: Path) -> None:
        pass

    def make(self, rng: Random, folder: Path) -> Path:
        file = fresh(folder) / "words.txt"
        how = rng.random()
        if how < 0.05:
            file.mkdir()
        elif how < 0.1:
            file.write_bytes(b"fox, " * rng.choice((2**15, 2**22)))
        elif how > 0.15:
            file.write_bytes(change.changed_text(rng, self.GOOD))
        return file

    def read(self, file: Path) -> None:
        given = argparse.Namespace(words=None, words_file=file, kind="object")
        found = identify_command.candidates(given)
        assert 2 <= len(found) <= 2000
        assert all(0 < len(word) <= 500 for word in found)


class Pictures:
    """Pictures in many formats and modes, under matching and other names."""

    name, share = "pictures", 10
    MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "YCbCr", "HSV", "F", "I")
    FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "ICO", "EPS", "TGA")

    def __init__(self, folder: Path) -> None:
        pass

    def make(self, rng: Random, folder: Path) -> Path:
        file = fresh(folder) / rng.choice(("a.png", "a.jpg", "a.webp", "a.bmp"))
        file.write_bytes(self.picture(rng))
        return file if rng.random() < 0.9 else file.parent

    def picture(self, rng: Random) -> bytes:
        size = rng.choice(((16, 12), (64, 64), (9, 700), (1, 1), (2, 2), (512, 1), (300, 200)))
        pixels = np.random.default_rng(rng.randrange(99)).integers(0, 256, (*size, 3), np.uint8)
        picture = Image.fromarray(pixels)
        mode, kind = rng.choice(self.MODES), rng.choice(self.FORMATS)
        options = {}
        if rng.random() < 0.2:
            options = {"save_all": True, "append_images": [picture] * 3}
        if rng.random() < 0.3:
            exif = Image.Exif()
            exif[0x0112] = rng.choice((3, 6, 8, 99))
            options["exif"] = exif
        out = io.BytesIO()
        try:
            picture.convert(mode).save(out, kind, **options)
        except (OSError, ValueError, KeyError, TypeError):  # this format lacks the mode or option
            out = io.BytesIO()
            picture.save(out, "PNG")
        data = out.getvalue()
        if rng.random() < 0.05:  # its header claims an enormous size
            at = data.find(b"IHDR") + 4
            return data[:at] + b"\0\1\0\0\0\1\0\0" + data[at + 8 :]
        return change.changed_bytes(rng, data) if rng.random() < 0.6 else data

    def read(self, path: Path) -> None:
        found = pictures.read_pictures([path])
        images = pictures.batch(found, (64, 64))
        assert images.shape == (1, 64, 64, 3)
        assert images.min() >= 0
        assert images.max() <= 1


DRAWN = {"count": 9, "steps": 50, "seed": 23, "size": [64, 64], "captions": "0123456789abcdef"}


class Sets:
    """CPDM's captions, the record of what was drawn, and the folders."""

    name, share = "sets", 8
    CAPTIONS = 'image,prompt\nfox_1.png,"a photo of a fox, flat"\nink.sea.png,the sea\n'

    def __init__(self, folder: Path) -> None:
        pass

    def make(self, rng: Random, folder: Path) -> Path:
        place, bad = fresh(folder), rng.choice(("captions", "drawn", "works"))
        text, note, ends = self.CAPTIONS.encode(), json.dumps(DRAWN).encode(), ("_1", "_00002")
        if bad == "captions":
            text = change.changed_text(rng, self.CAPTIONS)
        elif bad == "drawn":
            note = json.dumps(change.changed_value(rng, DRAWN)).encode()
            note = note if rng.random() < 0.7 else change.changed_bytes(rng, note)
        else:
            ends = rng.choice(("_1", "_x", "")), rng.choice(("_2", "_99999", "2", "_\u0661"))
        (place / "caption.csv").write_bytes(text)
        for name, end in zip(("fox_1", "ink.sea"), ends):
            for file in (f"anchors/{name}.png", f"generated/{name}{end}.png"):
                (place / file).parent.mkdir(exist_ok=True)
                (place / file).touch()
        (place / "generated" / "drawn.json").write_bytes(note)
        return place

    def read(self, place: Path) -> None:
        self.captions(place)
        cpdm_build.check_run(place / "generated", DRAWN)
        assert len(cpdm_set.read_works(place / "anchors", place / "generated")) == 2

    def captions(self, place: Path) -> None:
        for caption in cpdm_set.read_captions(place / "caption.csv"):
            assert caption.prompt
            assert (place / "generated" / caption.file(1)).parent == place / "generated"
            (place / "generated" / caption.file(1)).exists()


class States:
    """The saved state of a long run, and what it computes once."""

    name, share = "states", 10

    def __init__(self, folder: Path) -> None:
        from tiny import Cancelled, TinyNetworkModel, cancel_at

        from unlearn.core.resume import Resume
        from unlearn.methods.domain_correction import DomainCorrectionSettings, domain_correction
        from unlearn.methods.key_step import KeyStepSettings, key_step

        plain = {"batch": 1, "start_solved": False}
        self.ways = {
            key_step: KeyStepSettings(iterations=3, steps=3, start=1, **plain),
            domain_correction: DomainCorrectionSettings(iterations=3, alone=1, pictures=2, **plain),
        }
        self.model, self.Resume, self.kept, self.whole = TinyNetworkModel, Resume, {}, {}
        for method, settings in self.ways.items():
            file = folder / method.__name__ / "run"
            with suppress(Cancelled):
                method(TinyNetworkModel(), ["cat"], settings, cancel_at(3), Resume(file, 0))
            self.kept[method] = {
                one.name: torch.load(one, weights_only=True) for one in file.parent.iterdir()
            }
            self.whole[method] = method(TinyNetworkModel(), ["cat"], settings)

    def make(self, rng: Random, folder: Path) -> tuple:
        method = rng.choice(list(self.kept))
        place = fresh(folder)
        bad = "run" if rng.random() < 0.75 else rng.choice(list(self.kept[method]))
        for name, value in self.kept[method].items():
            torch.save(value, place / name)
        change.torch_file(rng, place / bad, self.kept[method][bad])
        return method, place / "run"

    def read(self, given: tuple) -> None:
        method, file = given
        resume = self.Resume(file, 1e9)
        made = method(self.model(), ["cat"], self.ways[method], None, resume)
        assert all(made.delta(key).isfinite().all() for key in made.deltas)
        if resume.said:
            assert resume.said.count("\n") == resume.said.count("cannot be used")
            same = (torch.equal(made.delta(k), self.whole[method].delta(k)) for k in made.deltas)
            assert all(same), "it began anew and came to another result"


class Inceptions:
    """Weights of Inception v3. A real file has 95 MB, so tensors here are views of one number."""

    name, share = "inception", 2

    def __init__(self, folder: Path) -> None:
        import small_inception

        self.good = {
            name: tensor.flatten()[:1].abs().expand(tensor.shape) if tensor.ndim else tensor
            for name, tensor in small_inception.weights(is_fid=True).items()
        }

    def make(self, rng: Random, folder: Path) -> Path:
        if rng.random() < 0.7:
            file = fresh(folder) / "a.pth"
            change.torch_file(rng, file, self.good)
        else:
            file = fresh(folder) / "a.safetensors"
            some = {name: self.good[name].contiguous() for name in list(self.good)[-9:-2]}
            file.write_bytes(change.safetensors(rng, some, None))
        return file

    def read(self, file: Path) -> None:
        from unlearn.evaluate.cpdm.inception import load_inception

        found = load_inception(file)(torch.rand(1, 16, 16, 3))
        assert [len(block[0]) for block in found] == [64, 192, 768, 2048]


class Eyes:
    """CLIP's image encoder as a folder."""

    name, share = "image-encoders", 4

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        sizes = {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 16}
        layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
        config = CLIPVisionConfig(**sizes, **layers, image_size=28, patch_size=14)
        model = CLIPVisionModelWithProjection(config)
        self.config, self.weights = config.to_dict(), model.state_dict()

    def make(self, rng: Random, folder: Path) -> Path:
        place = fresh(folder)
        config, weights = json.dumps(self.config).encode(), save(self.weights, {"format": "pt"})
        how = rng.random()
        if how < 0.4:
            config = json.dumps(change.changed_value(rng, self.config)).encode()
        elif how < 0.5:
            config = change.changed_bytes(rng, config)
        elif how < 0.7:
            weights = change.safetensors(rng, self.weights, {"format": "pt"})
        (place / "config.json").write_bytes(config)
        if how > 0.7:
            change.torch_file(rng, place / "pytorch_model.bin", self.weights)
        else:
            (place / "model.safetensors").write_bytes(weights)
        return place

    def read(self, place: Path) -> None:
        from unlearn.cli.cpdm.measure import load_clip

        found = load_clip(place, torch.device("cpu"))(torch.rand(1, 9, 12, 3))
        assert found.ndim == 2


def _readers() -> dict:
    from .erasures import Encoders, Erasures, Receipts, Records
    from .models import Checkpoints, Folders

    every = (Concepts, Words, Pictures, Sets, States, Inceptions, Eyes)
    host = (Erasures, Records, Receipts, Encoders)
    return {reader.name: reader for reader in (*every, *host, Folders, Checkpoints)}


READERS = _readers()
