"""The verdict that the training nodes give after they have trained, and keep in the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from node_values import FEW_SHOT, KEY_STEP
from PIL import Image
from small_erasures import of_the_encoder, of_the_network, run

from testbed.model import samples
from unlearn.core.erasure import Erasure
from unlearn.evaluate import verdict

pytestmark = pytest.mark.usefixtures("small_runs", "quickly_looked")

MEASURED = {
    "judge": "the original model",
    "concepts": {"fox": {"verdict": "gone", "before": 4, "after": 0}},
    "of": 1,
    "pictures": 4,
    "given": False,
    "seconds": 1.0,
}
GONE = "fox is gone: its own prompts show it in 0 of 4 pictures, 4 before."


@pytest.fixture
def folder(host: ModuleType, tmp_path: Path) -> Iterator[Path]:
    """An output folder of its own: nothing was trained before."""
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    with torch.inference_mode():
        yield tmp_path
    folder_paths.set_output_directory(before)


@pytest.fixture
def quickly_looked(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model draws is looked at with fewer draws of noise."""
    monkeypatch.setattr(pack.unlearn.evaluate.known, "DRAWS", (2, 4))


@pytest.fixture
def any_word(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a model draws it, which is chance in so small pictures, is not looked at."""
    monkeypatch.setattr(pack.nodes.judging.Judging, "_looked", lambda *_: None)


@pytest.fixture
def unlearn(pack: ModuleType, parts: tuple, folder: Path) -> Callable[..., tuple]:
    """Few-Shot Encoder Unlearn after one step: (CLIP, erasure, summary, record of the file)."""

    def unlearned(**inputs: Any) -> tuple:
        node, values = pack.nodes.few_shot.FewShotEncoderUnlearn, {**FEW_SHOT, "images": None}
        clip, erasure, *_, summary = run(node, *parts, **{**values, **inputs})
        (file,) = folder.rglob("*.safetensors")
        return clip, erasure, summary, Erasure.load(file).record

    return unlearned


def test_summary_and_file_begin_with_what_was_measured(
    pack: ModuleType, unlearn: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a single step, really drawn and judged; and queued again it is not drawn again."""
    monkeypatch.setattr(pack.unlearn.methods.few_shot, "solved_start", lambda *_: None)
    _, erasure, summary, record = unlearn(concept="cat", size=128)
    first, second = summary.splitlines()[:2]
    found = record["measured"]["verdict"]
    assert found["concepts"]["cat"]["verdict"] == "not gone"
    assert found["concepts"]["cat"]["before"] >= 3
    assert found == erasure.record["measured"]["verdict"]
    assert first.startswith("cat is not gone: its own prompts show it in ")
    assert second == "The text encoder was changed for: cat (object)."
    assert "Erased" not in summary
    assert "Suppressed" not in summary
    monkeypatch.setattr(
        pack.unlearn.evaluate.verdict, "measured", lambda *_: pytest.fail("it was there")
    )
    _, kept, again, _ = unlearn(concept="cat", size=128)
    assert again.splitlines()[:2] == [
        first,
        "Trained before with these inputs; read from the file.",
    ]
    # Small pictures of both sides are in the file, and they are of this cat.
    assert kept.pictures == erasure.pictures
    ((row,), unpacked) = pack.nodes.show.rows(kept), pack.unlearn.render.thumbnails.unpacked
    assert row.label == "cat"
    assert row.before.shape == row.after.shape == (2, 128, 128, 3)
    assert torch.equal(unpacked(erasure.pictures["cat"]["before"]), row.before)
    assert row.before.std() > 0.1


def test_a_word_that_the_model_does_not_draw_stops_the_node_before_it_trains(
    unlearn: Callable[..., tuple], folder: Path
) -> None:
    with pytest.raises(ValueError, match="The unedited model does not ") as error:
        unlearn(concept="mushrom")
    assert "mushrom" in str(error.value)
    assert ", so there is nothing to unlearn. " in str(error.value)
    assert str(error.value).endswith("or switch verdict off to train anyway.")
    assert not list(folder.rglob("*.safetensors"))
    *_, record = unlearn(concept="mushrom", verdict=False)
    assert record["concepts"] == ["mushrom"]


@pytest.mark.usefixtures("any_word")
def test_a_cancel_while_it_measures_loses_nothing(
    pack: ModuleType,
    unlearn: Callable[..., tuple],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from comfy.model_management import InterruptProcessingException

    def interrupted(*_: Any) -> None:
        raise InterruptProcessingException

    monkeypatch.setattr(pack.unlearn.evaluate.verdict, "measured", interrupted)
    with pytest.raises(InterruptProcessingException):
        unlearn()
    (file,) = folder.rglob("*.safetensors")
    assert "verdict" not in Erasure.load(file).record["measured"]
    monkeypatch.setattr(pack.unlearn.evaluate.verdict, "measured", lambda *_: MEASURED)
    node = pack.nodes.few_shot.FewShotEncoderUnlearn
    anew = replace(node.METHOD, train=lambda *_: pytest.fail("trained anew"))
    monkeypatch.setattr(node, "METHOD", anew)
    *_, summary, record = unlearn()
    assert summary.startswith(f"{GONE} The original model judged, in 1.0 s.\n")
    assert "\nTrained before with" in summary
    assert summary.endswith(verdict.SUPPRESSED)
    assert record["measured"]["verdict"] == MEASURED


@pytest.mark.usefixtures("any_word")
def test_without_memory_to_measure_the_result_is_kept(
    pack: ModuleType,
    parts: tuple,
    unlearn: Callable[..., tuple],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_large(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pack.unlearn.evaluate.verdict, "measured", too_large)
    clip, _, summary, record = unlearn()
    assert summary.startswith("Not measured: there was too little memory for it. The erasure is k")
    assert summary.endswith(verdict.UNMEASURED)
    assert clip.patcher.patches.keys() > parts[1].patcher.patches.keys()
    assert "verdict" not in record["measured"]


@pytest.mark.parametrize("mode", ["balanced", pytest.param("paper", marks=pytest.mark.slow)])
def test_pictures_of_another_thing_stop_the_node_before_it_trains(
    pack: ModuleType,
    parts: tuple,
    unlearn: Callable[..., tuple],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    """Really looked at; among a few words, since two hundred take long."""
    words = {"object": ("house", "mushroom", "guitar", "boat")}
    monkeypatch.setattr(pack.unlearn.evaluate.picture_check, "VOCABULARY", words)
    shown = [Image.open(samples.FOLDER / f"mushroom_{i}.png").convert("RGB") for i in (1, 2)]
    images = torch.stack([torch.from_numpy(np.array(one)).float() / 255 for one in shown])
    with pytest.raises(ValueError, match="do not show 'cat' but 'mushroom'") as error:
        unlearn(concept="cat", images=images, mode=mode)
    assert "or switch verdict off to train anyway." in str(error.value)
    assert not list(folder.rglob("*.safetensors"))
    model = pack.nodes.backend.model.ComfyModel(*parts, (128, 128))
    with model.training():
        assert (
            pack.unlearn.evaluate.picture_check.check_pictures(
                model, ["mushroom"], images, "object", ""
            )
            == []
        )
    *_, record = unlearn(concept="cat", images=images, verdict=False)
    assert not {"verdict", "doubts"} & record["measured"].keys()


@pytest.mark.usefixtures("any_word")
def test_doubts_are_said_and_recorded(
    pack: ModuleType, unlearn: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack.unlearn.evaluate.verdict, "measured", lambda *_: MEASURED)
    judging = pack.nodes.judging
    monkeypatch.setattr(judging, "check_pictures", lambda *_: ["Warning: doubtful."])
    *_, summary, record = unlearn(images=FEW_SHOT["images"])
    assert summary.splitlines()[1] == "Warning: doubtful."
    assert record["measured"]["doubts"] == ["Warning: doubtful."]


def test_every_training_node_has_the_switch_behind_its_older_inputs(pack: ModuleType) -> None:
    nodes = pack.nodes
    for node in (
        nodes.few_shot.FewShotEncoderUnlearn,
        nodes.key_step.KeyStepUNetUnlearn,
        nodes.domain_correction.DomainCorrectionUNetUnlearn,
    ):
        inputs = node.define_schema().inputs
        names = [one.id for one in inputs]
        place = names.index("verdict")
        assert (inputs[place].default, inputs[place].optional) == (True, True)
        # Saved workflows have their values by place, so what came later stands behind it.
        assert names[place + 1 :] in ([], ["recipe", "precision"], ["as_released"])


@pytest.mark.usefixtures("any_word")
def test_verdict_of_the_network_needs_no_autoencoder(
    pack: ModuleType, parts: tuple, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small, and in few steps: what it is, is chance."""
    monkeypatch.setattr(pack.unlearn.evaluate.known, "STEPS", 2)
    values = {**KEY_STEP, "iterations": 1}
    *_, summary, _ = run(pack.nodes.key_step.KeyStepUNetUnlearn, *parts[:2], **values)
    (file,) = folder.rglob("*.safetensors")
    found = Erasure.load(file).record
    assert found["measured"]["verdict"]["concepts"].keys() == {"fox"}
    assert summary.startswith(verdict.told(found) + "\nThe model was changed for: fox (object).")


# A kind's own sentence, in the nodes


def test_style_is_previewed_and_its_movement_measured_as_a_style(
    pack: ModuleType,
    parts: tuple,
    unlearn: Callable[..., tuple],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = []

    def preview(model: Any, prompt: str, seed: int) -> torch.Tensor:
        shown.append(prompt)
        return torch.zeros(1, 8, 8, 3)

    monkeypatch.setattr(pack.nodes.backend.model.ComfyModel, "preview", preview)
    clip, _, summary, _ = unlearn(concept="ink", kind="style", verdict=False)
    asked = "a painting in the style of ink"
    assert set(shown) == {asked}
    was, now = (c.encode_from_tokens(c.tokenize(asked)) for c in (parts[1], clip))
    moved = ((now - was).norm() / was.norm()).item()
    assert pack.nodes.results.movement(parts[1], clip, ["ink"], "style") == {
        "ink": pytest.approx(moved)
    }
    assert f"moved by: ink {moved:.0%}" in summary


def test_each_combined_concept_is_asked_for_by_its_own_kind(
    pack: ModuleType, parts: tuple, folder: Path
) -> None:
    clip = parts[1]
    kinds = {"ink": "style", "fox": "object", "Zorvik": "character"}
    erasures = [
        of_the_encoder(pack, clip, concept, layer, kind=kind)
        for layer, (concept, kind) in enumerate(kinds.items())
    ]
    named = {f"erasure_{i}": erasure for i, erasure in enumerate(erasures, 1)}
    result, _, report, _ = run(pack.nodes.erasures.CombineErasedClip, clip, **named)
    sentences = {
        "ink": "a painting in the style of ink",
        "fox": "a photo of a fox",
        "Zorvik": "a photo of Zorvik",
    }
    lines = []
    for erasure, (concept, asked) in zip(erasures, sentences.items()):
        alone, _ = pack.nodes.backend.apply.erased_clip(clip, erasure)
        length, direction = pack.nodes.erasures.conflict(clip, alone, result, asked)
        lines.append(
            f"{concept}: moves {length:.0%} as far as alone, {direction:.0%} in the same direction"
        )
    assert report.splitlines() == lines


# Loading


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_loading_tells_what_was_measured_at_the_strength_of_the_training(
    pack: ModuleType, parts: tuple, strength: float
) -> None:
    erasure = of_the_network(pack, parts[0]).with_measured(verdict=MEASURED)
    _, _, text = pack.nodes.erasures._loaded(None, None, erasure, "a", strength, "").result
    assert (f"Measured when it was trained: {GONE}" in text) == (strength == 1)


@pytest.mark.usefixtures("any_word")
def test_a_chosen_anchor_is_told_judged_and_kept(
    pack: ModuleType, unlearn: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the verdict is on, what was drawn of a candidate decides, too."""
    training, asked, judged = pack.nodes.training, [], []

    def drawable(*_: Any) -> Callable[[str, str], bool]:
        return lambda concept, word: bool(asked.append((concept, word)) or len(asked) == 2)

    def measured(*arguments: Any) -> dict:
        judged.append(arguments[4])
        return MEASURED

    choice = pack.unlearn.prompts.anchor_choice
    monkeypatch.setitem(choice.VOCABULARY, "object", choice.VOCABULARY["object"][:32])
    monkeypatch.setattr(training, "drawable", drawable)
    monkeypatch.setattr(pack.unlearn.evaluate.verdict, "measured", measured)
    _, erasure, summary, record = unlearn(concept="fox", anchor="Closest")
    (first, anchor) = (word for _, word in asked)
    assert first != anchor
    assert erasure.record["anchors"] == record["anchors"] == {"fox": anchor}
    assert record["settings"]["anchor"] == anchor
    assert judged == [anchor]
    assert f"\nThe anchor was chosen: {anchor}.\n" in summary


@pytest.mark.slow
def test_without_a_verdict_the_encoder_alone_chooses(
    pack: ModuleType, unlearn: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack.nodes.training, "drawable", lambda *_: pytest.fail("it drew"))
    *_, summary, record = unlearn(concept="fox", anchor="closest", verdict=False)
    anchor = record["anchors"]["fox"]
    assert anchor in pack.unlearn.prompts.vocabulary.VOCABULARY["object"]
    assert f"The anchor was chosen: {anchor}.\n" in summary
