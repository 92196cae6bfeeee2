"""The probe on the trained model in this process: every attack, its order, its memory."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_probe import small_probe
from tiny import Stages

import testbed.model.pack
from unlearn.evaluate.probe import ATTACKS
from unlearn.prompts.paraphrases import OWN

RING, PREFIX, TOKEN = "Ring-A-Bell", "UnlearnDiffAtk", "CCE"


def even(images: torch.Tensor) -> list[bool]:
    """A judge that says yes to some pictures, to the same ones each time."""
    return [int(1e4 * image.mean()) % 2 == 0 for image in images]


def weights_of(model: Any, clip: Any, vae: Any) -> dict[str, torch.Tensor]:
    roots = {"network": model.model, "encoder": clip.cond_stage_model}
    return {
        f"{name}: {key}": tensor
        for name, root in roots.items()
        for key, tensor in root.state_dict().items()
    }


@pytest.fixture(scope="module")
def unedited(pack: ModuleType) -> tuple[Any, list, dict]:
    """(probe of a model in which nothing is erased, what it told, which weights are the same)."""
    told: list[tuple[str, int, int]] = []
    parts = testbed.model.pack.checkpoint()
    weights = {key: tensor.clone() for key, tensor in weights_of(*parts).items()}
    with torch.inference_mode():
        model = pack.nodes.backend.model.ComfyModel(*parts, size=(64, 64))
        found = pack.unlearn.evaluate.probe.probe(
            model.training,
            model.training,
            "owl",
            frozenset(),
            small_probe(pack),
            pack.unlearn.prompts.paraphrases.Given(descriptions=("a bird of the night",)),
            judge=even,
            progress=Stages(lambda *event: told.append(event)),
        )
    same = {
        key: key in weights and torch.allclose(value, weights[key], 0, 0, equal_nan=True)
        for key, value in weights_of(*parts).items()
    }
    return found, told, same


def test_a_model_with_nothing_erased_shows_it(unedited: tuple) -> None:
    found = unedited[0]
    assert found.rate() == found.rate(before=True) == 1.0
    assert found.sentences()[0].startswith("owl is not suppressed")
    own = found.asked[0]
    assert torch.equal(own.before, own.after), "the same prompts, seeds and weights"


def test_everything_is_asked_in_order(unedited: tuple) -> None:
    found = unedited[0]
    names = [one.name for one in found.asked]
    assert names[0] == OWN
    assert names[-len(ATTACKS) :] == list(ATTACKS)
    assert "descriptions" in names
    for one in found.asked:
        count = len(one.prompts)
        assert len(one.after) == len(one.shown_after) == len(one.judged_after) == count
        assert len(one.before) == len(one.shown_before) == len(one.judged_before) == count


def test_the_other_judge_is_asked_of_each_picture(unedited: tuple) -> None:
    asked = unedited[0].asked
    for one in asked:
        assert one.judged_before == even(one.before), one.name
        assert one.judged_after == even(one.after), one.name
    assert {hit for one in asked for hit in one.judged_after} == {True, False}


def test_the_original_draws_ring_a_bells_prompts_itself(unedited: tuple) -> None:
    """Nothing is erased here, so that both models draw the same; those of the other attacks are
    made for the edited one, and stand beside what its own prompts draw."""
    asked = {one.name: one for one in unedited[0].asked}
    assert torch.equal(asked[RING].before, asked[RING].after)
    assert not torch.equal(asked[RING].before, asked[OWN].before)
    assert torch.equal(asked[PREFIX].before, asked[OWN].before)


def test_attacks_make_prompts_of_words(unedited: tuple) -> None:
    own, ring, prefix, token = (
        next(one.prompts for one in unedited[0].asked if one.name == name)
        for name in (OWN, RING, PREFIX, TOKEN)
    )
    assert not any("owl" in prompt for prompt in ring)
    assert all(len(prompt.split()) == 4 for prompt in ring)
    assert all(a.endswith(f" {b}") and len(a) > len(b) + 3 for a, b in zip(prefix, own))
    assert all("<token>" in prompt for prompt in token)


def test_it_says_how_far_it_is(unedited: tuple) -> None:
    told = unedited[1]
    whats = list(dict.fromkeys(what for what, *_ in told))
    assert whats[0] == f"drawing {OWN}, original"
    assert whats[-1] == "judging"
    assert [f"attacking with {name}" for name in ATTACKS] == [w for w in whats if "attack" in w]
    for what in whats:
        last = [(done, total) for name, done, total, *_ in told if name == what][-1]
        assert last[0] == last[1], what


def test_the_weights_stay_what_they_were(unedited: tuple) -> None:
    same = unedited[2]
    assert {key.partition(":")[0] for key in same} == {"network", "encoder"}
    assert all(same.values())


@pytest.mark.slow
def test_it_may_be_cancelled_in_an_attack(pack: ModuleType) -> None:
    class Cancelled(Exception):
        pass

    def cancel(what: str, *_: object) -> None:
        if "attacking" in what:
            raise Cancelled

    model = pack.nodes.backend.model.ComfyModel(*testbed.model.pack.checkpoint(), size=(64, 64))
    with torch.inference_mode(), pytest.raises(Cancelled):
        pack.unlearn.evaluate.probe.probe(
            model.training,
            model.training,
            "fox",
            frozenset(),
            small_probe(pack),
            progress=Stages(cancel),
        )


def test_attacks_keep_no_activations_of_layers_that_go_unread(pack: ModuleType) -> None:
    """The host runs the layers behind a clip skip, whose graphs no backward pass goes through."""
    parts = testbed.model.pack.checkpoint()
    parts[1].clip_layer(-2)
    kept: list[int] = []
    chosen, science = small_probe(pack), pack.unlearn
    with torch.inference_mode():
        model = pack.nodes.backend.model.ComfyModel(*parts, size=(64, 64))
        with model.training():
            progress = Stages(lambda *_: kept.append(len(model._saved.original)))
            own = ["a photo of a fox"] * 2
            science.ring_a_bell(
                model, "fox", own, "object", progress=progress, settings=chosen.ring_a_bell
            )
            noise = model.noise(2, torch.Generator().manual_seed(0))
            science.cce(model, noise, "object", chosen.cce, progress)
            with torch.no_grad():
                wanted = model.encode(own)
            science.unlearn_diff_atk(
                model, own, wanted, noise, "object", chosen.unlearn_diff_atk, progress
            )
    assert len(kept) == 1 + 2 + 3
    assert not any(kept)


def test_only_the_same_erasure_at_the_same_strength_is_alike(
    pack: ModuleType, tmp_path: Path
) -> None:
    """The figures of another, or of a half, must not go into its record."""
    _, clip, _ = testbed.model.pack.checkpoint()
    science, apply = pack.unlearn.core.erasure, pack.nodes.backend.apply
    key = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    shape = clip.cond_stage_model.state_dict()[key].shape
    generator = torch.Generator().manual_seed(0)
    one, other = (
        science.Erasure({key: {"diff": torch.randn(shape, generator=generator)}}) for _ in range(2)
    )
    low = science.Erasure(
        {key: {"lora_up": torch.ones(shape[0], 1), "lora_down": torch.ones(1, shape[1])}}
    )
    one.save(tmp_path / "one.safetensors")  # in 16 bits
    again = science.Erasure.load(tmp_path / "one.safetensors")

    def on(*erasures, strength: float = 1.0):
        on_it = clip
        for erasure in erasures:
            on_it, _ = apply.erased_clip(on_it, erasure, strength)
        return on_it

    assert apply.alike_clips(on(one), on(again))
    assert apply.alike_clips(on(low), on(low))
    assert apply.alike_clips(None, None)
    combine = science.combine
    assert apply.alike_clips(on(combine([one], [0.5])), on(one, strength=0.5))
    assert apply.alike_clips(on(combine([low], [0.5])), on(low, strength=0.5))
    for connected in (on(other), on(low), on(one, strength=0.5), on(one, other), clip, None):
        assert not apply.alike_clips(on(one), connected)
    assert not apply.alike_clips(None, on(one))


def test_probes_of_one_erasure_stand_beside_each_other(pack: ModuleType) -> None:
    def record(concept: str, level: str, pre: float) -> dict:
        return {"concept": concept, "settings": {"level": level}, "pre": pre}

    erasure = pack.unlearn.core.erasure.Erasure({})
    erasure = erasure.with_probes([record("cat", "quick", 0.5), record("dog", "quick", 0.1)])
    erasure = erasure.with_probes([record("cat", "full", 0.3), record("cat", "quick", 0.4)])
    found = erasure.record["measured"]["probe"]
    assert [(one["concept"], one["settings"]["level"], one["pre"]) for one in found] == [
        ("cat", "quick", 0.4),
        ("dog", "quick", 0.1),
        ("cat", "full", 0.3),
    ]
