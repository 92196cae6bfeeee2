"""Hardening: the soft prefix, and training against it in the encoder and in the network."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count

import pytest
import torch
from noted import NotedNetworkModel, Step, shift, square
from noted import noted_steps as noted_steps
from tiny import Cancelled, TinyModel, TinyNetworkModel, cancel_at, same

from unlearn.core.conditioning import Conditioning
from unlearn.core.edit import Edit
from unlearn.core.resume import Resume
from unlearn.methods.few_shot import FewShotSettings, few_shot
from unlearn.methods.key_step import KeyStepSettings, key_step
from unlearn.methods.parts import adversarial
from unlearn.methods.parts.adversarial import Hardening, soft_prefix
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
    torch.testing.assert_close(found, torch.tensor([[[3.0 - 0.3 * 5, 4.0]]]))
    assert torch.equal(start, torch.tensor([[[3.0, 4.0]]]))


def test_later_steps_of_the_attack_are_shorter() -> None:
    found = soft_prefix(lambda v: v[..., 0].sum(1), torch.tensor([[[3.0, 4.0]]]), steps=4)
    length = 0.3 * 5 * (1 + 3 / 4 + 2 / 4 + 1 / 4)
    torch.testing.assert_close(found, torch.tensor([[[3.0 - length, 4.0]]]))


def test_the_attack_moves_each_encoders_part_by_its_own_scale() -> None:
    """Small numbers have large gradients: without a scale all of the step would be theirs."""
    scale = torch.tensor([0.02, 0.02, 1.0, 1.0])
    start = torch.tensor([[[0.02, -0.02, 1.0, -1.0]]])
    found = soft_prefix(lambda v: (v / scale).sum((1, 2)), start, steps=1, scale=scale)
    moved = (found - start) / scale
    torch.testing.assert_close(moved, torch.full((1, 1, 4), -0.3))


def test_a_gradient_that_overflowed_moves_nothing() -> None:
    start = torch.tensor([[[3.0, 4.0]]])
    found = soft_prefix(lambda v: (v[..., 0] * torch.inf).sum(1), start, steps=2)
    assert torch.equal(found, start)


def test_the_attack_takes_ten_steps_and_leaves_no_gradient_in_what_is_trained() -> None:
    weight = torch.ones(2, requires_grad=True)
    (weight.sum() * 3).backward()
    asked = []

    def losses(vectors: torch.Tensor) -> torch.Tensor:
        asked.append(vectors)
        return (vectors * weight).square().sum((1, 2))

    found = soft_prefix(losses, torch.ones(1, 1, 2))
    assert len(asked) == 10
    assert weight.grad.tolist() == [3.0, 3.0], "what was there before, and nothing more"
    assert not found.requires_grad


@pytest.mark.parametrize("settings", [FewShotSettings, KeyStepSettings])
def test_the_published_methods_are_not_hardened(settings: type) -> None:
    science = few_shot if settings is FewShotSettings else key_step
    with pytest.raises(ValueError, match="Mode paper is the published method and is not hardened"):
        science(TinyModel(), ["fox"], settings=settings(mode="paper", harden=1.0))


def hardening(model: TinyModel, edit, **more) -> Hardening:
    words = PromptSampler([CONCEPT], "object", random.Random(0))
    values = {"push": 0.0, "rate": 0.02, "seconds": 60.0, "now": clock(0.5), **more}
    return Hardening(model, edit, [CONCEPT], words, **values)


class Attacked:
    """Stands in the place of the attack: it moves the words by a little, and notes its losses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(adversarial, "soft_prefix", self)

    def __call__(self, losses_of: Callable, start: torch.Tensor, scale=1.0) -> torch.Tensor:
        self.losses, self.start, self.found = losses_of(start + 0.1).detach(), start, start + 0.1
        return self.found


class NotedEncoder(TinyModel):
    """What was encoded, with the edit on or off."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[bool, list[str], torch.Tensor]] = []

    def _note(self, prompts: list[str], found: Conditioning) -> Conditioning:
        self.said.append((self.current._on, list(prompts), found.cross.detach()))
        return found

    def encode(self, prompts: list[str]) -> Conditioning:
        return self._note(prompts, super().encode(prompts))

    def encode_with_embeddings(self, sentences: list[str], vectors: torch.Tensor) -> Conditioning:
        return self._note(sentences, super().encode_with_embeddings(sentences, vectors))


def test_the_encoders_loss_by_hand(monkeypatch: pytest.MonkeyPatch, steps: list[Step]) -> None:
    """Three times both pulls, and five times what is held, in shares of how far prompts lie apart:
    plain, and behind other words."""
    model, attack = NotedEncoder(), Attacked(monkeypatch)
    with model.edit("encoder", "mlp") as edit:
        shift(edit)
        hardening(model, edit, push=0.5, seconds=1.0, now=clock(0.6)).encoder()
    common, empty, *said = model.said
    assert [on for on, _, _ in said] == [False] * 6 + [True] * 5
    _, prompts, crosses = zip(*said)
    wanted, neutral_after, neutral, named, others, others_after = crosses[:6]
    missed, attacked_is, named_is, others_is, others_after_is = crosses[6:]
    assert prompts[0] == prompts[6] == prompts[7] == ["{} " + prompt for prompt in prompts[3]]
    assert prompts[1] == ["{} " + prompt for prompt in prompts[2]]
    assert prompts[2] == [prompt.replace(CONCEPT, "picture") for prompt in prompts[3]]
    assert (len(prompts[3]), len(prompts[4])) == (4, 8)
    assert torch.allclose(attack.losses, (missed - wanted).square().mean((1, 2)), rtol=1e-5)
    spread = square(common[2], empty[2])
    attacked = square(attacked_is, neutral_after + 0.5 * (neutral_after - wanted))
    plain = square(named_is, neutral + 0.5 * (neutral - named))
    kept, kept_after = square(others_is, others), square(others_after_is, others_after)
    parts = [3 * attacked, 3 * plain, 5 * kept, 5 * kept_after]
    (step,) = steps
    assert step.loss == pytest.approx((sum(parts) / spread).item(), rel=1e-5)
    assert min(parts) > 1e-3 * sum(parts)
    assert (step.betas, step.eps) == ((0.9, 0.98), 1e-12)


def test_what_was_found_is_what_the_encoder_is_trained_against(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not the words that the attack began with."""
    model, attack = NotedEncoder(), Attacked(monkeypatch)
    with model.edit("encoder", "mlp") as edit:
        hardening(model, edit, seconds=1.0, now=clock(0.6)).encoder()
        sentences, cross = model.said[9][1], model.said[9][2]
        with edit.off():
            found = model.encode_with_embeddings(sentences, attack.found).cross
    assert torch.allclose(cross, found, atol=1e-6)


def test_the_networks_loss_by_hand(monkeypatch: pytest.MonkeyPatch, steps: list[Step]) -> None:
    model, attack = NotedNetworkModel(), Attacked(monkeypatch)
    with model.edit("denoiser", "cross-attention") as edit:
        held = RetentionSet(model, edit, ([CONCEPT], "object"), (), 0, Resume())
        pictures = model.sample([f"a photo of a {CONCEPT}"] * 4, seed=0)
        shift(edit)
        model.made.clear()
        run = hardening(model, edit, push=0.5, seconds=1.0, now=clock(0.6))
        run.network(held, pictures, [601.0], retention=4.0)
    behind_words, plain, missed, trained = model.made
    assert [one.edited for one in model.made] == [False, False, True, True]
    own, aim = behind_words.result.split(2)
    plain_own, plain_aim, others_were = plain.result.split([2, 2, 4])
    attacked_is, plain_is, others_are = trained.result.split([2, 2, 4])
    assert torch.allclose(
        attack.losses, (missed.result - own).square().flatten(1).mean(1), rtol=1e-5
    )
    far = square(plain_own, plain_aim)
    attacked = square(attacked_is, aim - 0.5 * (own - aim))
    left = square(plain_is, plain_aim - 0.5 * (plain_own - plain_aim))
    kept = square(others_are, others_were)
    parts = [attacked, left, 4 * kept]
    (step,) = steps
    assert step.loss == pytest.approx((sum(parts) / far).item(), rel=1e-4)
    assert min(parts) > 1e-3 * sum(parts)
    prompts = [model.prompt_of(row) for row in plain.cross]
    assert prompts[2:4] == [prompt.replace(CONCEPT, "picture") for prompt in prompts[:2]]
    assert [model.prompt_of(row) for row in trained.cross[2:]] == prompts[:2] + prompts[4:]
    tokens = missed.cross.shape[1]
    found = trained.cross[:2, :tokens]
    assert torch.equal(found, missed.cross), "what was found is trained against"
    assert not torch.equal(found, behind_words.cross[:2, :tokens])


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
    import testbed.model.pack

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
        science.methods.few_shot.balanced(
            host, edit, [CONCEPT], [x0], settings, science.core.progress.SILENT
        )
        before = revived(host, edit)
        # Each step looks at the clock twice.
        science.methods.parts.adversarial.Hardening(
            host, edit, [CONCEPT], words, 0.0, 0.03, 60.0, now=clock(0.5)
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
        hardening(model, edit, rate=0.1, seconds=20.0).network(
            held, pictures, [801.0, 601.0, 401.0], 1.0
        )
        after = attacked_loss(edit)
        assert after > 2 * before


def test_rate_rises_at_first_and_falls_with_the_time_that_is_left() -> None:
    model = TinyModel()
    with model.edit("encoder", "mlp") as edit:
        # The clock is looked at once at the beginning, and once before each step.
        run = hardening(model, edit, seconds=20.0, now=clock(1.0))
        full = run.optimiser.param_groups[0]["lr"]
        seen = [run.optimiser.param_groups[0]["lr"] / full for _ in rates(run)]
    expected = [min(1, (i + 1) / 10) * (1 - 0.9 * (i + 1) / 20) for i in range(len(seen))]
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
    from testbed.motion import pipeline as diffusers_pipeline
    from unlearn.diffusers_backend.model import DiffusersModel

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
