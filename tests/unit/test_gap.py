"""Sentences with a gap: token vectors fed into the real text encoders, in both backends."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch

import testbed.model.pack
from testbed.motion import pipeline as diffusers_pipeline
from unlearn.core.token_slots import (
    Vocabulary,
    beside,
    fill_with_two_fillers,
    shared_words,
    slot_positions,
    whole_words,
)
from unlearn.diffusers_backend.model import DiffusersModel
from unlearn.prompts.sampler import PromptSampler

SENTENCES = ["{} a photo of a fox", "a painting, {} style", "{}"]
WORDS = ["owl", "mushroom", "guitar"]


# By hand


def test_whole_words_of_three_tokenizers() -> None:
    assert whole_words({"fox</w>": 1, "fox": 2, "!</w>": 3, "a</w>": 4, "f0x</w>": 5}) == {"fox": 1}
    assert whole_words({"\u2581Fox": 1, "\u2581fox": 2, "\u0120owl": 3}) == {"fox": 2, "owl": 3}
    assert whole_words({"\u2581London": 1}) == {}  # written small it is several tokens


def test_only_words_of_all_encoders_are_shared() -> None:
    words, tokens = shared_words([{"fox</w>": 1, "owl</w>": 2}, {"\u2581owl": 7, "\u2581cat": 8}])
    assert words == ["owl"]
    assert tokens == [[2], [7]]


def test_the_gap_is_where_the_tokens_differ() -> None:
    assert fill_with_two_fillers("a {} b", 2) == ("a cat cat b", "a dog dog b")
    # Braces that a user typed stand behind the gap.
    assert fill_with_two_fillers("{} a photo of x{}y", 1) == (
        "cat a photo of x{}y",
        "dog a photo of x{}y",
    )
    assert slot_positions([0, 5, 5, 9], [0, 6, 6, 9], 2) == [1, 2]
    with pytest.raises(ValueError, match="use a shorter prompt") as error:
        slot_positions([0, 5, 9], [0, 6, 9], 2)
    assert "\n" not in str(error.value)


def test_each_encoders_vectors_have_a_scale_of_their_own() -> None:
    tables = [torch.randn(50, 3), 40 * torch.randn(50, 2)]
    both = beside([f"word{i}" for i in range(50)], tables)
    assert torch.equal(both.vectors, torch.cat(tables, 1))
    expected = [tables[0].std()] * 3 + [tables[1].std()] * 2
    torch.testing.assert_close(both.scale, torch.stack(expected))
    assert both.without("word1").scale is both.scale


def test_a_vocabulary_without_a_name() -> None:
    words = ["fox", "foxes", "box", "ox", "mirabo", "owl", "mir"]
    kept = Vocabulary(words, torch.arange(7.0)[:, None]).without("fox", "Mirabo")
    assert kept.words == ["box", "ox", "owl"]
    assert kept.vectors.flatten().tolist() == [2, 3, 5]


def test_a_short_word_of_a_name_is_no_part_of_others() -> None:
    words = ["a", "in", "cat", "wine", "alice", "cats", "wonder", "owl"]
    kept = Vocabulary(words, torch.arange(8.0)[:, None]).without("a cat", "Alice in Wonderland")
    assert kept.words == ["wine", "owl"]


# On the real encoders


@contextmanager
def host_model(pack: ModuleType) -> Iterator[Any]:
    with torch.inference_mode():
        model = pack.nodes.backend.model.ComfyModel(
            *testbed.model.pack.checkpoint(), size=(128, 128)
        )
        with model.training():
            yield model


@pytest.fixture(
    params=[
        pytest.param("host", marks=pytest.mark.slow),
        pytest.param("diffusers", marks=pytest.mark.costly),
    ]
)
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "diffusers":
        yield DiffusersModel(diffusers_pipeline.pipeline())
    else:
        with host_model(request.getfixturevalue("pack")) as found:
            yield found


def vectors(model: Any, words: list[str]) -> torch.Tensor:
    vocabulary = model.vocabulary()
    return torch.stack([vocabulary.of(word) for word in words])[None]


def test_words_vectors_in_the_gap_are_the_words_typed(model: Any) -> None:
    typed = [sentence.replace("{}", " ".join(WORDS)) for sentence in SENTENCES]
    filled = model.encode_with_embeddings(SENTENCES, vectors(model, WORDS)).cross
    assert filled.shape[1] == 77
    torch.testing.assert_close(filled, model.encode(typed).cross, rtol=1e-5, atol=1e-5)


def test_each_sentence_may_have_vectors_of_its_own(model: Any) -> None:
    both = torch.cat([vectors(model, ["owl"]), vectors(model, ["pizza"])])
    filled = model.encode_with_embeddings(["a photo of a {}"] * 2, both).cross
    typed = model.encode(["a photo of a owl", "a photo of a pizza"]).cross
    torch.testing.assert_close(filled, typed, rtol=1e-5, atol=1e-5)


def test_the_vectors_take_a_gradient_and_the_weights_none(model: Any) -> None:
    given = vectors(model, WORDS).clone().requires_grad_()
    model.encode_with_embeddings([SENTENCES[0]], given).cross.square().mean().backward()
    assert given.grad.abs().amax(-1).min() > 0


def test_tokens_are_counted_within_a_prompt(model: Any) -> None:
    counts = {words: model.token_count(words) for words in ("fox", "Zorvik", "a brown animal")}
    assert counts == {"fox": 1, "Zorvik": 2, "a brown animal": 3}


def test_parentheses_are_tokens_as_all_else(model: Any) -> None:
    assert [model.token_count(words) for words in ("fox cat", "fox (cat)")] == [2, 4]


def test_words_behind_a_name_and_behind_its_neutral_words_have_the_same_places(model: Any) -> None:
    words = PromptSampler(["Zorvik"], "character", random.Random(0))
    neutral = words.neutral("Zorvik", model)
    assert neutral == "person person"
    here = [model.vocabulary().of(word) for word in ("spin", "castle")]
    named, unnamed = (f"a photo of {name}, {{}}" for name in ("Zorvik", neutral))
    # Where the conditioning begins to tell the two words apart there is the word.
    starts = []
    for sentence in (named, unnamed):
        one, other = (
            model.encode_with_embeddings([sentence], v[None, None]).cross[0] for v in here
        )
        starts.append((one - other).abs().amax(-1).gt(1e-6).nonzero()[0].item())
    assert starts[0] == starts[1]


def test_conditioning_is_drawn_as_its_prompt_is(model: Any) -> None:
    drawn = model.sample(model.encode(["a photo of a owl"]), 3, steps=2)
    assert torch.equal(drawn, model.sample(["a photo of a owl"], 3, steps=2))


def test_a_prompt_that_is_too_long_is_a_sentence() -> None:
    model = DiffusersModel(diffusers_pipeline.pipeline())
    with pytest.raises(ValueError, match="use a shorter prompt"):
        model.encode_with_embeddings(["fox " * 76 + "{}"], torch.zeros(1, 3, 192))


def test_both_backends_have_the_same_words(pack: ModuleType) -> None:
    theirs = DiffusersModel(diffusers_pipeline.pipeline()).vocabulary()
    with host_model(pack) as model:
        ours = model.vocabulary()
    assert ours.words == theirs.words
    assert {"fox", "owl"} <= set(ours.words)
    torch.testing.assert_close(ours.vectors, theirs.vectors, rtol=0, atol=0)
