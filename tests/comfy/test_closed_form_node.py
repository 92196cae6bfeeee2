"""Closed-Form Encoder Unlearn, the node: a CLIP in, a CLIP out, and no MODEL needed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import small_closed_form
import torch

import testbed.model.pack


@pytest.fixture(scope="module")
def parts(host: ModuleType) -> tuple:
    return testbed.model.pack.checkpoint()


@pytest.fixture
def output(host: ModuleType, tmp_path: Path) -> Iterator[Path]:
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_output_directory(before)


def small(pack: ModuleType):
    """The node with fewer prompts."""
    own = pack.nodes.closed_form.ClosedFormEncoderUnlearn
    return type(own.__name__, (own,), {"METHOD": small_closed_form.few(pack.unlearn)})


def run(pack: ModuleType, **inputs) -> tuple:
    values = {"concept": "fox", "anchor": "koala", **inputs}
    with torch.inference_mode():
        return small(pack).PREPARE_CLASS_CLONE(None).execute(**values).result


def read(clip, prompt: str) -> torch.Tensor:
    with torch.inference_mode():
        return clip.encode_from_tokens(clip.tokenize(prompt))


@pytest.fixture(scope="module")
def fox(
    pack: ModuleType, parts: tuple, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple, Path]:
    """(What the node hands on for a fox by the CLIP alone, the output folder with its file)."""
    import folder_paths

    before, folder = folder_paths.get_output_directory(), tmp_path_factory.mktemp("fox")
    folder_paths.set_output_directory(str(folder))
    outputs = run(pack, clip=parts[1])
    folder_paths.set_output_directory(before)
    return outputs, folder


def test_it_needs_the_clip_alone(pack: ModuleType, parts: tuple, fox: tuple, output: Path) -> None:
    _, clip, _ = parts
    (erased, erasure, curve, losses, summary), folder = fox
    shutil.copytree(folder, output, dirs_exist_ok=True)
    was, koala = (read(clip, f"a photo of a {word}") for word in ("fox", "koala"))
    now = read(erased, "a photo of a fox")
    assert (now - koala).norm() < 0.4 * (was - koala).norm()
    assert torch.equal(read(clip, "a photo of a fox"), was)
    assert erasure.record["method"] == "closed_form"
    assert len(losses["loss"]) == erasure.record["steps"] == 4
    assert all(0 < left < 1 for left in losses["loss"]), losses
    assert curve.shape[-1] == 3
    assert "4 layers" in summary
    assert "was not measured" in summary
    (file,) = output.rglob("*.safetensors")
    assert file.name in summary
    *_, again = run(pack, clip=clip)
    assert "read from the file" in again


def test_without_a_model_a_misspelt_word_is_asked_about(
    pack: ModuleType, parts: tuple, output: Path
) -> None:
    with pytest.raises(ValueError, match="The text encoder reads 'mushrom' in pieces") as error:
        run(pack, clip=parts[1], concept="mushrom")
    assert "and it knows 'mushroom'. Correct the concept, or switch verdict" in str(error.value)
    assert not list(output.rglob("*.safetensors"))
    *_, summary = run(pack, clip=parts[1], concept="mushrom", verdict=False)
    assert "\nThe text encoder was changed for: mushrom (object)." in summary


def test_a_model_changes_nothing_of_the_erasure(
    pack: ModuleType,
    parts: tuple,
    fox: tuple,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, clip, vae = parts
    (_, erasure, *_), folder = fox
    (file,) = folder.rglob("*.safetensors")
    shown = []
    reporter = pack.nodes.training.Progress
    monkeypatch.setattr(reporter, "look", lambda self: shown.append(self.draw().shape))
    _, other, *_ = run(pack, clip=clip, model=model, vae=vae, size=64, verdict=False)
    assert shown == [(1, 64, 64, 3)]
    assert [one.name for one in output.rglob("*.safetensors")] == [file.name]
    for key in erasure.deltas:
        torch.testing.assert_close(erasure.delta(key), other.delta(key))


def test_strength_is_how_far(pack: ModuleType, parts: tuple, fox: tuple, output: Path) -> None:
    _, clip, _ = parts
    was = read(clip, "a photo of a fox")
    half, (whole, *_) = run(pack, clip=clip, strength=0.5)[0], fox[0]
    moved = [(read(one, "a photo of a fox") - was).norm() for one in (half, whole)]
    assert moved[0] < 0.8 * moved[1]
    with pytest.raises(ValueError, match="strength of 0"):
        run(pack, clip=clip, strength=0.0)


def test_each_concept_may_name_its_anchor_and_it_tells_who_stayed_back(
    pack: ModuleType, parts: tuple, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, clip, _ = parts
    way_left = pack.unlearn.methods.parts.way_left
    monkeypatch.setattr(way_left, "BEHIND", 0.0)
    monkeypatch.setattr(way_left, "median", lambda values: 0.0)  # both are behind, then
    erased, erasure, *_, summary = run(
        pack, clip=clip, concept="fox -> koala, castle -> house", anchor=""
    )
    assert erasure.concepts == ["fox", "castle"]
    assert erasure.record["settings"]["anchor"] == {"fox": "koala", "castle": "house"}
    for concept, anchor in (("fox", "koala"), ("castle", "house")):
        own, other = (read(clip, f"a photo of a {word}") for word in (concept, anchor))
        now = read(erased, f"a photo of a {concept}")
        assert (now - other).norm() < 0.5 * (own - other).norm(), concept
    (file,) = output.rglob("*.safetensors")
    record = pack.unlearn.core.erasure.Erasure.load(file).record
    left, alone = record["left"], record["left_alone"]
    assert set(left) == set(alone) == {"fox", "castle"}
    shares = [share**2 for share in left.values()]
    assert min(shares) <= record["loss"][-1] <= max(shares)
    assert all(0 < alone[one] < 0.5 for one in left), (left, alone)
    assert "Not all the way at their anchors: " in summary
    assert f"fox {1 - left['fox']:.0%} of the way, alone {1 - alone['fox']:.0%}" in summary


def test_with_a_model_a_chosen_anchor_is_looked_at(
    pack: ModuleType, parts: tuple, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, clip, _ = parts
    training, asked = pack.nodes.training, []

    def drawable(host, *given):
        assert host.network is model.model
        return lambda concept, candidate: bool(asked.append((concept, candidate)))

    choice = pack.unlearn.prompts.anchor_choice
    monkeypatch.setitem(choice.VOCABULARY, "object", choice.VOCABULARY["object"][:32])
    monkeypatch.setattr(training, "drawable", drawable)
    monkeypatch.setattr(training.verdicts, "measured", lambda *given: {})
    _, erasure, *_ = run(pack, clip=clip, model=model, size=64, anchor="")
    assert {concept for concept, _ in asked} == {"fox"}
    # None was drawable.
    assert erasure.record["anchors"] == {"fox": "picture"}


def test_cancelled_it_leaves_nothing(
    pack: ModuleType, parts: tuple, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    _, clip, _ = parts
    before = read(clip, "a photo of a fox")
    seen = []

    def stage(self, what: str, done: int, total: int, leader: str = "") -> None:
        seen.append((what, done, total))
        if done == 2:
            raise management.InterruptProcessingException

    monkeypatch.setattr(pack.nodes.training.Progress, "stage", stage)
    with pytest.raises(management.InterruptProcessingException):
        run(pack, clip=clip)
    assert seen[-3:] == [("solving", i, 4) for i in range(3)]
    assert not list(output.rglob("*.safetensors"))
    assert not any(one._forward_hooks for one in clip.cond_stage_model.modules())
    assert torch.equal(read(clip, "a photo of a fox"), before)


def test_too_little_memory_is_said_before_any_work(
    pack: ModuleType, parts: tuple, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    monkeypatch.setattr(management, "get_free_memory", lambda *given, **more: 1000)
    with pytest.raises(MemoryError, match="name fewer concepts"):
        run(pack, clip=parts[1])
    assert not list(output.rglob("*.safetensors"))
