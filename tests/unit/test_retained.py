"""The prompts of other things that the closed form keeps."""

from __future__ import annotations

import random

import pytest

from unlearn.prompts.paraphrases import plural
from unlearn.prompts.retained import Retained
from unlearn.prompts.vocabulary import VOCABULARY


def prompts(count: int, concepts=("fox",), kind="object", protect=()) -> list[str]:
    return Retained(concepts, kind, random.Random(0), protect).prompts(count)


@pytest.mark.parametrize("kind", ["object", "style", "character", "action"])
def test_they_name_no_concept_in_any_shape(kind: str) -> None:
    names = ("fox", "cat", "cats", "ink", "walking", "Mickey Mouse")
    taken = {word for name in names for word in name.lower().split()}
    words = [set(one.lower().replace(",", "").split()) for one in prompts(2000, names, kind)]
    assert not any(taken & own for own in words)


def test_the_first_is_empty_and_they_are_as_many_as_asked() -> None:
    for count in (1, 2, 7, 64):
        found = prompts(count)
        assert len(found) == count
        assert found[0] == ""


def test_plurals_styles_beside_things_pairs_and_invented_names_are_among_them() -> None:
    found = prompts(400)
    many = {plural(word) for word in VOCABULARY["object"]} - set(VOCABULARY["object"])
    styles = VOCABULARY["style"]
    known = {word for words in VOCABULARY.values() for name in words for word in name.split()}
    assert sum(one.split(" ")[-1] in many for one in found) > 20
    assert sum(any(f" {style}" in one for style in styles) for one in found) > 80
    assert sum(" and a " in one or " next to a " in one for one in found) > 20
    capitals = [word for one in found for word in one.split() if word[:1].isupper()]
    assert sum(word not in known for word in capitals) > 10


def test_every_second_one_has_a_protected_word() -> None:
    found = prompts(64, protect=("owl", "teapot"))
    assert all("owl" in one or "teapot" in one for one in found[1::2])


def test_an_erased_action_keeps_other_actions() -> None:
    found = prompts(300, ("spinning",), "action")
    actions = VOCABULARY["action"]
    assert sum(any(one.endswith(action) for action in actions) for one in found) > 50
