"""Key-step unlearning: its losses and its schedule by hand, its loops on a tiny network."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import tiny
import torch
from noted import NotedNetworkModel
from tiny import (
    Cancelled,
    OutOfMemoryAtTheEnd,
    TinyNetworkModel,
    cancel_at,
    kept_and_cancelled,
    same,
)

from unlearn.core.conditioning import Conditioning
from unlearn.core.ddim import Trajectory, at, timesteps
from unlearn.core.edit import Diverged, Edit
from unlearn.core.erasure import NETWORK, Erasure
from unlearn.core.resume import Resume
from unlearn.core.trainable import network_weights
from unlearn.methods.key_step import check_settings, key_step
from unlearn.methods.parts.concepts import STOP_WINDOW
from unlearn.methods.parts.key_step_search import KeySteps, find_key_steps
from unlearn.methods.parts.key_step_settings import BY_KIND, KeyStepSettings
from unlearn.methods.parts.key_step_terms import (
    empty_term,
    empty_weights,
    erase_term,
    noise_share,
    noisy,
    predictions,
)
from unlearn.methods.parts.walk import schedule
from unlearn.prompts.templates import TASK_TEMPLATES, augmented

PAPER = KeyStepSettings(mode="paper", steps=10, iterations=16, learning_rate=1e-4)
BALANCED = KeyStepSettings(steps=10, iterations=16)
MODES = [pytest.param(PAPER, id="paper"), pytest.param(BALANCED, id="balanced")]
CONCEPT, ANCHOR = "a photo of a cat", "a photo of a thing"


def left(model: TinyNetworkModel, erasure: Erasure, prompt: str = CONCEPT) -> float:
    """How far the concept's prediction still is from the anchor's, the original's as 1."""
    x0 = 0.5 * model.noise(4, torch.Generator().manual_seed(1))
    return tiny.left(TinyNetworkModel(model.parameterisation).erased(erasure), x0, prompt, ANCHOR)


# The losses


def test_erase_term_by_hand() -> None:
    student, own, neutral = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 4.0]), torch.tensor([1, 1])
    # The target: 1 - (2 - 1) = 0 and 1 - (4 - 1) = -2; errors 1 and 2.
    assert erase_term(student, own, neutral, beyond=1.0).item() == 2.5


def test_erase_term_turns_further_with_a_larger_weight() -> None:
    student, own, neutral = torch.zeros(1), torch.tensor([3.0]), torch.tensor([1.0])
    terms = [erase_term(student, own, neutral, beyond).item() for beyond in (0.0, 1.0, 2.5)]
    assert terms == [1.0, 1.0, 16.0]  # targets 1, -1, -4


def test_erase_term_turns_away_from_the_anchor() -> None:
    """With an anchor its prediction stands in the empty prompt's place."""
    student, own, anchor = torch.tensor([0.5]), torch.tensor([2.0]), torch.tensor([1.5])
    assert erase_term(student, own, anchor, beyond=1.0).item() == 0.25  # the target is 1
    assert erase_term(anchor, own, anchor, beyond=0.0).item() == 0.0


def test_empty_term_by_hand() -> None:
    student, own, empty = torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([1.0])
    # The target: 1 - 0.01 (3 - 1) = 0.98.
    assert empty_term(student, own, empty, 0.01).item() == pytest.approx(0.02**2, rel=1e-4)
    assert empty_term(empty, own, empty, 0.0).item() == 0.0


@pytest.mark.parametrize(("t", "turn"), [(1000.0, 0.0), (500.0, 0.01), (1.0, 0.01998)])
def test_the_papers_weights_of_the_second_term(t: float, turn: float) -> None:
    for iteration in (0, 700):
        assert empty_weights("paper", t / 1000, iteration) == pytest.approx((1e-4, turn))


def test_the_older_scripts_weights_of_the_second_term() -> None:
    """It divides the number of the DDIM step, which grows as the noise falls."""
    for t in (1.0, 1000.0):
        assert empty_weights("older script", t / 1000, 0) == (2e-5, 0.0)
        assert empty_weights("older script", t / 1000, 49) == pytest.approx((2e-5, 0.0049))


@pytest.mark.parametrize("parameterisation", ["eps", "v", "flow"])
def test_noise_is_the_timestep_or_what_a_flow_makes_of_it(parameterisation: str) -> None:
    class Shifted(TinyNetworkModel):
        def _mix(self, t):
            if self.parameterisation != "flow":
                return super()._mix(t)
            s = (3 * t / (1000 + 2 * t)).view(-1, 1, 1, 1)
            return 1 - s, s

    share = noise_share(Shifted(parameterisation), 500.0)
    assert share == pytest.approx(0.75 if parameterisation == "flow" else 0.5)


def test_predictions_of_several_prompts_take_one_pass() -> None:
    model = TinyNetworkModel()
    x = model.noise(2, torch.Generator().manual_seed(0))
    prompts = [model.encode([prompt]).repeated(2) for prompt in ("a cat", "", "a photo of a dog")]
    together = predictions(model, x, 500.0, *prompts)
    assert model.predictions == [6]
    for one, prompt in zip(together, prompts, strict=True):
        assert torch.allclose(one, model.predict(x, at(500.0, x), prompt), atol=1e-5)


def test_noise_on_a_conditioning_has_the_deviation_asked_for() -> None:
    prompt = Conditioning(torch.ones(1, 77, 64), torch.ones(1, 4), {"guidance": 3})
    moved = noisy(prompt, 0.1, torch.Generator().manual_seed(0))
    assert (moved.cross - 1).std().item() == pytest.approx(0.1, rel=0.05)
    assert (moved.pooled.tolist(), moved.extra) == (prompt.pooled.tolist(), prompt.extra)
    assert torch.equal(noisy(prompt, 0.0, torch.Generator()).cross, prompt.cross)


# The schedule


def walks(*args, **kwargs) -> list[list[int]]:
    """The steps of each walk."""
    found: list[list[int]] = []
    for _, step in schedule(*args, **kwargs):
        if not found or step <= found[-1][-1]:
            found.append([])
        found[-1].append(step)
    return found


def test_the_first_walk_goes_over_the_key_steps_in_order() -> None:
    assert walks(14, 50, 750)[0] == list(range(14, 50))


def test_the_first_key_step_moves_on_after_eight_full_walks() -> None:
    steps = [step for _, step in schedule(14, 50, 750)]
    assert len(steps) == 750
    assert min(steps[: 8 * 36]) == 14
    assert steps[8 * 36 - 1 : 8 * 36 + 2] == [49, 15, 16]
    assert [walk[0] for walk in walks(14, 50, 750)] == [14] * 8 + [15] * 8 + [16] * 6


@pytest.mark.parametrize(("steps", "last"), [(50, 44), (28, 25), (10, 8), (15, 13), (4, 3)])
def test_the_first_key_step_stays_below_nine_tenths_of_the_steps(steps: int, last: int) -> None:
    starts = [walk[0] for walk in walks(0, steps, 20000)]
    assert starts == sorted(starts)
    assert set(starts) == set(range(last + 1))
    assert last < 0.9 * steps <= last + 1


def test_another_latest_start_may_be_named() -> None:
    assert {walk[0] for walk in walks(44, 50, 60000, latest=46)} == {44, 45, 46}


def test_balanced_may_begin_at_nine_tenths_of_the_steps_as_before() -> None:
    """The paper's walk stays at 8 of 10; walks of two steps, eight of them, then of one."""
    for mode, last in (("paper", 8), ("balanced", 9)):
        at_steps: list[float] = []

        class Recorded(TinyNetworkModel):
            def predict(self, x_t, t, conditioning):
                at_steps.append(t[0].item())  # noqa: B023
                return super().predict(x_t, t, conditioning)

        settings = KeyStepSettings(mode=mode, steps=10, start=8, iterations=20, near=0.0)
        walked: list[list[float]] = []

        def on_step(*_, walked=walked, at_steps=at_steps) -> None:
            walked.append(list(at_steps))
            at_steps.clear()

        key_step(Recorded(), ["cat"], settings, on_step)
        late = timesteps(10)[8]
        trained_late = [i for i, times in enumerate(walked) if times[-1] == late]
        assert len(trained_late) == (10 if last == 8 else 8)


@pytest.mark.parametrize(("start", "steps"), [(48, 50), (9, 10), (0, 1)])
def test_a_start_that_is_later_still_stays_where_it_is(start: int, steps: int) -> None:
    assert {walk[0] for walk in walks(start, steps, 200)} == {start}


def test_the_schedule_ends_in_the_middle_of_a_walk() -> None:
    assert walks(2, 5, 7) == [[2, 3, 4], [2, 3, 4], [2]]
    assert walks(2, 5, 0) == []


def test_several_concepts_are_walked_in_turn_in_every_round() -> None:
    found = list(schedule(3, 5, 9, concepts=2))
    assert found == [
        *((0, 3), (0, 4), (1, 3), (1, 4)),
        *((0, 3), (0, 4), (1, 3), (1, 4)),
        (0, 3),
    ]


def test_with_several_concepts_a_start_holds_for_eight_rounds() -> None:
    found = list(schedule(2, 20, 2 * 8 * 18 + 1, concepts=2))
    assert min(step for _, step in found[:-1]) == 2
    assert found[-1] == (0, 3)


# The settings


@pytest.mark.parametrize(
    ("task", "start", "iterations", "trainable"),
    [
        ("object", 14, 750, "outside-cross-attention"),
        ("nudity", 14, 750, "outside-cross-attention"),
        ("style", 24, 500, "cross-attention"),
        ("instance", 40, 200, "cross-attention"),
    ],
)
def test_paper_settings_are_the_papers(
    task: str, start: int, iterations: int, trainable: str
) -> None:
    settings = KeyStepSettings(mode="paper", task=task)
    assert (settings.steps, settings.first, settings.length(1)) == (50, start, iterations)
    assert settings.weights == trainable
    settings = settings.fitted(TinyNetworkModel())
    assert settings.recipe == "stable diffusion"
    assert (settings.learning_rate, settings.negative, settings.guidance) == (1e-5, 1.0, 3.0)
    assert settings.precision == "float32"
    assert (settings.augment, settings.embedding_noise, settings.rank) == (0.05, 1e-5, 0)
    assert (settings.empty_term, settings.anchor, settings.projection) == ("paper", "", "off")


@pytest.mark.parametrize(
    ("kind", "start", "iterations"),
    [("object", 8, 750), ("nudity", 8, 750), ("style", 14, 500), ("character", 22, 200)],
)
def test_on_a_flow_the_settings_are_those_of_the_authors_code_for_flux(
    kind: str, start: int, iterations: int
) -> None:
    asked = KeyStepSettings(mode="paper", kind=kind, steps=28)
    settings = asked.fitted(TinyNetworkModel("flow"))
    assert (settings.recipe, settings.learning_rate, settings.guidance) == ("flux", 1e-4, 3.5)
    assert (settings.first, settings.length(1)) == (start, iterations)
    assert settings.weights == "cross-attention"
    assert settings.fitted(TinyNetworkModel("flow")) == settings
    assert replace(asked, recipe="flux").fitted(TinyNetworkModel()) == settings
    plain = replace(asked, recipe="stable diffusion").fitted(TinyNetworkModel("flow"))
    assert (plain.learning_rate, plain.guidance) == (1e-5, 3.0)
    assert plain.weights == BY_KIND[kind].trainable
    balanced = replace(asked, mode="balanced").fitted(TinyNetworkModel("flow"))
    assert (balanced.guidance, balanced.recipe) == (3.0, None)
    assert balanced.first == round(BY_KIND[kind].start * 28 / 50)


def test_what_is_set_goes_before_the_recipe() -> None:
    asked = KeyStepSettings(mode="paper", learning_rate=3e-4, guidance=2.0, start=5)
    settings = asked.fitted(TinyNetworkModel("flow"))
    assert (settings.learning_rate, settings.guidance, settings.first) == (3e-4, 2.0, 5)


@pytest.mark.parametrize(
    ("kind", "start"), [("object", 15), ("nudity", 15), ("style", 24), ("character", 40)]
)
def test_the_older_scripts_starts(kind: str, start: int) -> None:
    assert KeyStepSettings("paper", kind, empty_term="older script").first == start
    assert KeyStepSettings("balanced", kind, empty_term="older script").first == (
        BY_KIND[kind].start
    )


def test_several_instances_take_longer() -> None:
    settings = KeyStepSettings(mode="paper", task="instance")
    assert settings.length(3) == 750
    assert KeyStepSettings(mode="paper", task="style").length(3) == 500


@pytest.mark.parametrize("task", list(BY_KIND))
def test_balanced_trains_the_cross_attention_from_the_papers_start(task: str) -> None:
    settings = KeyStepSettings(task=task)
    assert (settings.weights, settings.length(1), settings.length(3)) == (
        "cross-attention",
        240,
        240,
    )
    assert settings.first == BY_KIND[task].start


@pytest.mark.parametrize(("task", "first"), [("object", 6), ("style", 10), ("instance", 16)])
def test_the_papers_start_is_scaled_to_fewer_steps(task: str, first: int) -> None:
    assert KeyStepSettings(task=task, steps=20).first == first
    assert KeyStepSettings(task=task, steps=20, start="auto").first == first


def test_what_is_set_goes_before_the_tasks_own() -> None:
    settings = KeyStepSettings(
        mode="paper", start=0, iterations=9, trainable="cross-attention-kv", steps=20
    )
    assert (settings.first, settings.length(5)) == (0, 9)
    assert settings.weights == "cross-attention-kv"


# Mode "paper"


def test_first_paper_step_by_hand() -> None:
    """Loss and change of weights, worked out from the two terms on the same trajectory."""
    settings = replace(PAPER, iterations=1, start=0, augment=0.0, task="style")
    erasure = key_step(TinyNetworkModel(), ["cat"], settings)
    model, t = TinyNetworkModel(), timesteps(10)[0]
    noise = model.noise(1, torch.Generator().manual_seed(0))
    x = model.add_noise(torch.zeros_like(noise), noise, at(t, noise))
    own, none = (model.predict(x, at(t, x), model.encode([prompt])) for prompt in ("cat", ""))
    turn = 2e-5 * (1000 - t)
    with model.edit("denoiser", "cross-attention") as edit:
        student, student_none = (
            model.predict(x, at(t, x), model.encode([prompt])) for prompt in ("cat", "")
        )
        loss = (student - (2 * none - own)).square().mean()
        loss = loss + 1e-4 * (student_none - (none - turn * (own - none))).square().mean()
        loss.backward()
        gradients = {key: delta.full.grad for key, delta in edit.deltas.items()}
    assert erasure.record["loss"] == [pytest.approx(loss.item(), abs=1e-6)]
    for key, gradient in gradients.items():
        wanted = -1e-4 * gradient / (gradient.abs() + 1e-8)  # Adam's first step
        assert torch.allclose(erasure.delta(key), wanted, rtol=1e-2, atol=1e-8), key


@pytest.mark.parametrize("variant", ["paper", "older script"])
def test_the_second_term_by_hand(variant: str) -> None:
    """Where the first asks for what is there already, the second is all of the loss."""
    losses = []
    settings = replace(PAPER, iterations=21, start=9, negative=-1.0, empty_term=variant)
    settings = replace(settings, learning_rate=0.0, augment=0.0)
    key_step(
        TinyNetworkModel(), ["cat"], settings, lambda step, total, loss, _: losses.append(loss)
    )
    model = TinyNetworkModel()
    noise, wanted = torch.Generator().manual_seed(0), []
    for _ in range(21):
        walk = Trajectory(model, 10, 3.0, noise)
        x = walk.to(9, model.encode(["cat"]), model.encode([""]))
        own, none = (model.predict(x, at(1.0, x), model.encode([p])) for p in ("cat", ""))
        # By hand: t is 1 at the last step, whose number is 9.
        weight, turn = {"paper": (1e-4, 2e-5 * 999), "older script": (2e-5, 9e-4)}[variant]
        wanted.append(weight * turn**2 * (own - none).square().mean().item())
    assert losses == pytest.approx(wanted, rel=0.02, abs=1e-13)
    assert losses[-1] > (1e-12 if variant == "paper" else 1e-15)


@pytest.mark.parametrize("variant", ["paper", "older script"])
def test_the_older_script_walks_afresh_to_every_step(variant: str) -> None:
    """By hand: from step 7 of 10 on, a walk that goes on takes 7 steps to begin, then one each."""
    drawn: list[int] = []

    class Counted(TinyNetworkModel):
        def predict(self, x_t, t, conditioning):
            if not torch.is_grad_enabled() and self.current is not None and self.current._on:
                drawn.append(int(t[0]))
            return super().predict(x_t, t, conditioning)

    taken: list[list[int]] = []

    def on_step(*_) -> None:
        taken.append(list(drawn))
        drawn.clear()

    settings = replace(PAPER, iterations=3, start=7, empty_term=variant, augment=0.0)
    key_step(Counted(), ["cat"], settings, on_step)
    times = [int(t) for t in timesteps(10)]
    goes_on = [times[:7], [times[7]], [times[8]]]
    assert taken == (goes_on if variant == "paper" else [times[:7], times[:8], times[:9]])


def test_a_denoiser_that_is_told_its_guidance_is_walked_and_asked_by_that_alone() -> None:
    """As the authors do on Flux: 3.5 as a number, for the trajectory and for the two terms."""

    class Told(TinyNetworkModel):
        told_guidance = True

        def __init__(self) -> None:
            super().__init__("flow")
            self.heard: list[tuple[int, object]] = []

        def predict(self, x_t, t, conditioning):
            self.heard.append((len(x_t), conditioning.extra.get("guidance")))
            return super().predict(x_t, t, conditioning)

    model = Told()
    key_step(model, ["cat"], replace(PAPER, iterations=2, start=3, augment=0.0, rank=0))
    *trained, _, _ = model.heard  # the last two measure how far it moved
    assert {guidance for _, guidance in trained} == {3.5}
    assert [count for count, _ in trained][:3] == [1, 1, 1], "without classifier-free guidance"
    plain = Told()
    key_step(plain, ["cat"], replace(PAPER, recipe="stable diffusion", iterations=2, start=3))
    assert {guidance for _, guidance in plain.heard} == {None}
    assert plain.heard[0][0] == 2


def test_the_papers_steps_on_a_flow_are_as_long_as_on_flux() -> None:
    """Adam's first step moves every weight by the rate."""
    settings = KeyStepSettings(mode="paper", kind="style", steps=10, iterations=1, augment=0.0)
    for way, rate in (("eps", 1e-5), ("flow", 1e-4)):
        erasure = key_step(TinyNetworkModel(way), ["cat"], settings)
        moved = torch.cat([erasure.delta(key).flatten().abs() for key in erasure.deltas])
        assert moved.median().item() == pytest.approx(rate, rel=0.02)
        assert erasure.record["settings"]["learning_rate"] == rate


def test_bfloat16_keeps_the_weights_as_such_numbers() -> None:
    settings = replace(PAPER, task="style", iterations=6, learning_rate=1e-3, augment=0.0)
    erasure = key_step(TinyNetworkModel(), ["cat"], replace(settings, precision="bfloat16"))
    plain = key_step(TinyNetworkModel(), ["cat"], settings)
    for key in erasure.deltas:
        base = TinyNetworkModel().original(key).bfloat16().float()
        edited = base + erasure.delta(key).view(base.shape)
        assert torch.equal(edited, edited.bfloat16().float())
    assert any(erasure.delta(key).any() for key in erasure.deltas)
    assert not same(erasure, plain)
    # At the paper's rate most weights are too large to move at all: by hand, half the distance to
    # the next such number is 2^-9 of the power of two below the weight.
    first = key_step(
        TinyNetworkModel(),
        ["cat"],
        replace(settings, precision="bfloat16", iterations=1, learning_rate=1e-5),
    )
    for key in first.deltas:
        base = TinyNetworkModel().original(key).abs()
        stuck = torch.exp2(base.log2().floor()) * 2**-8 / 2 > 1.1e-5
        assert not first.delta(key).view(base.shape)[stuck].any()


def test_bfloat16_needs_whole_weights() -> None:
    with pytest.raises(ValueError, match="Precision bfloat16 rounds whole weights, which a rank"):
        check_settings(["cat"], replace(PAPER, rank=4, precision="bfloat16"))
    check_settings(["cat"], replace(BALANCED, rank=4, precision="bfloat16"))


@pytest.mark.parametrize("parameterisation", ["eps", "v", "flow"])
@pytest.mark.parametrize("task", ["object", "style"])
def test_paper_lowers_its_loss(parameterisation: str, task: str) -> None:
    settings = replace(PAPER, task=task, iterations=5 * 8, start=5, augment=0.0)
    settings = replace(settings, learning_rate=4e-4)
    record = key_step(TinyNetworkModel(parameterisation), ["cat"], settings).record
    first, last = mean(record["loss"][:5]), mean(record["loss"][-5:])
    assert last < 0.9 * first


@pytest.mark.parametrize("task", ["object", "style"])
def test_exactly_the_tasks_weights_are_in_the_erasure(task: str) -> None:
    settings = replace(PAPER, task=task, iterations=2)
    erasure = key_step(TinyNetworkModel(), ["cat"], settings)
    expected = network_weights(TinyNetworkModel().network, BY_KIND[task].trainable)
    assert set(erasure.deltas) == {NETWORK + name for name in expected}
    assert any(".attn2." in key for key in erasure.deltas) is (task == "style")


def test_prompts_are_augmented_in_the_last_twentieth_only() -> None:
    model, by_step = TinyNetworkModel(), {}

    def on_step(step: int, *_) -> None:
        by_step[step] = {p for prompts in model.encoded for p in prompts} - {"Zorvik", ""}
        model.encoded.clear()

    settings = replace(PAPER, task="instance", iterations=40)
    key_step(model, ["Zorvik"], settings, on_step)
    assert list(by_step) == list(range(1, 41))
    assert not set().union(*(by_step[step] for step in range(1, 39)))
    late = [by_step[39], by_step[40]]
    assert any(late)
    assert all("Zorvik" in prompt for prompts in late for prompt in prompts)


def test_augmented_prompts_come_from_a_pool_of_ten_drawn_once() -> None:
    model = TinyNetworkModel()
    settings = replace(PAPER, iterations=60, start=9, augment=1.0)
    key_step(model, ["Zorvik"], settings)
    asked = {p for prompts in model.encoded for p in prompts} - {
        "Zorvik",
        "",
        "a photo of a Zorvik",
    }
    assert asked == set(augmented(random.Random(0), "object", "Zorvik")) - {"a photo of a Zorvik"}
    assert len(asked) == 10


def test_without_augmentation_only_the_concept_and_the_empty_prompt_are_asked_for() -> None:
    model = TinyNetworkModel()
    key_step(model, ["cat"], replace(PAPER, augment=0.0), lambda *_: None)
    asked = {p for prompts in model.encoded for p in prompts}
    assert asked == {"cat", "", "a photo of a cat"}  # the last one measures how far it moved


def test_paper_draws_the_concept_beyond_an_anchor_where_one_is_named() -> None:
    model = TinyNetworkModel()
    settings = replace(PAPER, task="style", anchor="thing", negative=0.0, iterations=70)
    erasure = key_step(model, ["cat"], replace(settings, learning_rate=3e-3, augment=0.0))
    assert ["thing"] in model.encoded
    own, anchor = model.encode(["cat"]), model.encode(["thing"])
    x, t = model.noise(1, torch.Generator().manual_seed(5)), torch.tensor([300.0])
    wanted = model.predict(x, t, anchor)
    before = (model.predict(x, t, own) - wanted).norm()
    assert (model.erased(erasure).predict(x, t, own) - wanted).norm() < 0.5 * before


def test_projection_in_the_paper_mode_keeps_other_prompts_nearer() -> None:
    def drift(projection: str) -> float:
        model = TinyNetworkModel()
        settings = replace(PAPER, task="style", projection=projection, iterations=30)
        erasure = key_step(model, ["cat"], replace(settings, augment=0.0, learning_rate=5e-4))
        others = model.encode(["dog", "tree", "a photo of a castle", "king"])
        x, t = model.noise(4, torch.Generator().manual_seed(3)), torch.full((4,), 300.0)
        was = model.predict(x, t, others)
        return (model.erased(erasure).predict(x, t, others) - was).square().mean().item()

    assert drift("orthogonal") < drift("off")


# Mode "balanced"


def test_balanced_stops_by_itself_when_little_is_left() -> None:
    model = TinyNetworkModel()
    settings = replace(BALANCED, iterations=400, retention=1.0, push=0.0, anchor="thing")
    erasure = key_step(model, ["cat"], settings)
    assert STOP_WINDOW <= erasure.record["steps"] < 400
    assert left(model, erasure) < 0.3


def test_balanced_stops_earlier_where_more_may_be_left() -> None:
    def steps(near: float) -> int:
        settings = replace(BALANCED, iterations=400, retention=1.0, near=near)
        return key_step(TinyNetworkModel(), ["cat"], settings).record["steps"]

    assert STOP_WINDOW <= steps(0.5) < steps(0.1) < 400


def test_balanced_ends_at_its_iterations() -> None:
    erasure = key_step(TinyNetworkModel(), ["cat"], replace(BALANCED, iterations=7, near=0.0))
    assert erasure.record["steps"] == 7


@pytest.mark.parametrize("parameterisation", ["eps", "v", "flow"])
def test_balanced_lowers_what_is_left_of_the_concept(parameterisation: str) -> None:
    model = TinyNetworkModel(parameterisation)
    settings = replace(BALANCED, iterations=60, push=0.0, retention=1.0)
    assert left(model, key_step(model, ["cat"], settings)) < 0.5


def test_balanced_goes_on_until_every_concept_is_gone(tmp_path: Path) -> None:
    resume, gone = Resume(tmp_path / "run", every=0), []

    def on_step(step: int, *_) -> None:
        if step > 2 * STOP_WINDOW:
            recent = resume.load()["more"]["recent"]
            gone.append([len(some) == STOP_WINDOW and mean(some) <= 0.5 for some in recent])

    settings = replace(BALANCED, start=7, iterations=200, near=0.5, retention=0.3, push=0.0)
    erasure = key_step(TinyNetworkModel(), ["cat", "dog"], settings, on_step, resume)
    assert 2 * STOP_WINDOW <= erasure.record["steps"] < 200
    assert [True, False] in gone or [False, True] in gone, "one alone does not end it"
    assert set(erasure.record["moved"]) == {"cat", "dog"}
    model = TinyNetworkModel()
    assert left(model, erasure) < 0.8
    assert left(model, erasure, "a photo of a dog") < 0.8


def test_retention_keeps_other_prompts_nearer() -> None:
    def drift(retention: float) -> float:
        model = TinyNetworkModel()
        settings = replace(BALANCED, iterations=30, near=0.0, retention=retention)
        erasure = key_step(model, ["cat"], settings)
        others = model.encode(["a photo of a dog", "a tree", "king", ""])
        x, t = model.noise(4, torch.Generator().manual_seed(3)), torch.full((4,), 300.0)
        was = model.predict(x, t, others)
        return (model.erased(erasure).predict(x, t, others) - was).square().mean().item()

    assert drift(4.0) < 0.5 * drift(0.0)


def test_balanced_walks_one_pair_of_sentences_at_a_time(monkeypatch) -> None:
    """A trajectory is of one prompt from its first step to its last."""
    walked = []

    class Recorded(Trajectory):
        def to(self, step: int, prompt: Conditioning, empty: Conditioning) -> torch.Tensor:
            walked.append(prompt.cross)
            return super().to(step, prompt, empty)

    monkeypatch.setattr("unlearn.methods.key_step.Trajectory", Recorded)
    settings = replace(BALANCED, start=6, iterations=12, near=0.0)
    key_step(TinyNetworkModel(), ["cat"], settings)
    first, *others = (walked[i : i + 4] for i in (0, 4, 8))  # walks of four steps
    for walk in (first, *others):
        assert all(torch.equal(prompt, walk[0]) for prompt in walk)
    assert any(not torch.equal(walk[0], first[0]) for walk in others)


# What holds in both modes


@pytest.mark.parametrize(
    "settings",
    [PAPER, replace(PAPER, projection="orthogonal"), BALANCED, replace(BALANCED, batch=1)],
    ids=["paper", "paper, projected", "balanced", "balanced, one at once"],
)
def test_no_more_latents_are_kept_for_a_step_than_it_says(settings: KeyStepSettings) -> None:
    model, kept = TinyNetworkModel(), []

    def on_step(*_) -> None:
        kept.append(sum(model.learnt_from))
        model.learnt_from.clear()

    key_step(model, ["cat"], replace(settings, iterations=3), on_step)
    assert kept == [settings.rows] * 3


@pytest.mark.parametrize("settings", MODES)
@pytest.mark.costly
def test_same_seed_same_erasure(settings: KeyStepSettings) -> None:
    settings = replace(settings, iterations=8)
    first, again = (key_step(TinyNetworkModel(), ["cat"], settings) for _ in range(2))
    assert same(first, again)
    assert not same(first, key_step(TinyNetworkModel(), ["cat"], replace(settings, seed=1)))


slow = pytest.mark.slow

CUTS = [
    # (settings, concepts, the iteration at which it is cancelled)
    pytest.param(PAPER, ["cat"], 1, id="paper at once"),
    pytest.param(PAPER, ["cat"], 12, id="paper within a walk"),
    pytest.param(replace(PAPER, start=5), ["cat"], 6, id="paper after a walk"),
    pytest.param(replace(PAPER, augment=0.5), ["cat"], 13, id="paper, augmented"),
    pytest.param(replace(PAPER, projection="orthogonal"), ["cat"], 14, id="paper, projected"),
    pytest.param(replace(PAPER, rank=2), ["cat"], 14, id="paper, low rank"),
    pytest.param(PAPER, ["cat", "dog"], 10, id="paper, two concepts"),
    pytest.param(BALANCED, ["cat"], 1, id="balanced at once", marks=slow),
    pytest.param(BALANCED, ["cat"], 12, id="balanced within a walk", marks=slow),
    pytest.param(replace(BALANCED, start=5), ["cat"], 6, id="balanced after a walk", marks=slow),
    pytest.param(
        replace(BALANCED, rank=2, projection="orthogonal"),
        ["cat"],
        14,
        id="projected",
        marks=slow,
    ),
    pytest.param(replace(BALANCED, protect=("tiger",)), ["cat", "dog"], 10, id="two concepts"),
    pytest.param(replace(BALANCED, start="auto"), ["cat"], 5, id="balanced, start found"),
]


@pytest.mark.parametrize(("settings", "concepts", "at_step"), CUTS)
def test_a_run_that_was_cut_short_goes_on_to_the_very_same_result(
    tmp_path: Path, settings: KeyStepSettings, concepts: list[str], at_step: int
) -> None:
    whole = key_step(TinyNetworkModel(), concepts, settings)
    file, heard = tmp_path / "run", []
    with pytest.raises(Cancelled):
        key_step(TinyNetworkModel(), concepts, settings, cancel_at(at_step), Resume(file, every=0))
    assert file.exists() is (at_step > 1)
    again = key_step(
        TinyNetworkModel(),
        concepts,
        settings,
        lambda step, *_: heard.append(step),
        Resume(file, every=0),
    )
    assert heard == list(range(at_step, whole.record["steps"] + 1)), "what was done is not redone"
    assert same(whole, again)
    assert again.record == whole.record
    assert file.exists(), "until the erasure is kept, so is the state"


def test_a_run_that_stops_by_itself_stops_at_the_same_step_after_a_cut(tmp_path: Path) -> None:
    settings = replace(BALANCED, iterations=400, near=0.3, retention=1.0)
    whole, cut = key_step(TinyNetworkModel(), ["cat"], settings), Resume(tmp_path / "run")
    cancel = kept_and_cancelled(cut, whole.record["steps"] - 3)
    with pytest.raises(Cancelled):
        key_step(TinyNetworkModel(), ["cat"], settings, cancel, cut)
    assert (tmp_path / "run").exists()
    again = key_step(TinyNetworkModel(), ["cat"], settings, None, Resume(tmp_path / "run"))
    assert again.record["steps"] == whole.record["steps"] < 400
    assert same(whole, again)


def test_a_run_cut_short_after_its_last_step_is_not_lost(tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        key_step(OutOfMemoryAtTheEnd(), ["cat"], PAPER, None, Resume(tmp_path / "run", every=0))
    again = key_step(TinyNetworkModel(), ["cat"], PAPER, None, Resume(tmp_path / "run", every=0))
    assert again.deltas
    assert same(again, key_step(TinyNetworkModel(), ["cat"], PAPER))


@pytest.mark.parametrize("settings", MODES)
def test_cancel_leaves_the_model_as_it_was(settings: KeyStepSettings) -> None:
    model, heard = TinyNetworkModel(), []
    before = {name: p.clone() for name, p in model.network.named_parameters()}

    def on_step(step: int, total: int, loss: float, edit: Edit) -> None:
        heard.append((step, total))
        if step == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        key_step(model, ["cat"], settings, on_step)
    assert heard == [(step, settings.iterations) for step in (1, 2, 3)]
    assert model.current is None
    assert all(torch.equal(p, before[name]) for name, p in model.network.named_parameters())
    assert not any(p.requires_grad for p in model.network.parameters())


@pytest.mark.parametrize("settings", MODES)
def test_low_rank_deltas_have_that_rank(settings: KeyStepSettings) -> None:
    settings = replace(settings, rank=2, iterations=6, task="style")
    erasure = key_step(TinyNetworkModel(), ["cat"], settings)
    delta = erasure.deltas[f"{NETWORK}transformer_blocks.0.attn2.to_v.weight"]
    assert (delta["lora_up"].shape, delta["lora_down"].shape) == ((8, 2), (2, 8))
    assert delta["lora_up"].any()


def test_how_far_a_concept_moved_is_in_shares_of_what_its_prompt_does() -> None:
    """By the last three predictions: of the concept and of no prompt before, and of both after."""
    model = NotedNetworkModel()
    record = key_step(model, ["cat"], replace(PAPER, iterations=3, learning_rate=1e-2)).record
    before, after = model.made[-2:]
    assert (before.edited, after.edited) == (False, True)
    assert torch.equal(before.x_t, after.x_t)
    assert [model.prompt_of(row) for row in before.cross] == ["a photo of a cat", ""]
    own, empty = before.result
    moved = (after.result[0] - own).norm() / (own - empty).norm()
    assert record["moved"]["cat"] == pytest.approx(moved.item(), rel=1e-5)
    assert moved > 0.01


def test_record_says_how_it_was_made() -> None:
    settings = replace(PAPER, task="instance", iterations=3)
    record = key_step(TinyNetworkModel(), ["Zorvik"], settings).record
    assert (record["method"], record["concepts"]) == ("key_step", ["Zorvik"])
    assert (record["kind"], record["start"]) == ("character", 8)
    assert record["settings"]["mode"] == "paper"
    assert record["steps"] == len(record["loss"]) == 3
    assert set(record["base"]) == set(key_step(TinyNetworkModel(), ["cat"], settings).deltas)
    assert set(record["moved"]) == {"Zorvik"}
    assert set(TASK_TEMPLATES) == {*BY_KIND, "action"}


@pytest.mark.parametrize("settings", MODES)
def test_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_good(
    settings: KeyStepSettings,
) -> None:
    def on_step(step: int, total: int, loss: float, edit: Edit) -> None:
        if step == 5:
            next(edit.parameters()).data.fill_(torch.nan)

    with pytest.raises(Diverged, match=r"The loss became nan after step \d") as error:
        key_step(TinyNetworkModel(), ["cat"], settings, on_step)
    kept = error.value.erasure
    assert kept.concepts == ["cat"]
    assert 0 < kept.record["steps"] == len(error.value.history) < 5
    assert kept.deltas
    assert all(kept.delta(key).isfinite().all() for key in kept.deltas)


def test_the_neutral_word_itself_needs_another_anchor() -> None:
    """The paper's loss goes to the empty prompt, which no word is."""
    with pytest.raises(ValueError, match="'person' is the default anchor, which takes"):
        check_settings(["Person"], KeyStepSettings(task="instance"))
    check_settings(["Person"], KeyStepSettings(task="instance", mode="paper"))


@pytest.mark.parametrize("mode", ["paper", "balanced"])
@pytest.mark.parametrize(
    ("concepts", "changes", "sentence"),
    [
        ([], {}, "No concept is named: type the word or name to unlearn"),
        (["cat", "  "], {}, "No concept is named: type the word or name to unlearn"),
        (["Cat"], {"anchor": "cAT "}, "The anchor 'cAT ' is the concept itself, so nothing would"),
        (["cat", "Dog"], {"anchor": "dog"}, "The anchor 'dog' is the concept itself"),
        (
            ["cat"],
            {"start": 10},
            "The first key step is 10, but a trajectory of 10 steps has steps",
        ),
        (["cat"], {"start": 99}, "has steps 0 to 9; choose one of these or the kind's own"),
        (["cat"], {"start": -1}, "The first key step is -1, but a trajectory of 10 steps"),
    ],
)
def test_bad_input_gets_a_sentence_before_any_work(
    mode: str, concepts: list[str], changes: dict, sentence: str, tmp_path: Path
) -> None:
    model = TinyNetworkModel()
    settings = replace(BALANCED, mode=mode, **changes)
    with pytest.raises(ValueError, match=sentence):
        key_step(model, concepts, settings, None, Resume(tmp_path / "run", every=0))
    assert not model.encoded
    assert not model.predictions
    assert not list(tmp_path.iterdir())


# Finding the first key step


@pytest.mark.parametrize(
    ("points", "curve", "start"),
    [
        # 0.1 is crossed a quarter of the way from 10 to 20.
        ([0, 10, 20, 30], [0.0, 0.05, 0.25, 1.0], 12),
        ([0, 10, 20, 30], [0.0, 0.0, 0.0, 1.0], 21),
        ([0, 10, 20, 30], [0.0, 0.1, 0.1, 1.0], 20),  # a tenth is still little
        ([0, 10, 20, 30], [0.0, 0.5, 0.05, 1.0], 2),  # the first crossing counts
        ([0, 10, 20, 30], [0.0, 1.0, 1.0, 1.0], 1),
        ([0, 10, 20, 30], [0.0, 0.0, 0.0, 0.0], 29),  # it is never there
        ([0, 30], [0.0, 0.1], 29),
        ([0, 1], [0.0, 1.0], 0),
    ],
)
def test_the_start_is_where_a_tenth_is_left(
    points: list[int], curve: list[float], start: int
) -> None:
    assert KeySteps(points, curve, points[-1]).start == start


def found(model: TinyNetworkModel, **changes) -> KeySteps:
    settings = {"steps": 20, "count": 2, **changes}
    return find_key_steps(model, "a photo of a {}", "cat", "thing", ["dog", "tree"], **settings)


@pytest.mark.parametrize("parameterisation", ["eps", "v", "flow"])
def test_all_of_the_concept_is_left_at_the_end_and_nothing_at_the_beginning(
    parameterisation: str,
) -> None:
    key_steps = found(TinyNetworkModel(parameterisation))
    assert (key_steps.left[0], key_steps.left[-1]) == (0.0, 1.0)
    assert (key_steps.points[0], key_steps.points[-1]) == (0, 20)
    assert len(key_steps.points) == len(key_steps.left) == 13
    assert all(0 <= value <= 1 for value in key_steps.left)
    assert 0 < key_steps.start < 20


def test_fewer_steps_than_points_are_each_looked_at_once() -> None:
    key_steps = found(TinyNetworkModel(), steps=4)
    assert key_steps.points == [0, 1, 2, 3, 4]
    assert len(key_steps.left) == 5


def test_the_same_seed_finds_the_same() -> None:
    first, again, other = (found(TinyNetworkModel(), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_concept_that_the_model_cannot_draw_leaves_nothing_to_find() -> None:
    model = TinyNetworkModel()
    with torch.no_grad():
        model.network.transformer_blocks[0].attn2.to_v.weight.zero_()
    with pytest.raises(ValueError, match=r"pictures of \w+ tell no more of it than neutral ones"):
        found(model)


def test_start_auto_measures_and_says_so_in_the_record() -> None:
    settings = replace(PAPER, start="auto", iterations=3)
    record = key_step(TinyNetworkModel(), ["cat"], settings).record
    measured = KeySteps(**record["key_steps"])
    assert measured.steps == 10
    assert record["start"] == measured.start
    assert record["settings"]["start"] == "auto"


@pytest.mark.costly
def test_of_several_concepts_the_one_decided_first_sets_the_start() -> None:
    def start(concepts: list[str]) -> int:
        settings = replace(PAPER, steps=24, start="auto", iterations=1)
        return key_step(TinyNetworkModel(), concepts, settings).record["start"]

    words = ["cat", "king"]
    assert start(words) == min(start([word]) for word in words)


def test_the_concept_is_not_weighed_against_itself_in_other_case() -> None:
    """The classifier's other words are everyday ones: man, woman, child, ..."""
    model = TinyNetworkModel()
    key_step(model, ["Man"], replace(PAPER, start="auto", iterations=1))
    weighed = next(prompts for prompts in model.encoded if len(prompts) > 3)
    assert "a photo of a Man" in weighed
    assert "a photo of a man" not in weighed


# Prompts asked for in another way


@pytest.mark.parametrize("task", list(BY_KIND))
def test_every_task_has_ten_ways_to_ask(task: str) -> None:
    assert len(set(TASK_TEMPLATES[task])) == 10
    assert all("{}" in template for template in TASK_TEMPLATES[task])


@pytest.mark.parametrize("task", list(BY_KIND))
def test_the_concepts_words_stay_together_in_an_augmented_prompt(task: str) -> None:
    rng = random.Random(0)
    pools = [augmented(rng, task, "red fox cub") for _ in range(20)]
    assert {len(pool) for pool in pools} == {10}
    prompts = [prompt for pool in pools for prompt in pool]
    assert all("red fox cub" in prompt for prompt in prompts)
    assert not any("{" in prompt for prompt in prompts)
    assert len(set(prompts)) > 60


@pytest.mark.parametrize("task", list(BY_KIND))
def test_each_template_is_shuffled_or_shortened_or_has_letters_beside(task: str) -> None:
    rng = random.Random(0)
    kinds = set()
    for _ in range(60):
        pool = augmented(rng, task, "Zorvik")
        for prompt, template in zip(pool, TASK_TEMPLATES[task], strict=True):
            wanted = template.replace("{}", "Zorvik")
            assert prompt != wanted
            words, own = sorted(prompt.split()), sorted(wanted.split())
            if words == own:
                kinds.add("shuffled")
            elif prompt.startswith(wanted + " ") or prompt.endswith(" " + wanted):
                extra = prompt.replace(wanted, "").strip()
                assert extra.isalpha()
                assert len(extra) <= 4
                kinds.add("letters")
            else:
                assert len(words) == len(own) - 1
                assert not Counter(words) - Counter(own)
                kinds.add("dropped")
    assert kinds == {"shuffled", "dropped", "letters"}


def test_augmentation_follows_its_random_numbers() -> None:
    def prompts(seed: int) -> list[str]:
        return augmented(random.Random(seed), "object", "cat")

    assert prompts(1) == prompts(1) != prompts(2)
