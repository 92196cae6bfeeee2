"""Sampling step by step: DDIM in every parameterisation, and a trajectory that is kept."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from tiny import TinyModel, TinyNetworkModel

from unlearn.core.conditioning import Conditioning
from unlearn.core.ddim import Trajectory, at, ddim_step, guided, timesteps

PARAMETERISATIONS = ["eps", "v", "flow"]
STEPS = 10


def test_fifty_steps_are_the_papers() -> None:
    times = timesteps(50)
    assert times[:3] == [981, 961, 941]
    assert times[-2:] == [21, 1]
    assert len(times) == 50


@pytest.mark.parametrize("steps", [1, 7, 20, 1000])
def test_timesteps_are_evenly_spaced_and_end_at_one(steps: int) -> None:
    times = timesteps(steps)
    assert len(times) == steps
    assert times[-1] == 1
    assert times[0] <= 1000
    gaps = [a - b for a, b in pairwise(times)]
    assert gaps == pytest.approx([1000 / steps] * (steps - 1))


def pictures(model: TinyNetworkModel, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """(x0, noise)."""
    generator = torch.Generator().manual_seed(0)
    return model.noise(count, generator), model.noise(count, generator)


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_a_step_with_the_true_prediction_lands_on_the_truth(parameterisation: str) -> None:
    model = TinyNetworkModel(parameterisation)
    x0, noise = pictures(model)
    times = timesteps(STEPS)
    for t, after in pairwise(times):
        x_t = model.add_noise(x0, noise, at(t, x0))
        truth = model.target(x0, noise, at(t, x0))
        stepped = ddim_step(model, x_t, t, truth, after)
        assert torch.allclose(stepped, model.add_noise(x0, noise, at(after, x0)), atol=1e-5)


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_the_last_step_gives_the_picture(parameterisation: str) -> None:
    model = TinyNetworkModel(parameterisation)
    x0, noise = pictures(model)
    x_t = model.add_noise(x0, noise, at(1.0, x0))
    stepped = ddim_step(model, x_t, 1.0, model.target(x0, noise, at(1.0, x0)), None)
    assert torch.allclose(stepped, x0, atol=1e-5)


def test_a_step_by_hand_on_one_pixel() -> None:
    """x_t = x0 + noise t / 1000: 2 at t = 500 with noise predicted as 3 means x0 = 0.5."""
    x, prediction = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)
    assert ddim_step(TinyModel(), x, 500.0, prediction, 100.0).item() == pytest.approx(0.8)
    assert ddim_step(TinyModel(), x, 500.0, prediction, None).item() == pytest.approx(0.5)


def test_a_step_is_the_same_for_any_way_of_predicting() -> None:
    """From the same x_t and the same x0 meant, eps and v go to the same place."""
    found = []
    for parameterisation in ("eps", "v"):
        model = TinyNetworkModel(parameterisation)
        x, _ = pictures(model)
        prompts = model.encode(["a cat", "a dog"])
        prediction = model.predict(x, at(701.0, x), prompts)
        found.append(ddim_step(model, x, 701.0, prediction, 401.0))
    assert torch.allclose(*found, atol=1e-5)


def test_guidance_goes_beyond_the_prompt_from_the_empty_one() -> None:
    model = TinyModel(1)
    x = torch.zeros(2, 1, 1, 1)
    prompt, empty = (Conditioning(torch.full((2, 1, 1), value)) for value in (1.0, 0.25))
    assert guided(model, x, 500.0, prompt, empty, 3.0).flatten().tolist() == [2.5, 2.5]
    assert guided(model, x, 500.0, prompt, empty, 1.0).flatten().tolist() == [1.0, 1.0]
    assert guided(model, x, 500.0, prompt, empty, 0.0).flatten().tolist() == [0.25, 0.25]


def test_guidance_asks_for_both_prompts_in_one_pass() -> None:
    model = TinyNetworkModel()
    x, _ = pictures(model, 3)
    cat, empty = (model.encode([p]).repeated(3) for p in ("a photo of a cat", ""))
    both = guided(model, x, 500.0, cat, empty, 3.0)
    assert model.predictions == [6]
    yes, no = (model.predict(x, at(500.0, x), c) for c in (cat, empty))
    assert torch.allclose(both, no + 3 * (yes - no), atol=1e-5)


# Trajectory


class Walk:
    def __init__(self, model: TinyNetworkModel, count: int = 1) -> None:
        self.model = model
        self.trajectory = Trajectory(
            model, STEPS, 3.0, torch.Generator().manual_seed(0), count=count
        )
        self.prompt = model.encode(["a photo of a cat"]).repeated(count)
        self.empty = model.encode([""]).repeated(count)

    def to(self, step: int) -> torch.Tensor:
        return self.trajectory.to(step, self.prompt, self.empty)

    def cost(self, step: int) -> int:
        """Predictions that it takes to get there."""
        before = len(self.model.predictions)
        self.to(step)
        return len(self.model.predictions) - before


def test_steps_that_follow_each_other_go_on_from_where_it_is() -> None:
    walk = Walk(TinyNetworkModel())
    assert [walk.cost(step) for step in range(4, STEPS)] == [4, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("step", [3, 6, 8])
def test_any_other_step_begins_anew(step: int) -> None:
    walk = Walk(TinyNetworkModel())
    first = walk.to(6).clone()
    assert walk.cost(step) == step
    if step == 6:
        assert not torch.equal(walk.trajectory.x, first), "from fresh noise"


def test_it_begins_with_pure_noise_at_the_noisiest_step() -> None:
    model = TinyNetworkModel()
    x = Walk(model, count=3).to(0)
    noise = model.noise(3, torch.Generator().manual_seed(0))
    assert torch.equal(x, model.add_noise(torch.zeros_like(x), noise, at(timesteps(STEPS)[0], x)))
    assert not model.predictions


def test_it_comes_to_what_sampling_from_start_to_end_gives() -> None:
    model = TinyNetworkModel()
    walk = Walk(model)
    x = Walk(model).to(0)
    for step, (t, after) in enumerate(pairwise(timesteps(STEPS))):
        prediction = guided(model, x, t, walk.prompt, walk.empty, 3.0)
        x = ddim_step(model, x, t, prediction, after)
        assert torch.equal(walk.to(step + 1), x)


def test_it_takes_no_gradients() -> None:
    model = TinyNetworkModel()
    with model.edit("denoiser", "cross-attention"):
        assert not Walk(model).to(3).requires_grad


def test_it_is_sampled_with_the_model_as_it_is_at_the_moment() -> None:
    model = TinyNetworkModel()
    before = Walk(model).to(STEPS - 1)
    with model.edit("denoiser", "cross-attention") as edit:
        walk = Walk(model)
        walk.to(STEPS // 2)
        for delta in edit.deltas.values():
            delta.full.data.fill_(0.1)
        assert not torch.allclose(walk.to(STEPS - 1), before)


@pytest.mark.parametrize("cut", [4, 6, STEPS - 1])
def test_restored_it_goes_on_as_if_nothing_had_happened(cut: int) -> None:
    steps = [*range(4, STEPS)] * 2  # two walks: the second needs fresh noise
    walk = Walk(TinyNetworkModel())
    whole = [walk.to(step).clone() for step in steps]
    first = Walk(TinyNetworkModel())
    for step in range(4, cut + 1):
        first.to(step)
    second = Walk(TinyNetworkModel())
    second.trajectory.restore(first.trajectory.state())
    done = cut + 1 - 4
    rest = [second.to(step).clone() for step in steps[done:]]
    assert all(torch.equal(a, b) for a, b in zip(whole[done:], rest, strict=True))


def test_the_state_of_one_that_has_not_begun_can_be_restored() -> None:
    first, second = Walk(TinyNetworkModel()), Walk(TinyNetworkModel())
    second.trajectory.restore(first.trajectory.state())
    assert torch.equal(second.to(3), first.to(3))
