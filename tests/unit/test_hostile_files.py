"""Weights of the networks that look, sets and lists of words, from a stranger or a bad disk."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import small_inception
import torch
from small_erasures import run
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from unlearn.cli.cpdm.build import check_run
from unlearn.cli.cpdm.dataset import read_captions
from unlearn.cli.cpdm.measure import load_clip
from unlearn.cli.output import Failure
from unlearn.diffusers_backend.model import DiffusersModel
from unlearn.diffusers_backend.model_folder import ModelError
from unlearn.evaluate.classifier import parse_words
from unlearn.evaluate.cpdm.inception import load_inception
from unlearn.evaluate.cpdm.metric import Metric, Pair

CPU = torch.device("cpu")


class Runs:
    """What a pickle could do if it were run."""

    def __reduce__(self):
        return pytest.fail, ("a pickle ran",)


def say(error: pytest.ExceptionInfo) -> str:
    """Its message, which must be one line."""
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


# Inception


@pytest.fixture(scope="module")
def good() -> dict[str, torch.Tensor]:
    """A whole file has 95 MB: here each tensor is a view of one number."""
    return {
        name: tensor.flatten()[:1].abs().expand(tensor.shape) if tensor.ndim else tensor
        for name, tensor in small_inception.weights(is_fid=True).items()
    }


CONV = "Conv2d_1a_3x3.conv.weight"
BAD: dict[str, Any] = {
    "a scalar at the end": {"fc.weight": torch.zeros(())},
    "a word at the end": {"fc.weight": "x"},
    "names that are numbers": {3: torch.zeros(1)},
    "names that are tuples": {(1, 2): torch.zeros(1)},
    "values that are not finite": {CONV: torch.full((32, 3, 3, 3), math.nan)},
    "whole numbers": {CONV: torch.zeros(32, 3, 3, 3, dtype=torch.int64)},
    "complex numbers": {CONV: torch.zeros(32, 3, 3, 3, dtype=torch.complex64)},
    "numbers of eight bits": {CONV: torch.zeros(32, 3, 3, 3).to(torch.float8_e4m3fn)},
    "sparse weights": {CONV: torch.zeros(32, 3, 3, 3).to_sparse()},
    "weights without values": {CONV: torch.zeros(32, 3, 3, 3, device="meta")},
    "a list in place of weights": {CONV: [1.0]},
    "a vast shape": {CONV: torch.zeros(1).expand(2**40)},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_inception_of_bad_weights_gets_a_sentence(
    bad: dict, good: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save({**good, **bad}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"^a\.pth (is not a whole|holds the weights of)") as error:
        load_inception(tmp_path / "a.pth")
    say(error)


@pytest.mark.parametrize(
    "content", [None, [], "x", 3, torch.zeros(1), {}, {"fc.weight": None}, Runs()], ids=type
)
def test_inception_of_anything_else_gets_a_sentence(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match=r"^a\.pth (is cut short or|holds the weights of)"
    ) as error:
        load_inception(tmp_path / "a.pth")
    say(error)


def test_inception_that_unpacks_to_more_is_not_unpacked(
    good: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(good, tmp_path / "whole.pth")
    with (
        zipfile.ZipFile(tmp_path / "whole.pth") as old,
        zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    monkeypatch.setattr(torch, "load", lambda *args, **named: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match=r"a\.pth is cut short or cannot be read safely"):
        load_inception(tmp_path / "a.pth")


def test_a_good_inception_of_views_is_read(good: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(good, tmp_path / "a.pth")
    assert load_inception(tmp_path / "a.pth").is_fid


# CLIP's image encoder


@pytest.fixture
def eye(tmp_path: Path) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 16}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(**sizes, **layers, image_size=28, patch_size=14)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("content", [Runs(), None, [1], {"x": 1}, {3: torch.zeros(1)}], ids=type)
def test_an_encoder_that_is_a_pickle_gets_a_sentence(content: Any, eye: Path) -> None:
    (eye / "model.safetensors").unlink()
    torch.save(content, eye / "pytorch_model.bin")
    with pytest.raises((Failure, ModelError)) as error:
        load_clip(eye, CPU)
    say(error)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 10**9},
        {"hidden_size": 20_000, "num_hidden_layers": 300},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 0},
        {"image_size": 10**6, "patch_size": 1},
        {"patch_size": 0},
        {"hidden_size": "32"},
        {"hidden_size": -32},
        {"vision_config": [1]},
        {"hidden_act": "no_such"},
        {"num_attention_heads": -2},
        {"output_hidden_states": "x"},
        None,
        [],
        "x",
    ],
    ids=str,
)
def test_a_configuration_that_asks_for_another_network(change: Any, eye: Path) -> None:
    config = json.loads((eye / "config.json").read_text("utf-8"))
    changed = {**config, **change} if isinstance(change, dict) else change
    (eye / "config.json").write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises((Failure, ModelError)) as error:
        load_clip(eye, CPU)
    say(error)


def test_an_encoder_with_weights_missing_is_not_made_up(eye: Path) -> None:
    (eye / "model.safetensors").unlink()
    torch.save({"logit_scale": torch.zeros(10**6)}, eye / "pytorch_model.bin")
    with pytest.raises(Failure, match="is not CLIP's image encoder, or is incomplete"):
        load_clip(eye, CPU)


def test_pictures_of_few_pixels_are_embedded(eye: Path) -> None:
    embed = load_clip(eye, CPU)
    for height, width in ((1, 1), (3, 3), (2, 40)):
        assert embed(torch.rand(1, height, width, 3)).isfinite().all()


def test_figures_that_are_not_finite_are_not_told() -> None:
    nan = Metric(
        lambda x: torch.full((len(x), 4), math.nan), lambda x: [torch.ones(len(x), 1, 1, 1)] * 4
    )
    pair = Pair("a", "a_1", torch.rand(8, 8, 3), torch.rand(8, 8, 3))
    with pytest.raises(ValueError, match="of a_1 or its original are not finite") as error:
        list(nan.measure([pair]))
    say(error)
    pair = Pair("a", "a_1", torch.rand(8, 600, 3), torch.rand(8, 8, 3))
    with pytest.raises(ValueError, match="600 x 8 pixels cannot be compared") as error:
        list(nan.measure([pair]))
    say(error)


# Sets and words


@pytest.mark.parametrize(
    "note", [b"null", b"[]", b"3", b'"x"', b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5000]
)
def test_a_note_of_what_was_drawn_that_is_none(note: bytes, tmp_path: Path) -> None:
    (tmp_path / "drawn.json").write_bytes(note)
    with pytest.raises(
        Failure, match="does not say how the pictures beside it were drawn"
    ) as error:
        check_run(tmp_path, {"seed": 1})
    say(error)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a\0b.png,x", "not a CSV table in UTF-8|not a valid file name"),
        ("x" * 300 + ".png,x", "not a valid file name"),
        ('"a\nb.png",x', "not a valid file name"),
        ("a.png," + "x" * 200_000, "is not a CSV table in UTF-8"),
    ],
    ids=str,
)
def test_captions_of_files_that_cannot_be(rows: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "caption.csv").write_text(f"image,prompt\n{rows}\n", encoding="utf-8")
    with pytest.raises(Failure, match=said) as error:
        read_captions(tmp_path / "caption.csv")
    say(error)


def test_a_table_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "caption.csv").open("wb") as file:
        file.truncate(2**34)  # of holes
    with pytest.raises(Failure, match="is not a CSV table in UTF-8"):
        read_captions(tmp_path / "caption.csv")


def test_lists_of_words_that_are_none() -> None:
    with pytest.raises(ValueError, match="There are 3000 candidates, but at most 2000") as error:
        parse_words(",".join(map(str, range(3000))), "object")
    say(error)


# The nodes


SIZES = pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (1, 512), (7, 64)])


@SIZES
def test_pictures_that_are_too_small_for_a_model(
    pack: ModuleType, parts: tuple, height: int, width: int
) -> None:
    model, clip, vae = parts
    images = torch.rand(2, height, width, 3)
    said = f"^The pictures have {width} x {height} pixels, and 8 x 8 are the fewest that this MODEL"
    with pytest.raises(ValueError, match=said) as error:
        run(pack.nodes.identify.IdentifyConcept, model, clip, vae, images, "", "object", 12, 0)
    say(error)
    few_shot = pack.nodes.few_shot.FewShotEncoderUnlearn
    with pytest.raises(ValueError, match=said) as error:
        run(few_shot, model, clip, vae, concept="cat", images=images)
    say(error)


@SIZES
def test_pictures_that_are_too_small_for_a_pipeline(height: int, width: int) -> None:
    """It is said before the model is looked at."""
    said = f"have {width} x {height} pixels, but this model needs at least 8 x 8"
    with pytest.raises(ValueError, match=said) as error:
        DiffusersModel.encode_images(None, torch.rand(1, height, width, 3))
    say(error)


@SIZES
def test_pictures_that_are_too_small_to_be_compared(height: int, width: int) -> None:
    metric = Metric(None, None)
    pair = Pair("a", "a_1", torch.rand(8, 8, 3), torch.rand(height, width, 3))
    with pytest.raises(
        ValueError,
        match=f"{width} x {height} pixels cannot be compared; use pictures of at least 8 x 8",
    ):
        list(metric.measure([pair]))
