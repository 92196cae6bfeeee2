"""Load Erased puts several files on at once; the stock LoRA nodes load each alike."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_erasures import ENCODER, NETWORK, of_the_encoder, of_the_network, run

pytestmark = pytest.mark.usefixtures("node_body")


@pytest.fixture
def loras(pack: ModuleType, parts: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of erasures, with two of the text encoder and one of the denoiser."""
    import folder_paths

    for name in ("loras", "text_encoders"):
        (tmp_path / name).mkdir()
        places = ([str(tmp_path / name)], {".safetensors"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, places)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    model, clip, _ = parts
    of_the_encoder(pack, clip, "fox").save(tmp_path / "loras" / "fox.safetensors")
    of_the_encoder(pack, clip, "owl", 1).save(tmp_path / "loras" / "owl.safetensors")
    of_the_network(pack, model, "cat").save(tmp_path / "loras" / "cat.safetensors")
    return tmp_path / "loras"


def conditioning(clip: Any) -> torch.Tensor:
    return clip.encode_from_tokens(clip.tokenize("a photo of a fox"))


def test_rows_do_what_a_chain_does(pack: ModuleType, parts: tuple, loras: Path) -> None:
    model, clip, _ = parts
    erased = pack.nodes.erasures
    rows = {"erasure_1": "fox.safetensors", "strength_1": 0.5, "erasure_2": "none"}
    rows |= {"erasure_4": "cat.safetensors", "strength_4": -1.0, "erasure_5": "owl.safetensors"}
    found = run(pack.nodes.load_erased.LoadErased, model=model, clip=clip, **rows)
    both, encoder, together, summary = found
    one, *_ = run(erased.LoadErasedClip, clip, "fox.safetensors", 0.5)
    two, *_ = run(erased.LoadErasedClip, one, "owl.safetensors", 1.0)
    assert torch.allclose(conditioning(encoder), conditioning(two), atol=1e-5)
    assert not torch.allclose(conditioning(encoder), conditioning(clip), atol=1e-2)
    alone, *_ = run(erased.LoadErasedModel, model, "cat.safetensors", -1.0)
    assert pack.nodes.backend.apply.alike(both, alone)
    assert summary.splitlines() == ["fox, strength 0.5.", "cat, strength -1.", "owl, strength 1."]
    assert together.concepts == ["fox", "cat", "owl"]
    assert together.record["strengths"] == [0.5, -1.0, 1.0]
    assert set(together.deltas) == {ENCODER.format(0), ENCODER.format(1), NETWORK}


def test_an_old_prompt_of_two_rows_has_no_others(
    pack: ModuleType, parts: tuple, loras: Path
) -> None:
    """Rows begin with "none"; what is not connected is not needed."""
    node = pack.nodes.load_erased.LoadErased
    inputs = {one.id: one for one in node.define_schema().inputs}
    assert [name for name in inputs if name.endswith("_5")] == ["erasure_5", "strength_5"]
    assert inputs["erasure_1"].options[0] == "none"
    assert sorted(inputs["erasure_1"].options[1:]) == [
        f"{name}.safetensors" for name in ("cat", "fox", "owl")
    ]
    nothing, encoder, erasure, _ = run(node, clip=parts[1], erasure_1="fox.safetensors")
    assert nothing is None
    assert erasure.concepts == ["fox"]
    assert set(encoder.patcher.patches) == {ENCODER.format(0)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"erasure_1": "cat.safetensors"}, "changes the denoiser: connect model, or choose none"),
        ({"erasure_2": "gone.safetensors"}, "There is no gone.safetensors in models/loras"),
        ({"erasure_1": "fox.safetensors", "strength_1": 5.0}, "strength_1 is 5.0: give a number"),
    ],
)
def test_what_is_missing_gets_a_sentence(
    pack: ModuleType, parts: tuple, loras: Path, given: dict, said: str
) -> None:
    with pytest.raises(ValueError, match=said) as error:
        run(pack.nodes.load_erased.LoadErased, clip=parts[1], **given)
    assert "\n" not in str(error.value)


def test_without_a_choice_the_originals_go_through(
    pack: ModuleType, parts: tuple, loras: Path
) -> None:
    model, clip, erasure, said = run(pack.nodes.load_erased.LoadErased, clip=parts[1])
    assert (model, clip, erasure) == (None, parts[1], None)
    assert said.startswith("The originals go through. No erasure is chosen")


def test_a_file_that_changed_is_read_again(pack: ModuleType, parts: tuple, loras: Path) -> None:
    """Before anything is queued it is checked that the files are there, too."""
    node = pack.nodes.load_erased.LoadErased
    of = {"erasure_1": "fox.safetensors", "erasure_2": "none", "erasure_3": None}
    before = node.fingerprint_inputs(**of)
    of_the_encoder(pack, parts[1], "zebra").save(loras / "fox.safetensors")
    assert node.fingerprint_inputs(**of) != before
    assert node.validate_inputs(erasure_1="fox.safetensors", erasure_2="none")
    with pytest.raises(ValueError, match="There is no gone"):
        node.validate_inputs(erasure_5="gone.safetensors")


def stock_nodes(host: ModuleType) -> list[str]:
    """The host's nodes that put a LoRA on a CLIP; newer hosts have one for text encoders alone."""
    known = host.NODE_DISPLAY_NAME_MAPPINGS
    newer = [name for name, shown in known.items() if shown == "Load LoRA (Text Encoder)"]
    return ["LoraLoader", *newer]


def test_the_stock_lora_nodes_give_the_same_conditioning(
    host: ModuleType, pack: ModuleType, parts: tuple, loras: Path
) -> None:
    model, clip, _ = parts
    ours, *_ = run(pack.nodes.erasures.LoadErasedClip, clip, "fox.safetensors", 0.5)
    wanted = conditioning(ours)
    assert not torch.allclose(wanted, conditioning(clip), atol=1e-2)
    for name in stock_nodes(host):
        node = host.NODE_CLASS_MAPPINGS[name]
        values = {"model": model, "clip": clip, "lora_name": "fox.safetensors"}
        values |= dict.fromkeys(("strength", "strength_clip", "strength_model"), 0.5)
        types = node.INPUT_TYPES()
        asked = {one: values[one] for one in types["required"] if one in values}
        if isinstance(node, type) and hasattr(node, "execute"):  # the newer kind of node
            found = run(node, **asked)
        else:
            found = getattr(node(), node.FUNCTION)(**asked)
        theirs = next(one for one in found if hasattr(one, "cond_stage_model"))
        assert torch.allclose(conditioning(theirs), wanted, atol=1e-5), name
