"""What each kind of concept has: its words, its sentences, its settings."""

import random
from typing import get_args

import pytest

from unlearn.core.kind import ANCHORS, QUALITIES, Kind
from unlearn.evaluate.classifier import CONDITIONAL_WEIGHT
from unlearn.evaluate.collateral import near_prompts
from unlearn.evaluate.detection import rivals
from unlearn.methods import few_shot
from unlearn.methods.parts import adversarial, solve_prompts
from unlearn.methods.parts import closed_form as closed_form_part
from unlearn.prompts.anchor_choice import chosen_anchors
from unlearn.prompts.common_words import COMMON_ACTIONS, COMMON_WORDS
from unlearn.prompts.sampler import PromptSampler
from unlearn.prompts.templates import SENTENCES, TASK_TEMPLATES, in_context, templates
from unlearn.prompts.vocabulary import VOCABULARY

KINDS: tuple[Kind, ...] = get_args(Kind)


@pytest.mark.parametrize(
    "table",
    [
        ANCHORS,
        CONDITIONAL_WEIGHT,
        SENTENCES,
        VOCABULARY,
        adversarial.TOKENS,
        solve_prompts.OVERSHOOT,
        closed_form_part.OVERSHOOT,
        few_shot.OVERSHOOT,
    ],
)
def test_every_kind_has_its_entry(table: dict) -> None:
    assert set(table) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_names_its_concept_in_every_sentence(kind: Kind) -> None:
    every = (SENTENCES[kind], *templates(kind), *TASK_TEMPLATES[kind])
    assert all("{}" in sentence for sentence in every)
    assert len(set(every)) >= 15


def test_sentences_of_an_action_say_who_does_it() -> None:
    rng = random.Random(0)
    said = {in_context(rng, "action", "jazz dance", "horse") for _ in range(50)}
    assert all("horse" in text and text.endswith("jazz dance") for text in said)
    words = PromptSampler(["jazz dance"], "action", rng)
    sentences = words.sentences(60)
    assert all("{}" in sentence for sentence in sentences)
    things = [s for s in sentences if set(s.replace(",", " ").split()) & set(COMMON_WORDS)]
    assert len(things) >= 30
    assert not any("style" in sentence for sentence in sentences)


def test_other_actions_are_held_where_one_is_erased() -> None:
    def shares(kind: Kind, protect: tuple[str, ...] = ()) -> list[str]:
        return PromptSampler(["spin"], kind, random.Random(0), protect=protect).others(400)

    def naming(prompts: list[str], words: tuple[str, ...]) -> list[str]:
        return [text for text in prompts if any(text.endswith(word) for word in words)]

    assert len(naming(shares("action"), COMMON_ACTIONS)) > 60
    assert len(naming(shares("object"), COMMON_ACTIONS)) < 20
    protected = naming(shares("action", ("bounce",)), ("bounce",))
    assert len(protected) > 150
    assert any("person, bounce" in text for text in protected), "it may be an action"
    assert any("photo of a bounce" in text for text in protected), "or a thing"


def test_a_quality_of_a_thing_leaves_the_thing() -> None:
    """For a style and an action no other one is chosen: the thing without it is what remains."""
    assert QUALITIES == ("style", "action")
    for kind in QUALITIES:
        found = chosen_anchors(None, ["spin", "ink"], kind)  # type: ignore[arg-type]
        assert found == dict.fromkeys(["spin", "ink"], ANCHORS[kind])


def test_what_is_near_to_an_action_are_things_and_other_actions() -> None:
    near = near_prompts(["walking"], "action")
    assert near == [
        "a photo of a cat",
        "a photo of a house",
        "a person, sitting",
        "a person, jumping",
    ]
    others = rivals(["walking"], "action")
    assert others[0] == "standing still"
    assert len(others) > 8
    assert "walking" not in others
