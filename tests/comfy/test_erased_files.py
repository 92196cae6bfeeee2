"""Files of strangers in the nodes: whole encoders, odd shapes, files that training kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_erasures import ENCODER, NETWORK, few_shot_that, of_the_encoder, of_the_network, run

import testbed.model.pack

pytestmark = pytest.mark.usefixtures("node_body")

ROOT = "clip_l.transformer."
KEY = ENCODER.format(0)
NAME = "text_encoders." + KEY.removesuffix(".weight")


@pytest.fixture(scope="module")
def parts(pack: ModuleType) -> tuple:
    """(MODEL, CLIP, VAE) of its own, whose weights in memory no other test's erasure is on."""
    return testbed.model.pack.checkpoint()


@pytest.fixture
def loras(pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of erasures."""
    import folder_paths

    for name in ("loras", "text_encoders"):
        (tmp_path / name).mkdir()
        folders = ([str(tmp_path / name)], {".safetensors"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, folders)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path / "loras"


def whole(clip: Any, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """All of an encoder, as CLIPSave writes it."""
    own = clip.cond_stage_model.state_dict()
    return {
        key.removeprefix(ROOT): value.to(dtype).contiguous()
        for key, value in own.items()
        if key.startswith(ROOT)
    }


def change(tensors: dict, value: Any) -> None:
    """Of one weight; value: a number to add to all of it, or a tensor in its place."""
    key = KEY.removeprefix(ROOT)
    tensors[key] = value if torch.is_tensor(value) else tensors[key].clone() + value


# Whole encoders


def with_nan(clip: Any, tensors: dict) -> None:
    change(tensors, float("nan"))


def with_infinity(clip: Any, tensors: dict) -> None:
    change(tensors, float("inf"))


def too_large(clip: Any, tensors: dict) -> None:
    change(tensors, torch.full((768, 192), 1e300, dtype=torch.float64))


def of_integers(clip: Any, tensors: dict) -> None:
    change(tensors, torch.ones(768, 192, dtype=torch.int8))


def without_a_dimension(clip: Any, tensors: dict) -> None:
    change(tensors, torch.tensor(1.0))


def turned(clip: Any, tensors: dict) -> None:
    change(tensors, torch.zeros(192, 768))


def half_of_it(clip: Any, tensors: dict) -> None:
    for key in sorted(tensors)[::2]:
        del tensors[key]


def one_weight(clip: Any, tensors: dict) -> None:
    kept = KEY.removeprefix(ROOT)
    for key in [key for key in tensors if key != kept]:
        del tensors[key]


def other_names_below(clip: Any, tensors: dict) -> None:
    for key in [key for key in tensors if ".layers.3." in key]:
        tensors[key.replace(".layers.3.", ".blocks.3.")] = tensors.pop(key)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (with_nan, "holds NaN or infinite values"),
        (with_infinity, "holds NaN or infinite values"),
        (too_large, "holds NaN or infinite values"),
        (of_integers, "holds torch.int8"),
        (without_a_dimension, "is a text encoder of another size"),
        (turned, "is a text encoder of another size"),
        (half_of_it, "weights of this text encoder; the first that it lacks is clip_l"),
        (one_weight, "holds 1 of the 68 weights of this text encoder"),
        (other_names_below, "holds 52 of the 68 weights of this text encoder"),
    ],
)
def test_an_encoder_that_is_not_whole_and_finite_is_refused(
    pack: ModuleType, parts: tuple, loras: Path, make: Callable, sentence: str
) -> None:
    tensors = whole(parts[1])
    make(parts[1], tensors)
    save_file(tensors, loras / "theirs.safetensors")
    with pytest.raises(ValueError, match="theirs") as error:
        run(pack.nodes.erasures.LoadErasedClip, parts[1], "theirs.safetensors", 1.0)
    assert str(error.value).startswith("theirs.safetensors ")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
)
def test_an_encoder_in_which_nothing_was_erased_is_said_to_be_one(
    pack: ModuleType, parts: tuple, loras: Path, dtype: torch.dtype
) -> None:
    """As in a checkpoint whose network alone was erased; rounding to another precision is none."""
    save_file(whole(parts[1], dtype), loras / "theirs.safetensors")
    _, erasure, summary = run(
        pack.nodes.erasures.LoadErasedClip, parts[1], "theirs.safetensors", 1.0
    )
    assert erasure.deltas == {}
    assert summary.startswith(
        "theirs, strength 1. Nothing is erased: the file has the same weights"
    )
    for node in (pack.nodes.erasures.SaveErasedClip, pack.nodes.erasures.SaveErasedModel):
        with pytest.raises(ValueError, match="changes no weight, so it would"):
            run(node, erasure, "loras/x", "float16")


def test_an_encoder_of_which_one_weight_was_erased_has_one_change(
    pack: ModuleType, parts: tuple, loras: Path
) -> None:
    tensors = whole(parts[1], torch.bfloat16)
    change(tensors, 0.25)
    save_file(tensors, loras / "theirs.safetensors")
    _, erasure, summary = run(
        pack.nodes.erasures.LoadErasedClip, parts[1], "theirs.safetensors", 1.0
    )
    assert set(erasure.deltas) == {KEY}
    assert erasure.delta(KEY).mean() == pytest.approx(0.25, abs=1e-3)
    assert summary == "theirs, strength 1."
    # A file of theirs does not say what was erased.
    node = pack.nodes.erasures.SaveErasedClip.PREPARE_CLASS_CLONE(None)
    (text,) = node.execute(erasure, "loras/x", "float16").ui.as_dict()["text"]
    assert text.endswith(" MB")


def test_a_lora_is_sent_to_its_own_node(pack: ModuleType, parts: tuple, loras: Path) -> None:
    save_file({f"{NAME}.lora_up.weight": torch.zeros(768, 4)}, loras / "a.safetensors")
    for node, part in (("LoadErasedClip", parts[1]), ("LoadErasedModel", parts[0])):
        with pytest.raises(ValueError, match=r"another file\. Load LoRAs with the Load LoRA"):
            run(getattr(pack.nodes.erasures, node), part, "a.safetensors", 1.0)


@pytest.mark.parametrize(("name", "shown"), [("", "such file"), ("a\nb", "a b")])
def test_a_name_that_no_file_has_is_shown_on_one_line(
    pack: ModuleType, host: ModuleType, name: str, shown: str
) -> None:
    with pytest.raises(ValueError, match=f"^There is no {shown} in models/loras"):
        pack.nodes.erasures.find_file(name)


# Erasures


def test_strength_0_is_nothing_to_save(pack: ModuleType, parts: tuple, loras: Path) -> None:
    of_the_encoder(pack, parts[1]).save(loras / "a.safetensors")
    _, erasure, summary = run(pack.nodes.erasures.LoadErasedClip, parts[1], "a.safetensors", 0.0)
    assert summary == "fox, strength 0."
    with pytest.raises(ValueError, match=r"at a strength other than 0\.$"):
        run(pack.nodes.erasures.SaveErasedClip, erasure, "loras/x", "float16")


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf")])
def test_a_strength_that_is_no_number_is_refused(
    pack: ModuleType, parts: tuple, loras: Path, strength: float
) -> None:
    """JSON has none, but the host takes NaN from it."""
    model, clip, _ = parts
    apply, erased = pack.nodes.backend.apply, pack.nodes.erasures
    encoder, network = of_the_encoder(pack, clip), of_the_network(pack, model)
    for put_on in (
        lambda: apply.erased_clip(clip, encoder, strength),
        lambda: apply.erased_model(model, network, strength),
    ):
        with pytest.raises(
            pack.unlearn.core.erasure.ErasureError, match="give a finite number, for example 1"
        ):
            put_on()
    encoder.save(loras / "encoder.safetensors")
    network.save(loras / "network.safetensors")
    for node, part, file in (
        (erased.LoadErasedClip, clip, "encoder.safetensors"),
        (erased.LoadErasedModel, model, "network.safetensors"),
    ):
        with pytest.raises(ValueError, match=r"(?i)strength"):
            run(node, part, file, strength)


@pytest.mark.parametrize("alpha", [1.0, 4.0, -2.0, None])
def test_alpha_acts_as_in_the_stock_loader(
    pack: ModuleType, parts: tuple, loras: Path, alpha: float | None
) -> None:
    import comfy.sd

    clip = parts[1]
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{NAME}.lora_up.weight": torch.randn(768, 4, generator=generator) / 8,
        f"{NAME}.lora_down.weight": torch.randn(4, 192, generator=generator) / 8,
    }
    if alpha is not None:
        tensors[f"{NAME}.alpha"] = torch.tensor(alpha)
    metadata = {"format": "concept-unlearn/1", "concept_unlearn": "{}"}
    save_file(tensors, loras / "a.safetensors", metadata)
    ours, erasure, _ = run(pack.nodes.erasures.LoadErasedClip, clip, "a.safetensors", 0.5)
    _, theirs = comfy.sd.load_lora_for_models(None, clip, dict(tensors), 0.0, 0.5)
    assert changed(ours).norm() > 1
    assert torch.allclose(changed(ours), changed(theirs), atol=1e-3)
    # What is handed on, combined and written does the same.
    erasure.save(loras / "b.safetensors", torch.float32)
    again, *_ = run(pack.nodes.erasures.LoadErasedClip, clip, "b.safetensors", 1.0)
    assert torch.allclose(changed(again), changed(theirs), atol=1e-3)


def changed(clip: Any) -> torch.Tensor:
    """By how much the weight is another one with the patches on."""
    import comfy.lora

    weight = clip.cond_stage_model.state_dict()[KEY].float()
    patches = clip.patcher.patches[KEY]
    return comfy.lora.calculate_weight(patches, weight.clone(), KEY) - weight


def test_a_change_of_another_shape_of_as_many_rows_and_columns_is_put_on(
    pack: ModuleType, parts: tuple
) -> None:
    """The host would pass over it, and say that it was put on."""
    erasure = of_the_encoder(pack, parts[1])
    odd = pack.unlearn.core.erasure.Erasure(
        {KEY: {"diff": erasure.delta(KEY).view(768, 48, 4)}}, erasure.record
    )
    even, _ = pack.nodes.backend.apply.erased_clip(parts[1], erasure)
    found, _ = pack.nodes.backend.apply.erased_clip(parts[1], odd)
    assert torch.equal(changed(found), changed(even))


def test_what_cannot_be_read_of_a_record_is_said_in_the_node(
    pack: ModuleType, parts: tuple, loras: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = {"measured": {"receipt": [1], "probe": None}}
    of_the_encoder(pack, parts[1], **record).save(loras / "a.safetensors")
    found, erasure, summary = run(
        pack.nodes.erasures.LoadErasedClip, parts[1], "a.safetensors", 1.0
    )
    said = (
        "These entries of its record cannot be read and are ignored: measured.probe (is None); "
        "measured.receipt (is [1])."
    )
    assert summary == f"fox, strength 1. {said}"
    assert f"a.safetensors: {said}" in caplog.messages
    assert set(found.patcher.patches) == {KEY}
    assert erasure.record["measured"] == {}


def test_combining_factors_of_a_network_forms_no_large_product(
    pack: ModuleType, parts: tuple
) -> None:
    """No MODEL is connected, so nothing says how large a weight may be: it would take 360 GB."""
    thin = {"lora_up": torch.full((300_000, 1), 0.25), "lora_down": torch.full((1, 300_000), 0.25)}
    one, other = (
        pack.unlearn.core.erasure.Erasure({NETWORK: thin}, {"concepts": [c]})
        for c in ("fox", "owl")
    )
    *_, report, _ = run(
        pack.nodes.erasures.CombineErasedClip, parts[1], erasure_1=one, erasure_2=other
    )
    assert "fox: 200% of its change of the model is left beside the others" in report


# Files that training kept


RECORD = {
    "key": "k",
    "concepts": ["fox"],
    "kind": "object",
    "steps": 2,
    "start": 3,
    "moved": {"fox": 0.5},
    "loss": [1.0, 0.5],
    "settings": {"mode": "balanced"},
    "measured": {"seconds": 1.0},
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key", "other"),
        ("loss", None),
        ("loss", [float("nan")]),
        ("kind", None),
        ("kind", 5),
        ("steps", None),
        ("steps", "many"),
        ("settings", None),
        ("settings", {}),
        ("start", [3]),
        ("moved", {"fox": "far"}),
        ("moved", None),
        ("measured", {"seconds": "long"}),
    ],
)
def test_a_kept_file_that_does_not_hold_what_the_node_says_is_no_kept_file(
    pack: ModuleType, parts: tuple, tmp_path: Path, name: str, value: Any
) -> None:
    file, before = tmp_path / "a.safetensors", pack.nodes.cache.trained_before
    record = copy.deepcopy(RECORD)
    of_the_network(pack, parts[0], **record).save(file)
    assert before(file, "k", pack.unlearn.methods.key_step.METHOD).record["moved"] == {"fox": 0.5}
    erasure = of_the_network(pack, parts[0], **record)
    erasure.record.pop(name)
    erasure.record.update({} if value is None else {name: value})
    erasure.save(file)
    assert before(file, "k", pack.unlearn.methods.key_step.METHOD) is None


def test_a_kept_file_for_another_model_is_no_kept_file(pack: ModuleType, parts: tuple) -> None:
    model, clip, _ = parts
    fits, erasure_of = pack.nodes.backend.apply.fits, pack.unlearn.core.erasure.Erasure
    encoder, network = of_the_encoder(pack, clip), of_the_network(pack, model)
    assert fits(model, clip, encoder, "CLIP")
    assert fits(model, clip, network, "MODEL")
    small = {"diff": torch.zeros(4, 4)}
    for erasure in (
        network,
        erasure_of({}),
        erasure_of({KEY: small}),
        erasure_of({"clip_l.other.weight": small}),
        erasure_of({**encoder.deltas, **network.deltas}),
    ):
        assert not fits(model, clip, erasure, "CLIP")


@pytest.mark.parametrize("kept", ["nan", "other shape", "no loss"])
def test_a_training_node_trains_anew_what_it_cannot_use(
    pack: ModuleType, parts: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    model, clip, vae = parts
    good = of_the_encoder(pack, clip, **{**RECORD, "key": "replaced"})
    learnt = []

    def train(host: Any, *_: Any) -> Any:
        learnt.append(host)
        return good

    training = pack.nodes.training.TrainingRun(
        method=few_shot_that(pack, train),
        concepts=["fox"],
        settings=pack.unlearn.methods.few_shot.FewShotSettings(),
        model=model,
        clip=clip,
        vae=vae,
        size=64,
        prefix="kept",
        verdict=False,
    )
    _, file, _ = training.run(None)
    _, _, again = training.run(None)
    assert (len(learnt), again[:14]) == (1, "Trained before")
    whole = pack.unlearn.core.erasure.Erasure.load(file)
    record = dict(whole.record)
    tensors = whole.state_dict()
    if kept == "nan":
        tensors[f"{NAME}.diff"][0, 0] = torch.nan
    elif kept == "other shape":
        tensors[f"{NAME}.diff"] = torch.ones(4, 4)
    else:
        del record["loss"]
    write(tensors, record, file)
    erasure, _, again = training.run(None)
    assert (len(learnt), again) == (2, "")
    assert torch.equal(erasure.delta(KEY), good.delta(KEY))
    assert torch.isfinite(pack.unlearn.core.erasure.Erasure.load(file).delta(KEY)).all()


def write(tensors: dict, record: dict, file: Path) -> None:
    import json

    metadata = {"format": "concept-unlearn/1", "concept_unlearn": json.dumps(record)}
    save_file(tensors, file, metadata)
