"""The closed form on the real small model: what its encoder then says, without drawing."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

import testbed.model.pack

SMALL = {"sentences": 24, "others": 96, "other_names": False}
NAMED = ["a photo of a fox, noto style", "the fox", "an ink drawing of a fox"]
ANCHORED = [prompt.replace("fox", "koala") for prompt in NAMED]
OTHERS = ["a photo of a castle, blob style", "an owl", "Zorvik", "", "two pizzas in flat style"]


@pytest.fixture(scope="module")
def parts(host: ModuleType) -> tuple:
    return testbed.model.pack.checkpoint()


def model_of(pack: ModuleType, parts: tuple):
    return pack.nodes.backend.model.ComfyModel(*parts, size=(64, 64))


@pytest.fixture(scope="module")
def erasure(pack: ModuleType, parts: tuple):
    closed = pack.unlearn.methods.closed_form
    model = model_of(pack, parts)
    with torch.inference_mode(), model.training(gradients=False):
        return closed.closed_form(
            model, ["fox"], closed.ClosedFormSettings(anchor="koala", **SMALL)
        )


def encoded(pack: ModuleType, parts: tuple, prompts: list[str]):
    model = model_of(pack, parts)
    with torch.inference_mode(), model.training(gradients=False):
        return model.encode(prompts)


def test_the_concept_is_read_as_its_anchor_and_others_as_before(
    pack: ModuleType, parts: tuple, erasure
) -> None:
    edited = (*pack.nodes.backend.apply.erased(*parts[:2], erasure), parts[2])
    fox, koala = (encoded(pack, parts, prompts) for prompts in (NAMED, ANCHORED))
    apart = fox.distance(koala)
    now = encoded(pack, edited, NAMED).distance(koala)
    assert (now < 0.15 * apart).all()
    moved = encoded(pack, edited, OTHERS).distance(encoded(pack, parts, OTHERS))
    assert (moved < 0.08 * apart.mean()).all()


def test_the_change_is_of_low_rank_and_of_the_last_linear_layers(erasure) -> None:
    prefix = "clip_l.transformer.text_model.encoder.layers"
    assert list(erasure.deltas) == [f"{prefix}.{i}.mlp.fc2.weight" for i in range(4)]
    for delta in erasure.deltas.values():
        up, down = delta["lora_up"], delta["lora_down"]
        assert (up.shape[0], down.shape[1]) == (192, 768)
        assert up.shape[1] == down.shape[0] < 100


def test_diffusers_pipelines_get_the_same(iconcanvas_folder: Path, erasure) -> None:
    from unlearn.diffusers_backend.load import load_pipeline
    from unlearn.diffusers_backend.model import DiffusersModel
    from unlearn.methods.closed_form import ClosedFormSettings, closed_form

    model = DiffusersModel(load_pipeline(iconcanvas_folder), (64, 64))
    found = closed_form(model, ["fox"], ClosedFormSettings(anchor="koala", **SMALL))
    assert list(found.deltas) == list(erasure.deltas)
    assert found.record["base"] == erasure.record["base"]
    for key in found.deltas:
        torch.testing.assert_close(found.delta(key), erasure.delta(key), atol=1e-3, rtol=1e-2)


def test_one_pass_computes_what_the_erased_encoder_computes(
    pack: ModuleType, parts: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hidden states are carried along: at the end each prompt has the states that the erased
    encoder gives it."""
    closed, shared = pack.unlearn.methods.closed_form, pack.unlearn.methods.parts
    last: list = []

    class Kept(shared.encoder_solver.Solver):
        def at(self, place, waiting):
            changes = super().at(place, waiting)
            last[:] = [c and one.changed(place, c) for one, c in zip(waiting, changes)]
            return changes

    monkeypatch.setattr(shared.encoder_solver, "Solver", Kept)
    model = model_of(pack, parts)
    settings = closed.ClosedFormSettings(anchor="koala", sentences=4, others=8, other_names=False)
    with torch.inference_mode(), model.training(gradients=False):
        erasure = closed.closed_form(model, ["fox"], settings)
        prompts = shared.solve_prompts.Prompts.of(model, ["fox"], settings.solve)
    edited = (*pack.nodes.backend.apply.erased(*parts[:2], erasure), parts[2])
    edited_model, normed = model_of(pack, edited), edited[1].cond_stage_model.clip_l.transformer
    norm = normed.text_model.final_layer_norm
    with torch.inference_mode(), edited_model.training(gradients=False):
        for some, part, states in zip(prompts.batches, prompts.parts, last):
            if part in ("named", "others"):
                expected = edited_model.encode(some).cross
                torch.testing.assert_close(norm(states.float()), expected, atol=2e-3, rtol=0)


def test_it_is_the_same_again_and_leaves_the_model_alone(
    pack: ModuleType, parts: tuple, erasure
) -> None:
    before = encoded(pack, parts, NAMED).cross
    closed = pack.unlearn.methods.closed_form
    model = model_of(pack, parts)
    with torch.inference_mode(), model.training(gradients=False):
        settings = closed.ClosedFormSettings(anchor="koala", **SMALL)
        again = closed.closed_form(model, ["fox"], settings)
    for key, delta in erasure.deltas.items():
        for name, tensor in delta.items():
            torch.testing.assert_close(again.deltas[key][name], tensor, atol=1e-4, rtol=1e-3)
    assert torch.equal(encoded(pack, parts, NAMED).cross, before)
    assert not any(m._forward_hooks for m in model.encoder.modules())


@pytest.mark.parametrize(
    ("concepts", "anchor", "said"),
    [([], "", "No concept is named"), (["fox"], "fox", "anchor")],
)
def test_bad_input_is_refused_before_any_work(
    pack: ModuleType, parts: tuple, concepts: list[str], anchor: str, said: str
) -> None:
    closed = pack.unlearn.methods.closed_form
    model = model_of(pack, parts)
    with pytest.raises(ValueError, match=said):
        closed.closed_form(model, concepts, closed.ClosedFormSettings(anchor=anchor))
