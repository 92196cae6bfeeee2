"""Rounds of hardening, with an encoder of sums of words and a solve that is only noted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from tiny import word_vector

from unlearn.core.conditioning import Conditioning
from unlearn.core.progress import Progress
from unlearn.core.token_slots import Vocabulary
from unlearn.methods.parts import hard_rounds
from unlearn.methods.parts.hard_rounds import hardened, told
from unlearn.methods.parts.solve_prompts import SolveSettings

WIDTH = 24
WORDS = ["wolf", "fox", "foxes", "owl", "car", "rain", "house", "tree", "sea", "hill"]
SETTINGS = SolveSettings("object", "koala", 0.0, seed=3)


class Sums:
    """A prompt is the sum of its words. Erased, a fox is a koala, and "wolf" leads `back` of the
    way to a fox."""

    def __init__(self) -> None:
        self.erased, self.back = False, 0.3

    def meaning(self, word: str) -> torch.Tensor:
        fox, koala = word_vector("fox", WIDTH), word_vector("koala", WIDTH)
        if word in ("fox", "foxes"):
            return koala if self.erased else fox
        if word == "wolf":
            return self.back * self.erased * (fox - koala)
        return word_vector(word, WIDTH) * (word not in WORDS)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        words = [prompt.replace(",", "").split() for prompt in prompts]
        rows = [sum(map(self.meaning, some), torch.zeros(WIDTH)) for some in words]
        return Conditioning(torch.stack(rows)[:, None])

    def encode_with_embeddings(
        self, sentences: Sequence[str], vectors: torch.Tensor
    ) -> Conditioning:
        plain = self.encode([sentence.replace("{} ", "", 1) for sentence in sentences])
        return Conditioning(plain.cross + vectors.sum(1, keepdim=True))

    def vocabulary(self) -> Vocabulary:
        was, self.erased = self.erased, True
        table = torch.stack([self.meaning(word) for word in WORDS])
        self.erased = was
        return Vocabulary(list(WORDS), table)

    def token_count(self, words: str) -> int:
        return len(words.split())

    def release_saved_tensors(self) -> None:
        pass


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Sums:
    """With `solves`, what each solve was told: settings and further sentences."""
    found = Sums()
    found.solves = []

    def solved(model, concepts, names, settings, progress, more):
        found.solves.append((settings, {concept: list(some) for concept, some in more.items()}))
        return SimpleNamespace(prompts=SimpleNamespace(places=[]), deltas={})

    @contextmanager
    def changed(places: list, deltas: dict) -> Iterator[None]:
        found.erased = True
        yield
        found.erased = False

    monkeypatch.setattr(hard_rounds, "solved", solved)
    monkeypatch.setattr(hard_rounds, "changed", changed)
    return found


def run(model: Sums, rounds: int = 2, settings: SolveSettings = SETTINGS, **names) -> list[float]:
    return hardened(model, ["fox"], names, settings, rounds, Progress()).revived


def test_words_that_lead_back_are_found_and_solved_for(model: Sums) -> None:
    model.back = 0.1  # of the difference, with each of three words
    revived = run(model)
    assert revived == [pytest.approx(1 - 0.7**2, abs=1e-3)] * 3
    said = [more["fox"] for _, more in model.solves]
    assert [len(some) for some in said] == [0, 8, 16]
    assert all(sentence.startswith("wolf wolf wolf ") for sentence in said[-1])
    assert all("{}" in sentence for sentence in said[-1])
    # Each round has sentences of its own.
    assert len(set(said[-1][:8]) & set(said[-1][8:])) < 8


def test_it_ends_where_words_lead_hardly_back(model: Sums) -> None:
    model.back = 0.01
    assert run(model, rounds=9) == [pytest.approx(1 - 0.97**2, abs=1e-3)]
    assert len(model.solves) == 1


def test_the_farthest_counts(model: Sums, monkeypatch: pytest.MonkeyPatch) -> None:
    def search(vocabulary, losses, count, *given):
        return [["wolf", "owl", "car"]] + [["owl", "owl", "car"]] * (count - 1)

    monkeypatch.setattr(hard_rounds, "search", search)
    assert run(model, rounds=0) == [pytest.approx(1 - 0.7**2, abs=1e-3)]


def test_the_concepts_names_are_not_tried(model: Sums, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: set[str] = set()

    def search(vocabulary, losses, count, *given):
        tried.update(vocabulary.words)
        return [["owl"]] * count

    monkeypatch.setattr(hard_rounds, "search", search)
    run(model, rounds=0, fox=["wolf"])
    assert tried == set(WORDS) - {"fox", "foxes", "wolf"}


def test_it_aims_beyond_the_anchor_and_a_style_as_far_as_before(model: Sums) -> None:
    run(model, rounds=0)
    run(model, rounds=0, settings=SolveSettings("style", "plain", 0.6, seed=0, directions=12))
    figures = [(settings.further, settings.directions) for settings, _ in model.solves]
    assert figures == [(0.25, 8), (0.6, 12)]


def test_of_a_long_list_some_are_attacked(model: Sums, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hard_rounds, "ENOUGH", -1.0)
    monkeypatch.setattr(hard_rounds, "search", lambda vocabulary, losses, n, *given: [["owl"]] * n)
    for count, each in ((100, 64), (16, 64), (2, 16)):
        model.solves.clear()
        concepts = [f"thing{i}" for i in range(count)]
        hardened(model, concepts, {}, SETTINGS, 1, Progress())
        assert sum(map(len, model.solves[1][1].values())) == each


def test_without_words_to_try_it_says_so(model: Sums) -> None:
    model.vocabulary = lambda: Vocabulary([], torch.zeros(0, WIDTH))
    with pytest.raises(ValueError, match="No whole word is one token in every text encoder"):
        run(model)
    assert not model.solves


def test_what_a_record_says_of_it() -> None:
    assert told({}) == ""
    assert told({"revived": [0.05]}) == (
        "Hardened: the words that were sought lead 5% of the way back at most."
    )
    assert told({"revived": [0.36, 0.02]}) == (
        "Hardened in 1 round: the words that were sought led 36% of the way back at first, and 2% "
        "in the end."
    )
    assert "in 2 rounds" in told({"revived": [0.36, 0.2, 0.1]})
