"""The artefact: its file, its errors, combining."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import unlearn.core.erasure
from unlearn.core.erasure import (
    FORMAT,
    Erasure,
    ErasureError,
    combine,
    fingerprint,
    images_hash,
    is_erasure,
)

FC1 = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
BIAS = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.bias"
CROSS = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 8


def full_erasure(concept: str = "cat", seed: int = 0, base: str = "b") -> Erasure:
    deltas = {FC1: {"diff": random(6, 4, seed=seed)}, BIAS: {"diff": random(6, seed=seed)}}
    return Erasure(deltas, {"concepts": [concept], "method": "few_shot", "base": {FC1: base}})


def low_rank_erasure(concept: str = "cat", seed: int = 0, rank: int = 2) -> Erasure:
    thin = {"lora_up": random(6, rank, seed=seed), "lora_down": random(rank, 4, seed=seed + 1)}
    deltas = {FC1: thin, BIAS: {"diff": random(6, seed=seed)}}
    return Erasure(deltas, {"concepts": [concept], "base": {FC1: "b"}})


def assert_same(one: Erasure, other: Erasure) -> None:
    assert set(one.deltas) == set(other.deltas)
    for key in one.deltas:
        assert torch.equal(one.delta(key), other.delta(key)), key


# The file


@pytest.mark.parametrize("erasure", [full_erasure(), low_rank_erasure()], ids=["full", "low rank"])
def test_float32_round_trip_is_exact(erasure: Erasure, tmp_path: Path) -> None:
    erasure.save(tmp_path / "a.safetensors", torch.float32)
    again = Erasure.load(tmp_path / "a.safetensors")
    assert_same(again, erasure)
    assert again.record == erasure.record
    assert again.concepts == ["cat"]


@pytest.mark.parametrize("erasure", [full_erasure(), low_rank_erasure()], ids=["full", "low rank"])
def test_float16_is_the_default_and_rounds_only(erasure: Erasure, tmp_path: Path) -> None:
    erasure.save(tmp_path / "a.safetensors")
    again = Erasure.load(tmp_path / "a.safetensors")
    for key, delta in erasure.deltas.items():
        for part, tensor in delta.items():
            assert torch.equal(again.deltas[key][part], tensor.half())


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_what_was_read_keeps_no_file_open(tmp_path: Path) -> None:
    """Windows lets nobody replace or delete one that is."""
    file = tmp_path / "an_erasure.safetensors"
    full_erasure().save(file, torch.float32)
    loaded = Erasure.load(file)
    assert file.name not in Path("/proc/self/maps").read_text()
    assert_same(loaded, full_erasure())


def test_file_has_the_hosts_names() -> None:
    stem = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
    assert set(full_erasure().state_dict()) == {f"{stem}.diff", f"{stem}.diff_b"}
    assert set(low_rank_erasure().state_dict()) == {
        f"{stem}.lora_up.weight",
        f"{stem}.lora_down.weight",
        f"{stem}.alpha",
        f"{stem}.diff_b",
    }
    network = Erasure({CROSS: {"diff": random(2, 2)}})
    assert set(network.state_dict()) == {CROSS.removesuffix(".weight") + ".diff"}


def test_alpha_makes_the_hosts_scale_one() -> None:
    tensors = low_rank_erasure(rank=3).state_dict()
    assert next(v.item() for k, v in tensors.items() if k.endswith(".alpha")) == 3.0


def test_network_weights_survive_the_round_trip(tmp_path: Path) -> None:
    erasure = Erasure({CROSS: {"diff": random(2, 2)}})
    erasure.save(tmp_path / "a.safetensors", torch.float32)
    assert_same(Erasure.load(tmp_path / "a.safetensors"), erasure)


def test_saving_makes_the_folder_and_leaves_one_file(tmp_path: Path) -> None:
    full_erasure().save(tmp_path / "new" / "a.safetensors")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]


def test_crash_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.safetensors"
    full_erasure("cat").save(file)
    old = file.read_bytes()

    def half_written(tensors: dict, path: Path, metadata: dict) -> None:
        Path(path).write_bytes(old[: len(old) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(unlearn.core.erasure, "save_file", half_written)
    with pytest.raises(OSError, match="No space left"):
        full_erasure("dog", seed=1).save(file)
    assert file.read_bytes() == old
    assert list(tmp_path.iterdir()) == [file]


def test_value_that_float16_cannot_hold_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    full_erasure().save(file)
    old = file.read_bytes()
    huge = Erasure({FC1: {"diff": torch.full((2, 2), 1e5)}})
    with pytest.raises(ErasureError, match=r"do not fit into torch.float16; nothing was"):
        huge.save(file)
    assert file.read_bytes() == old
    huge.save(file, torch.float32)


def test_measured_figures_are_added_to_the_record() -> None:
    first = full_erasure().with_measured(seconds=3)
    second = first.with_measured(ua=0.9)
    assert second.record["measured"] == {"seconds": 3, "ua": 0.9}
    assert first.record["measured"] == {"seconds": 3}
    assert "measured" not in full_erasure().record


def test_norm_is_over_all_deltas() -> None:
    erasure = Erasure({FC1: {"diff": torch.full((2, 2), 1.0)}, BIAS: {"diff": torch.tensor([2.0])}})
    assert erasure.norm() == pytest.approx(8**0.5)


# Files that cannot be used


def cut_short(file: Path) -> None:
    full_erasure().save(file)
    file.write_bytes(file.read_bytes()[:-20])


def cut_in_the_header(file: Path) -> None:
    full_erasure().save(file)
    file.write_bytes(file.read_bytes()[:100])


def no_safetensors(file: Path) -> None:
    file.write_text("<!DOCTYPE html><title>Not found</title>")


def empty(file: Path) -> None:
    file.touch()


def folder(file: Path) -> None:
    file.mkdir()


def other_format(file: Path) -> None:
    save_file({"a.diff": random(2)}, file, {"format": "pt"})


def without_metadata(file: Path) -> None:
    save_file({"a.diff": random(2)}, file)


def later_version(file: Path) -> None:
    save_file({"a.diff": random(2)}, file, {"format": "concept-unlearn/9"})


def unknown_key(file: Path) -> None:
    full_erasure().save(file)
    tensors = load_file(file) | {"text_encoders.clip_l.hada_w1_a": random(2, 2)}
    save_file(tensors, file, {"format": FORMAT, "concept_unlearn": "{}"})


def half_a_pair(file: Path) -> None:
    tensors = low_rank_erasure().state_dict()
    tensors = {key: value for key, value in tensors.items() if "lora_down" not in key}
    save_file(tensors, file, {"format": FORMAT, "concept_unlearn": "{}"})


def without_record(file: Path) -> None:
    save_file(full_erasure().state_dict(), file, {"format": FORMAT})


def broken_record(file: Path) -> None:
    save_file(full_erasure().state_dict(), file, {"format": FORMAT, "concept_unlearn": "{"})


def wrong_record(file: Path) -> None:
    save_file(full_erasure().state_dict(), file, {"format": FORMAT, "concept_unlearn": "[]"})


def missing(file: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (cut_short, "bad.safetensors is cut short or not a safetensors file"),
        (cut_in_the_header, "bad.safetensors is cut short or not a safetensors file"),
        (no_safetensors, r"not a safetensors file \(it begins with '<!DOCTYP'\)"),
        (empty, "bad.safetensors is cut short or not a safetensors file"),
        (folder, "bad.safetensors is a folder; choose an erasure file"),
        (other_format, r"is not an erasure of this pack \(its format is pt"),
        (
            without_metadata,
            "is not an erasure of this pack.*; choose another file. Load LoRAs with",
        ),
        (later_version, "its format is concept-unlearn/9, but concept-unlearn/1 is needed"),
        (unknown_key, "has a tensor of an unknown kind, text_encoders.clip_l.hada_w1_a"),
        (half_a_pair, "has only a part of the delta of .*fc1.weight"),
        (without_record, "bad.safetensors has no readable record of how it was made"),
        (broken_record, "bad.safetensors has no readable record of how it was made"),
        (wrong_record, "bad.safetensors has no readable record of how it was made"),
        (missing, "There is no file bad.safetensors; choose another"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_unusable_file_gets_one_sentence(
    make: Callable[[Path], None], sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "bad.safetensors"
    make(file)
    with pytest.raises(ErasureError, match=sentence) as error:
        Erasure.load(file)
    assert "\n" not in str(error.value)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize(
    "record",
    [
        {"concepts": 5},
        {"concepts": [5]},
        {"loss": ["a"]},
        {"settings": 3},
        {"measured": [1]},
        {"base": "x"},
        {"parts": [{"concepts": {}}]},
        {"parts": ["fox"]},
    ],
)
def test_a_record_that_nobody_could_read_is_refused(record: dict, tmp_path: Path) -> None:
    file = tmp_path / "bad.safetensors"
    metadata = {"format": FORMAT, "concept_unlearn": json.dumps(record)}
    save_file(full_erasure().state_dict(), file, metadata)
    with pytest.raises(ErasureError, match="has no readable record of how it was made"):
        Erasure.load(file)


def test_a_combined_erasure_tells_its_concepts_by_kind() -> None:
    fox, ink = ({"concepts": [c], "kind": k} for c, k in (("fox", "object"), ("ink", "style")))
    twice = {"concepts": ["fox", "ink"], "parts": [fox, ink]}
    erasure = Erasure({}, {"concepts": ["fox", "ink", "Zorvik"], "parts": [twice, fox]})
    assert erasure.concepts_of("object") == ["fox"]
    assert erasure.concepts_of("style") == ["ink"]
    assert erasure.concepts_of("character") == []
    assert Erasure({}, {"concepts": ["a"], "kind": "instance"}).concepts_of("character") == ["a"]


def test_foreign_files_are_told_from_erasures(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    other_format(file)
    assert not is_erasure(file)
    full_erasure().save(file)
    assert is_erasure(file)
    cut_in_the_header(file)
    assert is_erasure(file), "loading it is what says what is wrong"


# Combining


def test_combining_adds_the_deltas() -> None:
    one, other = full_erasure("cat", 0), full_erasure("dog", 1)
    both = combine([one, other])
    for key in one.deltas:
        assert torch.allclose(both.delta(key), one.delta(key) + other.delta(key))
    assert both.concepts == ["cat", "dog"]
    assert [part["concepts"] for part in both.record["parts"]] == [["cat"], ["dog"]]


def test_combining_weighs_by_strength() -> None:
    one, other = full_erasure("cat", 0), full_erasure("dog", 1)
    both = combine([one, other], [0.5, -1.0])
    assert torch.allclose(both.delta(FC1), 0.5 * one.delta(FC1) - other.delta(FC1))
    assert both.record["strengths"] == [0.5, -1.0]


def test_low_rank_deltas_stay_low_rank_and_their_ranks_add_up() -> None:
    one, other = low_rank_erasure("cat", 0, rank=2), low_rank_erasure("dog", 5, rank=3)
    both = combine([one, other], [0.5, 2.0])
    assert both.deltas[FC1]["lora_up"].shape == (6, 5)
    assert both.deltas[FC1]["lora_down"].shape == (5, 4)
    expected = 0.5 * one.delta(FC1) + 2 * other.delta(FC1)
    assert torch.allclose(both.delta(FC1), expected, atol=1e-6)


def test_full_and_low_rank_combine_to_full() -> None:
    one, other = full_erasure("cat", 0), low_rank_erasure("dog", 5)
    both = combine([other, one])
    assert set(both.deltas[FC1]) == {"diff"}
    assert torch.allclose(both.delta(FC1), one.delta(FC1) + other.delta(FC1))


def test_weights_that_only_one_changes_are_kept() -> None:
    other = Erasure({CROSS: {"diff": random(2, 2)}}, {"concepts": ["dog"]})
    both = combine([full_erasure(), other])
    assert set(both.deltas) == {FC1, BIAS, CROSS}
    assert torch.equal(both.delta(CROSS), other.delta(CROSS))


def test_combination_survives_the_file(tmp_path: Path) -> None:
    both = combine([full_erasure("cat", 0), low_rank_erasure("dog", 1)])
    both.save(tmp_path / "both.safetensors", torch.float32)
    again = Erasure.load(tmp_path / "both.safetensors")
    assert_same(again, both)
    assert json.dumps(again.record, sort_keys=True) == json.dumps(both.record, sort_keys=True)


def test_small_pictures_survive_the_file_a_measurement_and_a_combination(tmp_path: Path) -> None:
    """Each concept keeps those of the first erasure that has some; the record holds none."""
    sides = [{"before": [f"b{i}"], "after": [f"a{i}", "x"]} for i in range(3)]
    one = replace(full_erasure("cat", 0), pictures={"cat": sides[0]})
    other = replace(full_erasure("dog", 1), pictures={"dog": sides[1], "cat": sides[2]})
    both = combine([one.with_measured(seconds=1.0), other, full_erasure("owl", 2)])
    both.save(tmp_path / "both.safetensors", torch.float32)
    again = Erasure.load(tmp_path / "both.safetensors")
    assert again.pictures == {"cat": sides[0], "dog": sides[1]}
    assert not again.unread
    assert "pictures" not in json.dumps(again.record)
    full_erasure().save(tmp_path / "none.safetensors")
    assert Erasure.load(tmp_path / "none.safetensors").pictures == {}


def test_combining_refuses_another_base() -> None:
    with pytest.raises(ErasureError, match='"dog" was trained on another base model'):
        combine([full_erasure("cat", base="b"), full_erasure("dog", base="c")])


def test_combining_refuses_another_size() -> None:
    wide = Erasure({FC1: {"diff": random(6, 5)}}, {"concepts": ["dog"]})
    with pytest.raises(ErasureError, match='"dog" is for a model of another size'):
        combine([full_erasure(), wide])


def test_combining_nothing_is_refused() -> None:
    with pytest.raises(ErasureError, match="nothing to combine"):
        combine([])


# Hashes


def test_fingerprint_is_that_of_the_values_not_of_the_dtype() -> None:
    weight = random(5, 5).half()
    assert fingerprint(weight) == fingerprint(weight.float()) == fingerprint(weight.double())
    changed = weight.clone()
    changed[2, 3] += 0.01
    assert fingerprint(changed) != fingerprint(weight)


def test_fingerprint_does_not_see_subnormals() -> None:
    weight = torch.tensor([1.0, 3e-5])
    assert fingerprint(weight) == fingerprint(torch.tensor([1.0, 0.0]))


def test_images_hash_tells_pictures_apart() -> None:
    images = torch.rand(2, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    assert images_hash(images) == images_hash(images.double())
    assert images_hash(images) != images_hash(images.flip(0))
