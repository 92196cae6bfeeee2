"""What Load, Save and Combine say of what does not arrive, and what Combine adds together."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from small_erasures import ENCODER, NETWORK, of_the_encoder, of_the_network, run

pytestmark = pytest.mark.usefixtures("node_body")


@pytest.mark.parametrize("name", ["SaveErasedClip", "SaveErasedModel"])
def test_nothing_to_save_gets_a_sentence(pack: ModuleType, name: str) -> None:
    """Probe Erasure hands on none where none is connected to it."""
    node = getattr(pack.nodes.erasures, name).PREPARE_CLASS_CLONE(None)
    result = node.execute(None, "loras/x", "float16")
    assert result.result == ("",)
    (text,) = result.ui.as_dict()["text"]
    assert text.startswith("Nothing is saved: no ERASURE is connected")


def test_none_chosen_passes_the_original_through(pack: ModuleType, parts: tuple) -> None:
    for name, part in (("LoadErasedClip", parts[1]), ("LoadErasedModel", parts[0])):
        node = getattr(pack.nodes.erasures, name)
        (choices,) = [i.options for i in node.define_schema().inputs if i.id == "erasure_name"]
        assert choices[0] == "none"  # so it is what a new node begins with
        assert node.validate_inputs(erasure_name="none") is True
        assert node.fingerprint_inputs("none") == ""
        result, erasure, text = run(node, part, "none", 1.0)
        assert result is part
        assert erasure is None
        assert text.startswith("The original goes through. ")


def test_combining_says_which_model_is_wanted(pack: ModuleType, parts: tuple) -> None:
    model, clip, _ = parts
    erasure = of_the_network(pack, model)
    node = pack.nodes.erasures.CombineErasedClip
    *_, text, drawing = run(node, clip, erasure_1=erasure, erasure_2=erasure)
    assert drawing is None
    assert "connect the original model to model" in text
    *_, text, drawing = run(node, clip, model, erasure_1=erasure, erasure_2=erasure)
    assert "connect" not in text
    (patch,) = drawing.patches.values()
    assert len(patch) >= 1


def test_a_name_that_another_node_hands_on_is_no_reason_to_run_again(pack: ModuleType) -> None:
    """The host asks before it knows the name."""
    for node in (pack.nodes.erasures.LoadErasedClip, pack.nodes.erasures.LoadErasedModel):
        assert node.fingerprint_inputs(None, strength=1.0) == ""
    assert pack.nodes.cpdm.CopyrightMetric.fingerprint_inputs(None) == ""


# Combine


def test_nothing_to_combine_passes_the_original_through(pack: ModuleType, parts: tuple) -> None:
    clip, erasure, report, model = combined(pack, parts, None, None, model=parts[0])
    assert (clip, erasure, model) == (parts[1], None, parts[0])
    assert report.startswith("Nothing is combined")


CONCEPTS = ("fox", "owl", "cat", "guitar", "mushroom")
ALONE = "moves 100% as far as alone, 100% in the same direction"


def combined(pack: ModuleType, parts: tuple, *erasures: object, model: object = None) -> tuple:
    """(CLIP, erasure, report, MODEL)"""
    named = {f"erasure_{i}": erasure for i, erasure in enumerate(erasures, 1)}
    return run(pack.nodes.erasures.CombineErasedClip, parts[1], model, **named)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_each_of_up_to_five_erasures_gets_a_line(
    pack: ModuleType, parts: tuple, count: int
) -> None:
    """The test model has four layers: a fifth erasure changes the first one's again."""
    found = [
        of_the_encoder(pack, parts[1], concept, i % 4) for i, concept in enumerate(CONCEPTS[:count])
    ]
    result, together, report, drawing = combined(pack, parts, *found)
    lines = report.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(CONCEPTS[:count])
    assert all(" as far as alone, " in line for line in lines)
    assert together.concepts == list(CONCEPTS[:count])
    assert set(together.deltas) == {ENCODER.format(layer) for layer in range(min(count, 4))}
    assert set(result.patcher.patches) == set(together.deltas)
    assert together.record["measured"]["conflict"] == lines
    assert drawing is None


def test_a_place_in_between_may_be_empty(pack: ModuleType, parts: tuple) -> None:
    one = of_the_encoder(pack, parts[1], "fox")
    *_, report, _ = combined(pack, parts, one, None, None, None, one)
    assert report.count("fox: moves ") == 2
    _, together, report, _ = combined(pack, parts, one, None, None)
    assert report == f"fox: {ALONE}"
    assert together.deltas is one.deltas, "of one alone there is nothing to add"


def test_erasures_of_both_parts_get_lines_of_their_own(pack: ModuleType, parts: tuple) -> None:
    model, clip, _ = parts
    of_both = [of_the_encoder(pack, clip), of_the_network(pack, model, "owl")]
    result, _, report, drawing = combined(pack, parts, *of_both, model=model)
    assert report.splitlines() == [
        f"fox: {ALONE}",
        "owl: 100% of its change of the model is left beside the others",
    ]
    assert set(result.patcher.patches) == {ENCODER.format(0)}
    assert set(drawing.patches) == {NETWORK}


@pytest.mark.parametrize("position", [0, 2, 4])
def test_an_erasure_of_another_base_is_refused(
    pack: ModuleType, parts: tuple, position: int
) -> None:
    erasures = [of_the_encoder(pack, parts[1], concept) for concept in CONCEPTS]
    key = ENCODER.format(0)
    erasures[position] = of_the_encoder(pack, parts[1], CONCEPTS[position], base={key: "other"})
    with pytest.raises(ValueError, match="was trained on another base model") as error:
        combined(pack, parts, *erasures)
    # Of the first two it cannot be known which is the odd one.
    named = CONCEPTS[max(position, 1)]
    assert f'"{named}" was trained' in str(error.value)
    assert "\n" not in str(error.value)


def test_erasures_of_one_base_are_weighed_against_the_model_that_is_connected(
    pack: ModuleType, parts: tuple
) -> None:
    other = {"base": {ENCODER.format(0): "other"}}
    erasures = [of_the_encoder(pack, parts[1], concept, **other) for concept in CONCEPTS[:2]]
    *_, report, _ = combined(pack, parts, *erasures)
    warning, *lines = report.splitlines()
    assert warning.startswith("Warning: 1 of 1 weights differ from those this erasure")
    assert [line.partition(":")[0] for line in lines] == ["fox", "owl"]


# Files of one name


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Path]]:
    """Three folders of their own in place of the host's models folders."""
    import folder_paths

    found = {"loras": [tmp_path / "models", tmp_path / "output"], "text_encoders": [tmp_path / "e"]}
    known = {".safetensors"}
    for name, places in found.items():
        for place in places:
            place.mkdir()
        monkeypatch.setitem(
            folder_paths.folder_names_and_paths, name, ([str(place) for place in places], known)
        )
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return found


def test_of_files_of_one_name_the_first_is_loaded_and_the_name_is_offered_once(
    pack: ModuleType, parts: tuple, folders: dict[str, list[Path]]
) -> None:
    """models/loras, then output/loras, then models/text_encoders."""
    erased, clip = pack.nodes.erasures, parts[1]
    places = [*folders["loras"], *folders["text_encoders"]]
    # From the last place to the first, each then goes before those that are there.
    for concept, place in reversed(list(zip(CONCEPTS, places))):
        of_the_encoder(pack, clip, concept).save(place / "same.safetensors")
        assert erased.find_file("same.safetensors") == place / "same.safetensors"
        assert pack.nodes.listing.erasure_choices() == ["same.safetensors"]
        _, erasure, summary = run(erased.LoadErasedClip, clip, "same.safetensors", 1.0)
        assert erasure.concepts == [concept]
        assert summary.startswith(f"{concept}, strength 1.")
