"""Hardening by solving, in the node and on the real small model."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import small_closed_form
import torch

import testbed.model.pack

PROMPTS = ["a photo of a fox", "an owl, noto style", ""]


@pytest.fixture(scope="module")
def parts(host: ModuleType) -> tuple:
    return testbed.model.pack.checkpoint()


@pytest.fixture
def rounds(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Hardening with little effort."""
    found = pack.unlearn.methods.parts.hard_rounds
    for name, value in {"ATTACKED": 2, "STEPS": 8, "TRIES": 4, "ENOUGH": 0.0}.items():
        monkeypatch.setattr(found, name, value)
    return found


@pytest.fixture
def solves(rounds: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list:
    """(settings, further sentences, its solver) of each solve."""
    noted, solved = [], rounds.solved

    def noting(model, concepts, names, settings, progress, more):
        said = {concept: list(some) for concept, some in more.items()}
        noted.append((settings, said, solved(model, concepts, names, settings, progress, more)))
        return noted[-1][-1]

    monkeypatch.setattr(rounds, "solved", noting)
    return noted


def run(pack: ModuleType, folder: Path, clip, **inputs) -> tuple:
    import folder_paths

    own = pack.nodes.closed_form.ClosedFormEncoderUnlearn
    node = type(own.__name__, (own,), {"METHOD": small_closed_form.few(pack.unlearn)})
    values = {"concept": "fox", "anchor": "koala", "harden_rounds": 1, **inputs}
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(folder))
    try:
        with torch.inference_mode():
            return node.PREPARE_CLASS_CLONE(None).execute(clip=clip, **values).result
    finally:
        folder_paths.set_output_directory(before)


def encoded(pack: ModuleType, clip, prompts: list[str] = PROMPTS):
    encoder = pack.nodes.backend.encoder_model.ComfyEncoder(clip)
    with torch.inference_mode(), encoder.training():
        return encoder.encode(prompts).cross


def test_a_round_finds_words_and_solves_for_them(
    pack: ModuleType,
    parts: tuple,
    rounds: ModuleType,
    solves: list,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, clip, _ = parts
    monkeypatch.setattr(rounds, "PUSH", 0.0)  # so that words are found
    before = encoded(pack, clip)
    erased, erasure, *_, summary = run(pack, tmp_path, clip)
    revived = erasure.record["revived"]
    assert len(revived) == len(solves) == 2
    assert 0 <= revived[1] < revived[0] < 1, revived
    (_, none, _), (_, more, solver) = solves
    assert none == {"fox": []}
    assert len(more["fox"]) == 2
    assert all(sentence.count("{}") == 1 for sentence in more["fox"])
    batches = solver.prompts.split(solver.prompts.batches)["named"]
    named = {prompt for batch in batches for prompt in batch}
    assert {sentence.format("fox") for sentence in more["fox"]} <= named
    assert f"led {revived[0]:.0%} of the way back at first, and {revived[1]:.0%} in" in summary
    # The CLIP is as it was, and nothing hangs on it.
    assert torch.equal(encoded(pack, clip), before)
    assert not any(one._forward_hooks for one in clip.cond_stage_model.modules())
    # What words were sought in is what the node hands on.
    encoder = pack.nodes.backend.encoder_model.ComfyEncoder(clip)
    changed = pack.unlearn.methods.parts.layers.changed
    with (
        torch.inference_mode(),
        encoder.training(),
        changed(solver.prompts.places, solver.deltas),
    ):
        sought = encoder.encode(PROMPTS).cross
    torch.testing.assert_close(sought, encoded(pack, erased), atol=2e-3, rtol=1e-3)
    assert (sought[0] - before[0]).abs().max() > 0.1


def test_where_words_lead_hardly_back_no_round_follows(
    pack: ModuleType,
    parts: tuple,
    rounds: ModuleType,
    solves: list,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    def search(vocabulary, *given):
        tried.append((vocabulary, given))
        return [["an", "owl", "here"]] * given[1]

    monkeypatch.setattr(rounds, "search", search)
    monkeypatch.setattr(rounds, "ENOUGH", 2.0)
    *_, summary = run(pack, tmp_path, parts[1], harden_rounds=5)
    ((told, *_),) = solves
    assert (told.further, told.directions) == (0.25, 8)
    assert "Hardened: the words that were sought lead " in summary
    ((vocabulary, (_, count, tokens, *_)),) = tried
    assert (count, tokens) == (2, 3)
    assert "foxes" not in vocabulary.words
    assert "fox" not in vocabulary.words
    assert "wolf" in vocabulary.words
