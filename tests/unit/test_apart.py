"""How far prompts lie apart, also in an encoder whose prompts share hardly a token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tiny import TinyModel, word_vector

from unlearn.core.conditioning import Conditioning
from unlearn.core.prompt_spread import is_padded, prompt_spread
from unlearn.evaluate.collateral import neighbours

WORDS = ["cat", "dog", "house", "tree"]


class Causal(TinyModel):
    """Each token's vector is the mean of the words so far; a prompt begins with a token that is
    always the same, and ends with its last word."""

    def __init__(self, moved: dict[str, float] | None = None) -> None:
        super().__init__()
        self.moved = moved or {}

    def _vector(self, word: str) -> torch.Tensor:
        return word_vector(word, self.width) + self.moved.get(word, 0.0)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        rows = []
        for prompt in prompts:
            x = torch.stack([self._vector(word) for word in ("<start>", *prompt.split())])
            rows.append(x.cumsum(0) / torch.arange(1, len(x) + 1)[:, None])
        return Conditioning.cat([Conditioning(row[None]) for row in rows])


def test_of_padded_prompts_the_empty_one_is_the_measure() -> None:
    model = TinyModel()
    expected = model.encode(WORDS).distance(model.encode([""])).mean().item()
    assert prompt_spread(model, WORDS) == pytest.approx(expected)


def test_prompts_that_share_only_their_first_token_with_the_empty_one() -> None:
    model = Causal()
    several, empty = model.encode(WORDS), model.encode([""])
    assert not is_padded(several, empty)
    assert several.distance(empty).max() == 0, "nothing to divide by"
    others = model.encode(WORDS[-1:] + WORDS[:-1])
    assert prompt_spread(model, WORDS) == pytest.approx(several.distance(others).mean().item())
    assert prompt_spread(model, WORDS) > 0.01


def test_there_neighbours_count_from_the_neutral_word() -> None:
    found = neighbours(Causal().encode, Causal({"dog": 0.1}).encode, WORDS, "object")
    assert found[0].word == "dog"
    assert 0 < found[0].moved < 1
    assert [one.moved for one in found[1:]] == [0, 0, 0]
    words = [*WORDS, "picture"]  # the neutral word
    found = neighbours(Causal().encode, Causal({"picture": 0.1}).encode, words, "object")
    assert found[0].word == "picture"
    assert 0 < found[0].moved < 1
