"""The balanced modes' losses, every term worked out from what the model was asked for.

The weights are written here as numbers. They are those that the benchmark was run with.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from statistics import mean

import pytest
import torch
from noted import NotedNetworkModel, Prediction, Step, said_of, shift, square
from noted import noted_steps as noted_steps
from tiny import Cancelled, TinyModel, cancel_at

from unlearn.core.ddim import ddim_step, timesteps
from unlearn.core.edit import Edit, spectral_scale
from unlearn.core.progress import SILENT
from unlearn.methods import domain_correction as doco
from unlearn.methods import few_shot as shots
from unlearn.methods import key_step as keys
from unlearn.methods.domain_correction import DomainCorrectionSettings, domain_correction
from unlearn.methods.few_shot import FewShotSettings, few_shot
from unlearn.methods.key_step import key_step
from unlearn.methods.parts import closed_form
from unlearn.methods.parts.discriminator import Discriminator
from unlearn.methods.parts.few_shot_end import far_enough
from unlearn.methods.parts.key_step_settings import KeyStepSettings

STOPS_AFTER = 10  # steps


@pytest.fixture(autouse=True)
def small_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start in closed form is made of few prompts: it need only not be nothing."""
    monkeypatch.setattr(closed_form, "SENTENCES", 8)
    monkeypatch.setattr(closed_form, "OTHERS", 16)


def cancelled(step: int = 1):
    """An on_step after which the caller goes on, the run over."""
    return cancel_at(step)


# Few-shot


@pytest.mark.parametrize(
    ("kind", "push", "anchor"), [("object", 0, "picture"), ("style", 0.5, "plain")]
)
def test_few_shot_loss_by_hand(kind: str, push: float, anchor: str, steps: list[Step]) -> None:
    model, x0 = TinyModel(), torch.tensor([0.1, 0.9]).view(2, 1, 1, 1)
    with model.edit("encoder", "mlp") as edit:
        shift(edit)
        settings = FewShotSettings(kind=kind, max_steps=1, beta=2.0)
        shots.balanced(model, edit, ["cat"], [x0], settings, SILENT)
        common, empty, frozen, edited = model.encoded
        assert (len(common), empty, len(frozen), len(edited)) == (16, [""], 12, 10)
        own, others, named, neutral = frozen[:2], frozen[2:8], frozen[8:10], frozen[10:]
        assert edited == frozen[:10]
        assert (said_of("cat", own), said_of("cat", named)) == (own, named)
        assert neutral == [prompt.replace("cat", anchor) for prompt in named]
        assert not said_of("cat", others)

        shift(edit)  # as before the step
        with edit.off():
            own_was, others_was, named_was, neutral_was = (
                model.encode(prompts).cross for prompts in (own, others, named, neutral)
            )
            spread = square(model.encode(common).cross, model.encode([""]).cross)
        own_is, others_is, named_is = (
            model.encode(prompts).cross.detach() for prompts in (own, others, named)
        )
        lr, count = edit.deltas["layers.0.mlp.fc1.weight"].scale, len(edit.deltas)
    clean, noise, t = model.asked[0]
    x_t = clean + noise * (t / 1000).view(-1, 1, 1, 1)
    d, d_ref = ((x_t[:, 0, 0, 0] + c[:, 0, 0] - noise[:, 0, 0, 0]) ** 2 for c in (own_is, own_was))
    grown = torch.log(1 + torch.exp(2 * (1 - d / d_ref))).mean()
    kept = square(others_is, others_was) / spread
    pulled = square(named_is, neutral_was + push * (neutral_was - named_was)) / spread

    (step,) = steps
    parts = [grown.item(), 4 * kept.item(), 6 * pulled.item()]
    assert step.loss == pytest.approx(sum(parts), rel=1e-5)
    assert step.keep == pytest.approx(kept.item(), rel=1e-5)
    assert min(parts) > 1e-3 * step.loss, "none of them is lost in rounding"
    assert step.rate == pytest.approx(0.03 * lr / math.sqrt(count))
    assert (step.betas, step.eps, step.weight_decay) == ((0.9, 0.98), 1e-12, 0.0)


@pytest.mark.parametrize(
    ("ratio", "distance", "expected"),
    [(1.41, 0.119, True), (1.39, 0.119, False), (1.41, 0.121, False)],
)
def test_few_shot_stops_at_its_own_bounds(ratio: float, distance: float, expected: bool) -> None:
    recent = deque([(ratio, distance)] * STOPS_AFTER)
    settings = FewShotSettings()
    assert far_enough(recent, settings.target, settings.near) is expected
    too_few = deque([(99.0, 0.0)] * (STOPS_AFTER - 1))
    assert not far_enough(too_few, settings.target, settings.near)


@pytest.mark.parametrize(
    ("before", "ratio", "distance", "expected"),
    [
        (1.2, 1.31, 0.1, True),  # it grew by less than a tenth
        (1.2, 1.33, 0.1, False),
        (1.2, 1.31, 0.13, False),  # too far from its aim
        (1.0, 1.41, 0.1, True),  # as without a start
    ],
)
def test_after_a_solved_start_few_shot_stops_where_its_loss_settles(
    before: float, ratio: float, distance: float, expected: bool
) -> None:
    recent = [(before, 9.0)] * STOPS_AFTER + [(ratio, distance)] * STOPS_AFTER
    assert far_enough(recent, 1.4, 0.12, begins_solved=True) is expected
    assert not far_enough(recent[STOPS_AFTER:], 1.5, 0.12, begins_solved=True)


def test_few_shot_goes_on_until_each_of_several_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shots, "far_enough", lambda recent, *_: len(recent) == 3)
    record = few_shot(TinyModel(), ["cat", "dog"], torch.rand(2, 2, 2, 3)).record
    assert record["steps"] == 6, "the first of them has had three after the fifth"


# Key-step


def walked_to(model: NotedNetworkModel, predictions: list[Prediction]) -> torch.Tensor:
    """Where the first of ten steps lead, with guidance 3, by these predictions of the network."""
    x = predictions[0].x_t.chunk(2)[0]
    for one, t, after in zip(predictions, timesteps(10), timesteps(10)[1:]):
        assert torch.equal(one.x_t, torch.cat([x, x]))
        yes, no = one.result.chunk(2)
        x = ddim_step(model, x, t, no + 3 * (yes - no), after)
    return x


@pytest.mark.parametrize(
    ("task", "push", "anchor"), [("object", 0, "picture"), ("style", 0.6, "plain")]
)
def test_key_step_loss_by_hand(task: str, push: float, anchor: str, steps: list[Step]) -> None:
    model = NotedNetworkModel()
    settings = KeyStepSettings(task=task, steps=10, start=3)
    with pytest.raises(Cancelled):
        key_step(model, ["cat"], settings, cancelled())
    *before, off, on = model.made
    assert (off.edited, on.edited) == (False, True)
    assert torch.equal(off.x_t, on.x_t), "on the same noise"
    assert torch.equal(off.cross, on.cross)
    own_was, neutral_was, others_was = off.result.split([2, 2, 4])
    own_is, kept_is = on.result.split([2, 6])
    target = neutral_was + push * (neutral_was - own_was)
    far = square(own_was, target)
    left = square(own_is, target) / far
    kept = square(kept_is, torch.cat([neutral_was, others_was])) / far

    (step,) = steps
    assert step.loss == pytest.approx((left + 4 * kept).item(), rel=1e-4)
    assert step.keep == pytest.approx(kept.item(), rel=1e-4)
    assert min(left, 4 * kept) > 1e-3 * step.loss
    prompts = [model.prompt_of(row) for row in off.cross]
    assert said_of("cat", prompts) == prompts[:2]
    assert prompts[2:4] == [prompt.replace("cat", anchor) for prompt in prompts[:2]]
    assert torch.equal(off.x_t[:2], off.x_t[2:4])
    assert set(off.t.tolist()) == {timesteps(10)[3]}
    assert (step.betas, step.eps) == ((0.9, 0.98), 1e-12)
    # A fifth of the rate, since it began with the solution.
    weight = model.network.transformer_blocks[0].attn2.to_q.weight
    count = sum(".attn2." in name for name, _ in model.network.named_parameters())
    assert step.rate == pytest.approx(0.2 * 0.1 * spectral_scale(weight) / math.sqrt(count))

    assert torch.allclose(walked_to(model, before[-3:]), off.x_t[:2], atol=1e-6)


def test_key_step_stops_after_a_walk_of_which_a_fifth_is_left(steps: list[Step]) -> None:
    """By its last twelve steps: a walk has so many."""
    settings = KeyStepSettings(steps=16, start=4, retention=0.5, anchor="thing")
    record = key_step(NotedNetworkModel(), ["cat"], settings).record
    left = [step.loss - 0.5 * step.keep for step in steps]
    means = [mean(left[i - 12 : i]) for i in range(12, len(left) + 1)]
    assert means[-1] <= 0.2 + 1e-6
    assert all(one > 0.2 - 1e-6 for one in means[:-1])
    assert 12 < record["steps"] == len(left) < 240


def test_key_step_keeps_others_where_it_is_projected(steps: list[Step]) -> None:
    """Mode "paper": what is kept is the change of two other prompts' predictions."""
    model = NotedNetworkModel()
    settings = KeyStepSettings(mode="paper", task="style", steps=10, learning_rate=1e-2)
    settings = replace(settings, projection="orthogonal", start=3)
    with pytest.raises(Cancelled):
        key_step(model, ["cat"], settings, cancelled(2))
    assert torch.allclose(walked_to(model, model.made[:3]), model.made[3].x_t[:1], atol=1e-6)
    was, now = model.made[-2:]
    assert (was.edited, now.edited) == (False, True)
    assert steps[1].keep == pytest.approx(square(now.result, was.result).item(), rel=1e-4)
    assert steps[1].keep > 1e-6
    assert (steps[1].betas, steps[1].eps, steps[1].rate) == ((0.9, 0.999), 1e-8, 1e-2)


def test_key_step_trains_an_augmented_prompt_with_noise_on_it() -> None:
    model = NotedNetworkModel()
    settings = KeyStepSettings(mode="paper", steps=10, start=0, augment=1.0, embedding_noise=0.01)
    with pytest.raises(Cancelled):
        key_step(model, ["Zorvik"], settings, cancelled())
    off, on = model.made[-2:]
    (asked,) = {prompt for prompts in model.encoded for prompt in prompts} - {"Zorvik", ""}
    assert "Zorvik" in asked
    cross = model.encode([asked]).cross[0]
    assert model.prompt_of(off.cross[0]) == "Zorvik"
    noise = on.cross[0, : len(cross)] - cross
    assert noise.std().item() == pytest.approx(0.01, rel=0.3)
    assert model.prompt_of(on.cross[1]) == ""


class Hardened:
    """Stands in the place of hardening: how it was called."""

    called: dict

    def __init__(self, model, edit, concepts, words, push, rate, seconds, seed, progress) -> None:
        Hardened.called = {"push": push, "rate": rate, "seconds": seconds}

    def encoder(self) -> None:
        pass

    def network(self, held, pictures, times, retention) -> None:
        self.called.update(pictures=len(pictures), times=times, retention=retention)


def test_few_shot_is_hardened_as_it_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shots, "Hardening", Hardened)
    settings = FewShotSettings(kind="style", max_steps=1, harden=7.0)
    few_shot(TinyModel(), ["cat"], torch.rand(1, 2, 2, 3), settings)
    assert Hardened.called == {"push": 0.5, "rate": 0.03, "seconds": 7.0}


def test_key_step_is_hardened_at_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "Hardening", Hardened)
    settings = KeyStepSettings(task="style", steps=10, start=6, iterations=1, harden=7.0)
    key_step(NotedNetworkModel(), ["cat", "dog"], settings)
    assert Hardened.called == {
        "push": 0.6,
        "rate": pytest.approx(0.02),
        "seconds": 7.0,
        "pictures": 8,
        "times": timesteps(10)[6:],
        "retention": 4.0,
    }


# Domain correction


class NotedDiscriminator(Discriminator):
    """What was judged, and its score."""

    seen: list[tuple[torch.Tensor, torch.Tensor]]

    def forward(self, x0: torch.Tensor) -> torch.Tensor:
        score = super().forward(x0)
        self.seen.append((x0.detach(), score.detach()))
        return score


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each picture that the discriminator saw, and its score."""
    NotedDiscriminator.seen = []
    monkeypatch.setattr(doco, "Discriminator", NotedDiscriminator)
    return NotedDiscriminator.seen


def against(score: torch.Tensor, truth: float) -> float:
    """Binary cross-entropy of a score."""
    share = torch.sigmoid(score)
    return -(truth * share.log() + (1 - truth) * (1 - share).log()).mean().item()


@pytest.mark.parametrize("parameterisation", ["eps", "flow"])
def test_the_discriminator_judges_the_pictures_that_predictions_mean(
    parameterisation: str, judged: list
) -> None:
    """In mode "paper" the denoiser deceives it first, and it learns from the two then."""
    model, values = NotedNetworkModel(parameterisation), []
    model.has_autoencoder = False  # pictures as they were drawn

    def on_step(step: int, total: int, loss: float, edit: Edit) -> None:
        values.append(loss)
        if step == 2:
            raise Cancelled

    settings = DomainCorrectionSettings(mode="paper", pictures=4, batch=2, alone=1, iterations=9)
    settings = replace(settings, learning_rate=1e-2, projection="off")
    with pytest.raises(Cancelled):
        domain_correction(model, ["cat"], settings, on_step)
    first_anchor, first_student, anchor, student = model.made[-4:]
    assert [one.edited for one in model.made[-4:]] == [False, True] * 2
    meant = [model.predict_x0(one.x_t, one.t, one.result) for one in model.made[-4:]]
    assert len(judged) == 5
    for (seen, _), i in zip(judged, (0, 1, 3, 2, 3), strict=True):
        assert torch.equal(seen, meant[i])
    assert values[0] == pytest.approx(against(judged[0][1], 1) + against(judged[1][1], 0), rel=1e-4)
    assert values[1] == pytest.approx(against(judged[2][1], 1), rel=1e-4)
    assert torch.equal(judged[2][1], judged[4][1]), "it learns nothing in between"
    for wanted, asked in ((first_anchor, first_student), (anchor, student)):
        prompts = [[model.prompt_of(row) for row in one.cross] for one in (wanted, asked)]
        assert [prompt.replace("picture", "cat") for prompt in prompts[0]] == prompts[1]
        assert torch.equal(wanted.x_t, asked.x_t)


def test_domain_corrections_preserving_loss_by_hand(steps: list[Step]) -> None:
    """Mode "paper": the denoising loss of anchor pictures, noise and timesteps of its own."""
    model = NotedNetworkModel()
    settings = DomainCorrectionSettings(mode="paper", pictures=4, batch=2, alone=0, iterations=9)
    with pytest.raises(Cancelled):
        domain_correction(model, ["cat"], settings, cancelled())
    anchor, _, kept = model.made[-3:]
    _, noise, _ = model.asked[-1]
    (step,) = steps
    assert step.keep == pytest.approx(square(kept.result, noise).item(), rel=1e-4)
    assert kept.edited
    prompts = [model.prompt_of(row) for row in kept.cross]
    assert all("picture" in prompt and "cat" not in prompt for prompt in prompts)
    assert not torch.equal(kept.t, anchor.t)
    assert not (kept.x_t[:, None] == anchor.x_t).flatten(2).all(2).any()
    assert (step.clip, step.projection, step.weight_decay) == (1.0, "orthogonal", 0.0)
    assert (step.betas, step.eps, step.rate) == ((0.9, 0.999), 1e-8, 4.8e-5)


@pytest.mark.parametrize("kind", ["object", "style"])
def test_domain_corrections_balanced_loss_by_hand(
    kind: str, steps: list[Step], judged: list
) -> None:
    model = NotedNetworkModel()
    settings = DomainCorrectionSettings(kind=kind, pictures=4, batch=2, alone=0, iterations=9)
    with pytest.raises(Cancelled):
        domain_correction(model, ["cat"], settings, cancelled())
    anchor, student, own, others, kept_is = model.made[-5:]
    assert [one.edited for one in model.made[-5:]] == [False, True, False, False, True]
    assert torch.equal(own.cross, student.cross)
    assert torch.equal(own.x_t, student.x_t)
    assert torch.equal(kept_is.x_t, torch.cat([anchor.x_t, others.x_t]))
    kept_prompts, wanted, held = (
        [model.prompt_of(row) for row in one.cross] for one in (kept_is, anchor, others)
    )
    assert kept_prompts == wanted + held
    assert not said_of("cat", kept_prompts)
    far = square(own.result, anchor.result)
    left = square(student.result, anchor.result) / far
    kept = square(kept_is.result, torch.cat([anchor.result, others.result])) / far
    deceived = against(judged[-1][1], 1)
    parts = [left.item(), 0.1 * deceived, 4 * kept.item()]
    (step,) = steps
    assert step.loss == pytest.approx(sum(parts), rel=1e-4)
    assert step.keep == pytest.approx(kept.item(), rel=1e-4)
    assert min(parts) > 1e-3 * step.loss
    assert (step.betas, step.eps, step.clip) == ((0.9, 0.98), 1e-12, 0.0)


def test_domain_correction_stops_where_a_fifth_is_left(steps: list[Step], judged: list) -> None:
    settings = DomainCorrectionSettings(
        pictures=4, batch=2, alone=0, retention=0.5, anchor="thing", rate=0.3
    )
    record = domain_correction(NotedNetworkModel(), ["cat"], settings).record
    deceived = [against(score, 1) for _, score in judged[2::3]]
    left = [s.loss - 0.1 * d - 0.5 * s.keep for s, d in zip(steps, deceived, strict=True)]
    means = [mean(left[i - STOPS_AFTER : i]) for i in range(STOPS_AFTER, len(left) + 1)]
    assert means[-1] <= 0.2 + 1e-6
    assert all(one > 0.2 - 1e-6 for one in means[:-1])
    assert record["steps"] == len(left) < 240
