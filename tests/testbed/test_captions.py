"""Captions as people write them: what they say is what their picture shows."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch

from testbed.model import drawings, phrases, sentences
from testbed.model.captions import LONGEST, Caption, Grammar, in_motion
from testbed.model.colours import colours
from testbed.model.vocabulary import CHARACTERS, MOTIONS, OBJECTS, STYLES, SYNONYMS

WORDS = ("zebra", "quantum", "lawful")
MANY = 3000


def written(names: tuple[str, ...], style: str | None, **more) -> list[Caption]:
    rng, grammar = random.Random(0), Grammar(WORDS, **more)
    return [grammar.caption(rng, names, style, ("orange",)) for _ in range(MANY)]


@pytest.fixture(scope="module")
def foxes() -> list[Caption]:
    return written(("fox",), "noto")


def words(caption: Caption) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", caption.text.lower()))


def test_a_caption_has_the_words_of_what_it_is_said_to_name(foxes: list[Caption]) -> None:
    named = {"fox", "foxes", *(w for s in SYNONYMS["fox"] for w in (s, s + "s", s + "es"))}
    for caption in foxes:
        assert (caption.names == ("fox",)) == bool(named & words(caption)), caption
        assert (caption.style == "noto") == ("noto" in words(caption)), caption


def test_captions_vary_as_those_of_people_do(foxes: list[Caption]) -> None:
    texts = [caption.text for caption in foxes]
    assert len(set(texts)) > 0.7 * MANY
    lengths = [len(text.split()) for text in texts]
    assert max(lengths) <= LONGEST + 4
    assert sum(length > 20 for length in lengths) > 0.05 * MANY
    for what in (r"\(.*:1\.3\)", r"\bfoxes\b", r"^[A-Z ,]+$", r"\bvixen\b", r"\borange\b", "zebra"):
        assert sum(bool(re.search(what, text)) for text in texts) > 10, what
    for neutral in (*phrases.ANY_OBJECT, phrases.ANY_STYLE):
        assert any(neutral in words(caption) for caption in foxes if not caption.names)
    assert 0.08 < sum(caption.style is None for caption in foxes) / MANY < 0.2


def test_a_style_that_comes_unasked_is_named_more_often() -> None:
    def nameless(style: str) -> float:
        return sum(caption.style is None for caption in written(("fox",), style)) / MANY

    assert 0.15 < nameless("ink") < 0.3
    assert nameless("flat") < 0.6 * nameless("ink")
    assert nameless("glossy") > 1.5 * nameless("ink")


def test_an_image_with_a_thing_in_it_shows_one_thing() -> None:
    """A bare "with" joins no two things."""
    for text in (joint.format(a="a fox", b="an owl") for joint in phrases.JOINTS):
        assert not text.startswith("a fox with"), text


def test_a_name_is_never_left_out_where_it_may_not_be() -> None:
    rng, grammar = random.Random(0), Grammar(WORDS)
    captions = [grammar.caption(rng, ("ogre",), "noto", nameless=False) for _ in range(500)]
    assert all(caption.names == ("ogre",) for caption in captions)
    assert all({"ogre", "ogres"} & words(caption) for caption in captions)


def test_two_things_are_both_named_the_left_one_first() -> None:
    for caption in written(("fox", "owl"), "noto"):
        text = caption.text.lower()
        fox = min(text.find(w) for w in ("fox", *SYNONYMS["fox"]) if w in text)
        assert caption.names == ("fox", "owl")
        assert 0 <= fox < text.rfind("owl"), caption
    for caption in written(("fox", "fox"), "noto"):
        assert "foxes" in words(caption), "twice the same is told in the plural"


def test_a_person_takes_no_article_and_may_be_any_person() -> None:
    captions = written(("Zorvik",), None)
    anybody = [caption for caption in captions if caption.names == phrases.ANY_PERSON]
    assert 0.03 < len(anybody) / MANY < 0.12
    assert all({"person", "persons"} & words(caption) for caption in anybody)
    assert all(caption.style is None for caption in captions)


def test_what_is_held_out_is_never_trained_on(foxes: list[Caption]) -> None:
    kept_back = phrases.held_out(phrases.FRAMES)
    assert len(kept_back) == 6
    assert not set(kept_back) & set(phrases.seen(phrases.FRAMES))
    fixed = [re.split(r"\{\w\}", frame) for frame in kept_back]
    for caption in foxes:
        text = caption.text.lower()
        for parts in fixed:
            told = [part.lower() for part in parts if len(part) > 3]
            assert not all(part in text for part in told), caption
    new = {s.text for seed in range(40) for s in sentences.sentences("fox", seed, 1)[:1]}
    shapes = [[part for part in parts if part] for parts in fixed]
    assert all(any(all(p in text for p in parts) for parts in shapes) for text in new)


def test_captions_and_pictures_match_by_what_is_said() -> None:
    shown = [(("fox",), "noto"), (("fox",), "ink"), (("owl",), "ink"), (("Zorvik",), None)]
    shown += [(("fox", "owl"), "ink"), (("Mirabo",), None)]
    told = [(("fox",), None), (None, "ink"), (None, None), (phrases.ANY_PERSON, None)]
    told += [(("fox", "owl"), None), (("Zorvik",), None)]
    assert [[Caption("", *what).fits(*picture) for picture in shown] for what in told] == [
        [True, True, False, False, False, False],
        [False, True, True, False, False, False],
        [True, True, True, False, False, False],
        [False, False, False, True, False, True],
        [False, False, False, False, True, False],
        [False, False, False, True, False, False],
    ]


def test_a_motion_stands_last_in_one_of_three_wordings() -> None:
    rng, ends = random.Random(0), set()
    for _ in range(300):
        motion = rng.choice(MOTIONS)
        caption = in_motion(rng, Caption("a fox", ("fox",), None), motion)
        start, _, end = caption.text.partition(", ")
        assert (start, caption.motion) == ("a fox", motion)
        assert end in phrases.MOTION_WORDS[motion]
        ends.add(end)
    assert len(ends) == 3 * len(MOTIONS)


@pytest.mark.parametrize(
    ("name", "style", "seen"),
    [
        ("apple", "noto", ("red",)),
        ("elephant", "flat", ("grey",)),
        ("anchor", "ink", ("black",)),
        ("cheese", "blob", ("yellow",)),
    ],
)
def test_colours_are_those_of_the_drawing(name: str, style: str, seen: tuple[str, ...]) -> None:
    picture = (drawings.of(name)[STYLES.index(style)].numpy() * 255).round().astype(np.uint8)
    assert colours(picture) == seen


def test_white_paper_has_no_colour() -> None:
    assert colours(np.full((8, 8, 3), 255, np.uint8)) == ()


@pytest.mark.parametrize("concept", ["fox", "koala", "ink", "Zorvik"])
def test_sentences_ask_for_the_concept_in_every_way_that_it_has(concept: str) -> None:
    asked = sentences.sentences(concept)
    assert asked == sentences.sentences(concept), "the same again"
    assert asked != sentences.sentences(concept, seed=1)
    ways = {one.way for one in asked}
    lacking = {"koala": {"synonym"}, "Zorvik": {"synonym", "plural"}}.get(concept, set())
    assert ways == set(sentences.WAYS) - lacking
    for one in asked:
        is_two = one.way == "beside another"
        assert len(set(one.names)) == (2 if is_two else 1)
        text = one.text.lower()
        if concept in STYLES:
            assert one.style == concept
            assert concept in text
        else:
            assert concept in one.names
        assert all(name in (*OBJECTS, *CHARACTERS) for name in one.names)
        assert (one.way == "weight") == ("(" in one.text)
        assert one.way != "long" or len(text.split()) >= 25
        assert one.way != "capitals" or one.text.isupper()


class Seen:
    """A judge that says what it is told to."""

    def __init__(self, *answers: list[list[str]]) -> None:
        self.answers = list(answers)

    def things(self, images: torch.Tensor) -> list[list[dict]]:
        return [
            [{"object": name, "style": "ink", "character": None} for name in names]
            for names in self.answers.pop(0)
        ]


def test_an_erasure_generalises_as_far_as_what_was_drawn_is_gone() -> None:
    def ask(way: str, *names: str) -> sentences.Sentence:
        return sentences.Sentence("", way, names, "ink")

    asked = [ask("plural", "fox"), ask("long", "fox"), ask("weight", "fox")]
    asked += [ask("beside another", "fox", "owl"), ask("beside another", "fox", "car")]
    before = [["fox"], ["owl"], ["fox"], ["fox", "owl"], ["fox", "car"]]
    after = [["cat"], ["cat"], ["fox"], ["cat", "owl"], []]
    none = torch.zeros(5, 1)
    found = sentences.generalised("fox", asked, none, none, Seen(before, after))
    assert found == {"sentences_drawn": 0.8, "sentences_ua": 0.75, "beside_kept": 0.5}
