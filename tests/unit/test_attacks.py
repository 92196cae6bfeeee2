"""Attacks: what each of them looks for, by hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from noted import square
from tiny import TinyModel, TinyNetworkModel, word_vector

from unlearn.attacks import ring_a_bell as bell
from unlearn.attacks import unlearn_diff_atk as prefix
from unlearn.attacks.cce import CCESettings, cce
from unlearn.attacks.denoising_targets import Targets
from unlearn.attacks.ring_a_bell import RingABellSettings, concept_direction, ring_a_bell
from unlearn.attacks.unlearn_diff_atk import UnlearnDiffAtkSettings, unlearn_diff_atk
from unlearn.core.conditioning import Conditioning
from unlearn.core.token_slots import Vocabulary
from unlearn.prompts.sampler import PromptSampler
from unlearn.prompts.templates import named


class Speaker(TinyModel):
    """Its encoder has a token for a few words, and numbers that spread by a half."""

    WORDS = ("fox", "foxes", "owl", "picture", "tree")

    def vocabulary(self) -> Vocabulary:
        vectors = torch.stack([word_vector(word, self.width) for word in self.WORDS])
        return Vocabulary(list(self.WORDS), vectors, torch.full((self.width,), 0.5))


class Searched:
    """Stands in the place of a search: what was looked for, and among what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any, found: str = "owl") -> None:
        self.calls: list[dict] = []
        self.found = found
        monkeypatch.setattr(module, "search", self)

    def __call__(
        self,
        vocabulary: Vocabulary,
        losses: Callable[[torch.Tensor], torch.Tensor],
        count: int,
        tokens: int,
        steps: int,
        tries: int,
        seed: int,
        after_step: Callable[[int], None] | None = None,
        start: list[list[str]] = (),
        look: Callable[[int, list[list[str]]], None] | None = None,
    ) -> list[list[str]]:
        self.calls.append({**locals()})
        for step in range(1, steps + 1) if look else ():
            look(step, [[f"step{step}"] * tokens for _ in range(count)])
        return [[self.found] * tokens for _ in range(count)]


VECTORS = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(6))

# Ring-A-Bell


def test_the_direction_is_what_the_concept_adds_to_the_neutral_word() -> None:
    model = Speaker()
    sentences = PromptSampler(["fox"], "object", random.Random(4)).sentences(6)
    with_it, without = (
        model.encode([sentence.format(word) for sentence in sentences]).cross.mean(0)
        for word in ("fox", "picture")
    )
    found = concept_direction(model, "fox", "object", 6, 4)
    assert torch.allclose(found.cross[0], with_it - without, atol=1e-6)
    assert found.cross.abs().max() > 0.01


def test_words_are_sought_three_times_the_direction_beyond_the_prompt(monkeypatch) -> None:
    model, searched = Speaker(), Searched(monkeypatch, bell)
    prompts = ["a tree", "a picture of a tree"]
    settings = RingABellSettings(seed=4, pairs=6)
    assert ring_a_bell(model, "fox", prompts, "object", settings) == [" ".join(["owl"] * 16)] * 2
    (call,) = searched.calls
    assert (call["count"], call["tokens"], call["steps"], call["tries"]) == (2, 16, 100, 8)
    assert call["vocabulary"].words == ["owl", "picture", "tree"], "the name is not said"
    aim = model.encode(prompts).cross + 3 * concept_direction(model, "fox", "object", 6, 4).cross
    said = model.encode_with_embeddings(["{}", "{}"], VECTORS).cross
    wanted = (said - aim).square().mean((1, 2))
    assert torch.allclose(call["losses"](VECTORS), wanted, rtol=1e-5)


# UnlearnDiffAtk


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("kind", "tokens"), [("object", 3), ("style", 3), ("character", 5)])
def test_first_the_encoder_is_asked_and_then_the_network(
    kind: str, tokens: int, monkeypatch
) -> None:
    model, searched = TinyNetworkModel(), Searched(monkeypatch, prefix)
    prompts, x0 = ["a photo of a fox", "a photo of a owl"], pictures(2)
    wanted = model.encode(["a red fox", "a white owl"])
    settings = UnlearnDiffAtkSettings(at_once=1, seed=3)
    found = unlearn_diff_atk(model, prompts, wanted, x0, kind, settings)
    assert found.prompts == [f"{' '.join(['owl'] * tokens)} {prompt}" for prompt in prompts]
    words = [" ".join([f"step{step}"] * tokens) for step in range(4, 44, 4)]
    assert found.on_the_way == [[f"{some} {prompt}" for prompt in prompts] for some in words]
    assert [call["tokens"] for call in searched.calls] == [tokens] * 4
    assert [(call["steps"], call["tries"]) for call in searched.calls] == [(100, 8), (40, 4)] * 2
    assert [list(call["start"]) for call in searched.calls] == [[], [["owl"] * tokens]] * 2
    vectors = VECTORS[:1]
    for i, prompt in enumerate(prompts):
        said = model.encode_with_embeddings(["{} " + prompt], vectors)
        encoder, network = (call["losses"] for call in searched.calls[2 * i : 2 * i + 2])
        assert torch.allclose(encoder(vectors), said.distance(wanted[i : i + 1]), rtol=1e-5)
        targets = Targets(model, x0[i : i + 1], kind, 4, 3 + i)
        relative = targets.losses(said) / targets.losses(model.encode([prompt]))
        assert torch.allclose(network(vectors), relative.mean()[None], rtol=1e-5)


def test_a_look_at_which_no_word_changed_is_left_out(monkeypatch) -> None:
    steps = iter([["fox"], ["owl"], ["owl"], ["tree"]] * 2)

    def search(*given, look=None, **more) -> list[list[str]]:
        for step in (2, 4, 6, 8) if given[4] == 8 else ():
            given[-1](step, [next(steps)])
        return [["tree"]]

    monkeypatch.setattr(prefix, "search", search)
    model, settings = TinyNetworkModel(), UnlearnDiffAtkSettings(steps=8, looks=4, first_steps=2)
    wanted = model.encode(["a red fox"])
    found = unlearn_diff_atk(model, ["a fox"], wanted, pictures(1), "object", settings)
    assert found.prompts == ["tree a fox"]
    assert found.on_the_way == [["fox a fox"], ["owl a fox"]]


@pytest.mark.parametrize(("steps", "count", "at"), [(8, 4, [2, 4, 6, 8]), (2, 10, [1, 2])])
def test_looks_lie_evenly_up_to_the_last_step(steps: int, count: int, at: list[int]) -> None:
    assert prefix.looks(UnlearnDiffAtkSettings(steps=steps, looks=count)) == at


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("object", 400, 1000), ("style", 100, 800), ("character", 400, 1000)],
)
def test_targets_by_hand(kind: str, low: int, high: int) -> None:
    """Two pictures of one pixel, two draws each: the loss is (x_t + c - noise)^2."""
    model, x0 = TinyModel(1), torch.tensor([0.5, -2.0]).view(2, 1, 1, 1)
    targets = Targets(model, x0, kind, 2, 9)
    golden = (5**0.5 - 1) / 2
    times = [low + (high - low) * ((0.5 + i * golden) % 1) for i in range(4)]
    assert targets.t.tolist() == pytest.approx(times)
    noise = torch.randn(4, 1, 1, 1, generator=torch.Generator().manual_seed(9)).flatten()
    x_t = torch.tensor([0.5, 0.5, -2.0, -2.0]) + noise * torch.tensor(times) / 1000
    said = Conditioning(torch.tensor([0.25, 3.0]).view(2, 1, 1))
    losses = (x_t + torch.tensor([0.25, 0.25, 3.0, 3.0]) - noise) ** 2
    assert torch.allclose(targets.losses(said), losses, rtol=1e-5)
    before = torch.tensor([1.0, 2.0, 4.0, 8.0])
    wanted = (losses / before).view(2, 2).mean(1)
    assert torch.allclose(targets.relative(said, before), wanted, rtol=1e-5)


# CCE


def steps_by_hand(model: Speaker, x0: torch.Tensor, count: int) -> torch.Tensor:
    """Adam's steps at rate 0.3, in units of the spread of a half, from the anchor's vector."""
    token = word_vector("picture", 8) / 0.5
    mean = square_mean = torch.zeros(8)
    rng, noise = random.Random(0), torch.Generator().manual_seed(0)
    for step in range(1, count + 1):
        chosen = [rng.randrange(len(x0)) for _ in range(4)]
        t = torch.randint(0, 1000, (4,), generator=noise).float()
        fresh = torch.randn(4, 1, 1, 1, generator=noise)
        sentences = named(rng, "object", "{}", 4)
        leaf = token.clone().requires_grad_()
        said = model.encode_with_embeddings(sentences, (0.5 * leaf).expand(4, 1, 8))
        predicted = model.predict(model.add_noise(x0[chosen], fresh, t), t, said)
        (gradient,) = torch.autograd.grad(square(predicted, fresh), leaf)
        mean = 0.9 * mean + 0.1 * gradient
        square_mean = 0.999 * square_mean + 0.001 * gradient**2
        size = mean / (1 - 0.9**step) / ((square_mean / (1 - 0.999**step)).sqrt() + 1e-8)
        token = token - 0.3 * size
    return 0.5 * token


@pytest.mark.parametrize("count", [1, 3])
def test_the_tokens_steps_by_hand(count: int) -> None:
    model, x0 = Speaker(), torch.linspace(0, 1, 5).view(5, 1, 1, 1)
    found = cce(model, x0, "object", CCESettings(steps=count))
    assert found.shape == (1, 1, 8)
    assert torch.allclose(found[0, 0], steps_by_hand(model, x0, count), atol=1e-4)
    moved = (found[0, 0] - word_vector("picture", 8)).abs().max()
    assert moved > 0.1, "by far more than the tolerance"


def test_a_gradient_that_overflows_moves_the_token_not_at_all() -> None:
    class Overflowing(Speaker):
        def encode_with_embeddings(self, sentences, vectors: torch.Tensor) -> Conditioning:
            vectors.register_hook(lambda gradient: gradient * torch.inf)
            return super().encode_with_embeddings(sentences, vectors)

    found = cce(Overflowing(), torch.zeros(1, 1, 1, 1), "object", CCESettings(steps=2))
    assert torch.allclose(found[0, 0], word_vector("picture", 8))
