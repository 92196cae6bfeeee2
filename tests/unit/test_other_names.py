"""Which words a text encoder reads as other names of a concept, with one whose meanings are set."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import pytest
import torch

from unlearn.core.conditioning import Conditioning
from unlearn.prompts.other_names import MOST, candidates, other_names, told_names
from unlearn.prompts.paraphrases import plural
from unlearn.prompts.synonyms import synonyms

WIDTH = 96
# What a word means, as a share of another word's meaning.
LIKE = {
    "foxes": ("fox", 0.2),  # hardly known, and still a plural
    "owls": ("owl", 0.9),
    "vixen": ("fox", 0.9),
    "Fuchs": ("fox", 0.7),
    "vixens": ("fox", 0.8),
    "renard": ("fox", 0.1),
    "Monet": ("Claude Monet", 0.9),
}


def vector(text: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
    return torch.nn.functional.normalize(torch.randn(WIDTH, generator=generator), dim=0)


def meaning(word: str) -> torch.Tensor:
    like, share = LIKE.get(word, (word, 1.0))
    return share * vector(like) + (1 - share**2) ** 0.5 * vector("only " + word)


class Planted:
    """A sentence means its word and, less, its other words."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        rows = []
        for prompt in prompts:
            word = prompt
            for part in ("a photo of a ", "a painting in the style of ", " in the rain at night"):
                word = word.replace(part, "")
            word = word.replace(", highly detailed", "").replace("a house, ", "")
            word = word.removesuffix(" style")
            rows.append((meaning(word) + vector(prompt.replace(word, "")))[None])
        return Conditioning(torch.stack(rows))


def found(*concepts: str, kind: str = "object") -> dict[str, list[str]]:
    return other_names(Planted(), concepts, kind)


def test_the_plural_first_then_what_is_read_as_the_concept_closest_first() -> None:
    assert found("fox") == {"fox": ["foxes", "vixen", "vixens", "Fuchs"]}


def test_a_word_that_only_the_list_calls_a_synonym_is_none() -> None:
    assert "renard" in candidates("fox", "object")
    assert found("owl") == {"owl": ["owls"]}


def test_another_concept_of_the_run_is_no_other_name() -> None:
    assert found("fox", "Vixen")["fox"] == ["foxes", "vixens", "Fuchs"]


def test_artists_go_by_shorter_names_and_have_no_plural() -> None:
    assert found("Claude Monet", kind="style") == {"Claude Monet": ["Monet"]}
    assert found("spinning", kind="action") == {}


def test_there_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [f"fox{i}" for i in range(2 * MOST)]
    for name in many:
        monkeypatch.setitem(LIKE, name, ("fox", 0.9))
    monkeypatch.setattr("unlearn.prompts.other_names.synonyms", lambda word: list(many))
    assert len(found("fox")["fox"]) == MOST


def test_synonyms_go_both_ways_and_never_name_the_word_itself() -> None:
    assert "bunny" in synonyms("rabbit")
    assert "rabbit" in synonyms("Bunny")
    assert "rabbit" not in synonyms("Rabbit")
    assert synonyms("Zorvik") == []


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("mouse", "mice"),
        ("computer mouse", "computer mice"),
        ("police officer", "police officers"),
        ("policeman", "policemen"),
        ("woman", "women"),
        ("human", "humans"),
        ("scissors", "scissors"),
        ("knife", "knives"),
        ("tomato", "tomatoes"),
    ],
)
def test_plurals_that_the_rules_get_wrong(one: str, many: str) -> None:
    assert plural(one) == many


def test_what_is_said_of_them() -> None:
    assert told_names({"other_names": {"fox": ["foxes", "vixen"]}}) == (
        "Also taken out: foxes, vixen."
    )
    assert told_names({}) == ""
