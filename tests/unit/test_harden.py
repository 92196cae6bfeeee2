"""Hardening: the soft prefix, and training against it in the encoder and in the network."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count

import pytest
import torch
from tiny import Cancelled, TinyModel, TinyNetworkModel, cancel_at, same

import testbed.model.pack
from testbed.motion import pipeline as diffusers_pipeline
from unlearn.core.edit import Edit
from unlearn.core.resume import Resume
from unlearn.diffusers_backend.model import DiffusersModel
from unlearn.methods.few_shot import FewShotSettings, few_shot
from unlearn.methods.key_step import KeyStepSettings, key_step
from unlearn.methods.parts.adversarial import LEAST, STEP, WARM_UP, Hardening, soft_prefix
from unlearn.methods.parts.retention import RetentionSet
from unlearn.prompts.sampler import PromptSampler

CONCEPT = "mushroom"
IMAGES = torch.rand(4, 4, 4, 3, generator=torch.Generator().manual_seed(0))


def clock(step: float = 1.0) -> Callable[[], float]:
    """Every look at it is `step` seconds later."""
    ticks = count()
    return lambda: next(ticks) * step


def test_a_step_of_the_attack_by_hand() -> None:
    # The loss is the first number of each vector, so its gradient is (1, 0) for each.
    start = torch.tensor([[[3.0, 4.0]]])
    found = soft_prefix(lambda v: v[..., 0].sum(1), start, steps=1)
    # A vector's size: the root of the mean square, 12.5, times the root of its two numbers: 5.
    torch.testing.assert_close(found, torch.tensor([[[3.0 - STEP * 5, 4.0]]]))
    assert torch.equal(start, torch.tensor([[[3.0, 4.0]]]))


def test_later_steps_of_the_attack_are_shorter() -> None:
    found = soft_prefix(lambda v: v[..., 0].sum(1), torch.tensor([[[3.0, 4.0]]]), steps=4)
    length = STEP * 5 * (1 + 3 / 4 + 2 / 4 + 1 / 4)
    torch.testing.assert_close(found, torch.tensor([[[3.0 - length, 4.0]]]))


def test_the_attack_moves_each_encoders_part_by_its_own_scale() -> None:
    """Small numbers have large gradients: without a scale all of the step would be theirs."""
    scale = torch.tensor([0.02, 0.02, 1.0, 1.0])
    start = torch.tensor([[[0.02, -0.02, 1.0, -1.0]]])
    found = soft_prefix(lambda v: (v / scale).sum((1, 2)), start, steps=1, scale=scale)
    moved = (found - start) / scale
    torch.testing.assert_close(moved, torch.full((1, 1, 4), -STEP))


def test_a_gradient_that_overflowed_moves_nothing() -> None:
    start = torch.tensor([[[3.0, 4.0]]])
    found = soft_prefix(lambda v: (v[..., 0] * torch.inf).sum(1), start, steps=2)
    assert torch.equal(found, start)


def test_the_attack_leaves_no_gradient_in_what_is_trained() -> None:
    weight = torch.ones(2, requires_grad=True)
    soft_prefix(lambda v: (v * weight).square().sum((1, 2)), torch.ones(1, 1, 2))
    assert weight.grad is None


@pytest.mark.parametrize("settings", [FewShotSettings, KeyStepSettings])
def test_the_published_methods_are_not_hardened(settings: type) -> None:
    science = few_shot if settings is FewShotSettings else key_step
    with pytest.raises(ValueError, match="Mode paper is the published method and is not hardened"):
        science(TinyModel(), ["fox"], settings=settings(mode="paper", harden=1.0))


def hardening(model: TinyModel, edit, **more) -> Hardening:
    words = PromptSampler([CONCEPT], "object", random.Random(0))
    values = {"push": 0.0, "rate": 0.02, "seconds": 60.0, "now": clock(0.5), **more}
    return Hardening(model, edit, [CONCEPT], words, **values)


def revived(model, edit) -> float:
    """How near a soft attack comes to what the concept's prompt said: what is left of the way to it
    from the neutral one."""
    vocabulary = model.vocabulary().without(CONCEPT).vectors
    chosen = torch.randint(len(vocabulary), (4, 3), generator=torch.Generator().manual_seed(7))
    start = vocabulary[chosen]
    named, neutral = ([f"{{}} a photo of a {w}"] * len(start) for w in (CONCEPT, "picture"))
    with edit.off():
        wanted = model.encode_with_embeddings(named, start)
        far = wanted.distance(model.encode_with_embeddings(neutral, start)).mean()
    found = soft_prefix(lambda v: model.encode_with_embeddings(named, v).distance(wanted), start, 5)
    with torch.no_grad():
        return (model.encode_with_embeddings(named, found).distance(wanted).mean() / far).item()


@pytest.mark.slow
def test_hardened_encoder_is_harder_to_bring_back(pack) -> None:
    """On the real small model, after a few steps of the erasure itself."""
    science = pack.unlearn
    host = pack.nodes.backend.model.ComfyModel(*testbed.model.pack.checkpoint(), size=(64, 64))
    words = science.prompts.sampler.PromptSampler([CONCEPT], "object", random.Random(0))
    others = ["a photo of a cat", "a church, ink style", ""]
    with host.training(), host.edit("encoder", "mlp-final-attn") as edit:
        with edit.off():
            x0 = host.sample([f"a photo of a {CONCEPT}"] * 2, seed=0, steps=4)
            were = host.encode(others)
            apart = were.distance(host.encode(others[1:] + others[:1])).mean()
        settings = science.methods.few_shot.FewShotSettings(max_steps=30)
        science.methods.few_shot.balanced(host, edit, [CONCEPT], [x0], settings, None)
        before = revived(host, edit)
        science.methods.parts.adversarial.Hardening(
            host, edit, [CONCEPT], words, 0.0, 0.03, 60.0, now=clock()
        ).encoder()
        assert revived(host, edit) > 1.4 * before
        with torch.no_grad():
            assert host.encode(others).distance(were).mean() < 0.1 * apart


@pytest.mark.costly
def test_hardened_network_is_harder_to_bring_back() -> None:
    model = TinyNetworkModel()
    prompts = [f"a photo of a {CONCEPT}"] * 4

    def attacked_loss(edit) -> float:
        """What the attack leaves of the way from the concept's prediction to the edited one's."""
        x0 = model.sample(prompts, seed=5)
        t = torch.full((4,), 600.0)
        x = model.add_noise(x0, model.noise(4, torch.Generator().manual_seed(3)), t)
        vectors = model.vocabulary().vectors[:12].view(4, 3, -1)
        filled = ["{} " + prompt for prompt in prompts]
        with edit.off():
            own = model.predict(x, t, model.encode_with_embeddings(filled, vectors))

        def missed(v: torch.Tensor) -> torch.Tensor:
            return (
                (model.predict(x, t, model.encode_with_embeddings(filled, v)) - own)
                .square()
                .mean((1, 2, 3))
            )

        found = soft_prefix(missed, vectors, 20)
        with torch.no_grad():
            return missed(found).mean().item()

    with model.edit("denoiser", "cross-attention") as edit:
        around = [CONCEPT], "object"
        held = RetentionSet(model, edit, around, (), 0, Resume())
        with edit.off():
            pictures = model.sample(prompts, seed=0)
        before = attacked_loss(edit)
        hardening(model, edit, rate=0.1).network(held, pictures, [801.0, 601.0, 401.0], 1.0)
        after = attacked_loss(edit)
        assert after > 2 * before


def test_rate_rises_at_first_and_falls_with_the_time_that_is_left() -> None:
    model = TinyModel()
    with model.edit("encoder", "mlp") as edit:
        # The clock is looked at once at the beginning, and once before each step.
        run = hardening(model, edit, seconds=20.0, now=clock(1.0))
        full = run.optimiser.param_groups[0]["lr"]
        seen = [run.optimiser.param_groups[0]["lr"] / full for _ in rates(run)]
    expected = [
        min(1, (i + 1) / WARM_UP) * (1 - (1 - LEAST) * (i + 1) / 20) for i in range(len(seen))
    ]
    assert seen == pytest.approx(expected)
    assert len(seen) == 19


def rates(run: Hardening):
    for _ in run._steps():
        yield
        run.done += 1


def test_no_seconds_no_steps() -> None:
    model = TinyModel()
    with model.edit("encoder", "mlp") as edit:
        hardening(model, edit, seconds=0.0).encoder()
        assert edit.history == []


@pytest.mark.parametrize("method", ["few_shot", "key_step"])
def test_methods_go_on_for_the_seconds_they_are_given(method: str) -> None:
    def run(seconds: float, on_step=None):
        if method == "few_shot":
            settings = FewShotSettings(max_steps=3, harden=seconds)
            return few_shot(TinyModel(), [CONCEPT], IMAGES, settings, on_step)
        settings = KeyStepSettings(iterations=3, harden=seconds)
        return key_step(TinyNetworkModel(), [CONCEPT], settings, on_step)

    heard: list[tuple[int, int]] = []
    hardened = run(0.5, lambda step, total, *_: heard.append((step, total)))
    steps = hardened.record["steps"]
    assert [step for step, _ in heard] == list(range(1, steps + 1))
    assert steps > 3
    assert heard[-1][1] == steps
    assert not same(hardened, run(0.0))
    with pytest.raises(Cancelled):
        run(3600.0, cancel_at(5))


@pytest.mark.parametrize("method", ["few_shot", "key_step"])
def test_the_first_optimiser_is_let_go_of(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two moments are as large as the changes themselves, twice over."""
    made, left = [], []
    adam, begin = Edit.adam, Hardening.__post_init__
    monkeypatch.setattr(Edit, "adam", lambda *a, **k: made.append(adam(*a, **k)) or made[-1])

    def hardening(self: Hardening) -> None:
        left.append([len(optimiser.state) for optimiser in made])
        begin(self)

    monkeypatch.setattr(Hardening, "__post_init__", hardening)
    if method == "few_shot":
        few_shot(TinyModel(), [CONCEPT], IMAGES, FewShotSettings(max_steps=2, harden=0.1))
    else:
        settings = KeyStepSettings(steps=4, start=1, iterations=2, harden=0.1)
        key_step(TinyNetworkModel(), [CONCEPT], settings)
    assert left == [[0]]
    assert len(made) == 2


@pytest.mark.costly
@pytest.mark.slow
def test_an_encoder_all_of_whose_weights_are_trained_is_hardened_outside_comfyui() -> None:
    """Its word vectors are trained, too, and the words to attack with are looked up in them."""
    model = DiffusersModel(diffusers_pipeline.pipeline())
    with model.edit("encoder", "all") as edit:
        assert not model.vocabulary().vectors.requires_grad
        run = hardening(model, edit, seconds=2.0)
        run.encoder()
    assert run.done >= 2


def test_concepts_take_turns() -> None:
    model = TinyModel()
    concepts = ["mushroom", "owl"]
    with model.edit("encoder", "mlp") as edit:
        words = PromptSampler(concepts, "object", random.Random(0))
        run = Hardening(model, edit, concepts, words, 0.0, 0.01, 5.0, now=clock())
        taken = []
        for concept in run._steps():
            taken.append(concept)
            run.done += 1
    assert taken == ["mushroom", "owl", "mushroom", "owl"]
