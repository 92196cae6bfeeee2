"""Which files the loaders offer, and in which order."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from small_erasures import of_the_encoder, of_the_network, run

pytestmark = pytest.mark.usefixtures("node_body")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Folders of their own in place of the host's, models/loras with a folder in it."""
    import folder_paths

    found = {name: tmp_path / name for name in ("loras", "text_encoders")}
    for name, place in found.items():
        (place / "erased").mkdir(parents=True)
        monkeypatch.setitem(
            folder_paths.folder_names_and_paths, name, ([str(place)], {".safetensors", ".txt"})
        )
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return found


def at(file: Path, seconds: int) -> str:
    """Its name, once it is that old."""
    os.utime(file, (seconds, seconds))
    return file.name


def options(node: type) -> list[str]:
    (one,) = [one for one in node.define_schema().inputs if one.id == "erasure_name"]
    return one.options


def test_erasures_alone_are_offered_newest_first_each_to_its_loader(
    pack: ModuleType, parts: tuple, folders: dict[str, Path]
) -> None:
    """Also from a folder in the folder, where they lay before. LoRAs are none; a whole text
    encoder, which somebody may have erased, comes last."""
    model, clip, _ = parts
    place, erased = folders["loras"], pack.nodes.erasures
    of_the_encoder(pack, clip).save(place / "old.safetensors")
    of_the_encoder(pack, clip).save(place / "erased" / "new.safetensors")
    of_the_network(pack, model).save(place / "drawn.safetensors")
    layer = "encoder.layers.0.self_attn.q_proj"
    lora = {f"text_encoders.clip_l.transformer.text_model.{layer}.lora_up.weight": torch.ones(4, 2)}
    save_file(lora, place / "style.safetensors", {"format": "pt"})
    whole = {f"text_model.{layer}.weight": torch.ones(4, 4)}
    save_file(whole, folders["text_encoders"] / "theirs.safetensors")
    (place / "broken.safetensors").write_bytes(b"\xff" * 20)
    (place / "notes.txt").write_text("concept-unlearn/1")
    for seconds, name in enumerate(("drawn", "old", "erased/new"), 1_000):
        at(place / f"{name}.safetensors", seconds)
    at(folders["text_encoders"] / "theirs.safetensors", 9_000)
    new = str(Path("erased") / "new.safetensors")
    assert options(erased.LoadErasedClip) == [new, "old.safetensors", "theirs.safetensors", "none"]
    assert options(erased.LoadErasedModel) == ["drawn.safetensors", "none"]
    assert options(pack.nodes.show.ShowErasure) == [new, "old.safetensors", "drawn.safetensors"]
    _, erasure, _ = run(erased.LoadErasedClip, clip, new, 1.0)
    assert erasure.concepts == ["fox"]


def test_a_file_is_opened_again_only_when_it_changed(
    pack: ModuleType, parts: tuple, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    headers, choices = pack.unlearn.core.header, pack.nodes.listing.erasure_choices
    read: list[str] = []
    really = headers._read
    monkeypatch.setattr(headers, "_read", lambda file: read.append(file.name) or really(file))
    file, other = (folders["loras"] / f"{name}.safetensors" for name in "ab")
    of_the_encoder(pack, parts[1]).save(file)
    save_file({"x.lora_up.weight": torch.ones(2, 2)}, other)
    for _ in range(3):
        assert choices("encoder") == ["a.safetensors"]
    assert sorted(read) == ["a.safetensors", "b.safetensors"]
    of_the_encoder(pack, parts[1], "owl").save(other)
    assert choices("encoder") == ["b.safetensors", "a.safetensors"]
    assert read[2:] == ["b.safetensors"]


def test_an_empty_list_says_what_to_do(
    pack: ModuleType, parts: tuple, folders: dict[str, Path]
) -> None:
    erased = pack.nodes.erasures
    for node, part in ((erased.LoadErasedClip, parts[1]), (erased.LoadErasedModel, parts[0])):
        (one,) = [one for one in node.define_schema().inputs if one.id == "erasure_name"]
        assert one.options == ["none"]
        assert one.tooltip.startswith("There is no erasure yet: run one of the unlearn nodes, ")
        assert node.validate_inputs("none") is True
        passed, erasure, said = run(node, part, "none", 1.0)
        assert passed is part
        assert erasure is None
        assert said.startswith("The original goes through. There is no erasure yet: run one")
    of_the_encoder(pack, parts[1]).save(folders["loras"] / "a.safetensors")
    *_, said = run(erased.LoadErasedClip, parts[1], "none", 1.0)
    assert said.startswith("The original goes through. No erasure is chosen")


def test_a_refusal_names_those_that_fit(
    pack: ModuleType, parts: tuple, folders: dict[str, Path]
) -> None:
    model, clip, _ = parts
    place, erased = folders["loras"], pack.nodes.erasures
    of_the_encoder(pack, clip).save(place / "fits.safetensors")
    of_the_network(pack, model).save(place / "drawn.safetensors")
    small = {"diff": torch.ones(4, 4)}
    for name, key in (
        ("encoder", next(iter(of_the_encoder(pack, clip).deltas))),
        ("network", next(iter(of_the_network(pack, model).deltas))),
    ):
        other = pack.unlearn.core.erasure.Erasure({key: small}, {"concepts": ["owl"]})
        other.save(place / f"other_{name}.safetensors")
    with pytest.raises(ValueError, match=r"owl.* These fit: fits\.safetensors\.$"):
        run(erased.LoadErasedClip, clip, "other_encoder.safetensors", 1.0)
    with pytest.raises(ValueError, match=r"owl.* These fit: drawn\.safetensors\.$"):
        run(erased.LoadErasedModel, model, "other_network.safetensors", 1.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.clear(),
        lambda found: found.update(__metadata__=None),
        lambda found: found["__metadata__"].pop("concept_unlearn"),
        lambda found: found["__metadata__"].update(concept_unlearn="[1"),
        lambda found: found["__metadata__"].update(concept_unlearn="[]"),
        lambda found: next(iter(found.values())).update(shape="wide"),
        lambda found: next(iter(found.values())).update(shape=[]),
    ],
)
def test_a_header_of_any_shape_does_not_break_the_list(
    pack: ModuleType, parts: tuple, folders: dict[str, Path], change: object
) -> None:
    file = folders["loras"] / "a.safetensors"
    of_the_encoder(pack, parts[1]).save(file)
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    found = json.loads(whole[8 : 8 + length])
    found = dict(sorted(found.items(), key=lambda one: one[0] == "__metadata__"))
    change(found)
    text = json.dumps({**found, "note": "concept-unlearn/1"}).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    assert pack.nodes.listing.erasure_choices() in (["none"], ["a.safetensors"])
