"""The judge: it counts things, tells two apart, and says of a smear that it shows nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from testbed.model import drawings
from testbed.model.judge import (
    COUNTS,
    HEADS,
    IGNORED,
    KINDS,
    Judge,
    halves,
    labels,
    smeared,
)
from testbed.model.vocabulary import CHARACTERS, OBJECTS, STYLES

CHOSEN = OBJECTS[::4]
STYLE = STYLES.index("noto")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """A drawing of each of CHOSEN, (N, 128, 128, 3)."""
    return torch.stack([drawings.of(name)[STYLE] for name in CHOSEN])


def beside(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Pictures (N, 128, 128, 3) of two drawings side by side, each of half the width."""
    both = []
    for side in (left, right):
        small = torch.nn.functional.interpolate(side.movedim(-1, 1), (64, 64), mode="area")
        both.append(torch.nn.functional.pad(small, (0, 0, 32, 32), value=1.0))
    return torch.cat(both, -1).movedim(1, -1)


def test_it_names_drawings(judge: Judge, pictures: torch.Tensor) -> None:
    seen = judge(pictures)
    assert all(set(answer) == set(KINDS) for answer in seen)
    assert [answer["object"] for answer in seen] == CHOSEN
    assert sum(answer["style"] == "noto" for answer in seen) >= len(CHOSEN) - 1
    assert not any(answer["character"] for answer in seen)
    faces = judge(torch.stack([drawings.of(name)[0] for name in CHARACTERS]))
    assert [answer["character"] for answer in faces] == CHARACTERS
    assert not any(answer["object"] for answer in faces)


def test_it_counts_things_and_names_each(judge: Judge, pictures: torch.Tensor) -> None:
    assert [len(things) for things in judge.things(pictures)] == [1] * len(CHOSEN)
    seen = judge.things(beside(pictures, pictures.roll(1, 0)))
    right = [
        [thing["object"] for thing in things] == [CHOSEN[i], CHOSEN[i - 1]]
        for i, things in enumerate(seen)
    ]
    assert sum(right) >= len(CHOSEN) - 1
    twice = judge.things(beside(pictures, pictures))
    assert sum(len(things) == 2 for things in twice) >= len(CHOSEN) - 1


def test_a_smear_shows_nothing(judge: Judge, pictures: torch.Tensor) -> None:
    bent = smeared(pictures.movedim(-1, 1), torch.Generator().manual_seed(0)).movedim(1, -1)
    nothing = [not things for things in judge.things(bent)]
    assert sum(nothing) >= len(CHOSEN) - 1
    for answer, is_nothing in zip(judge(bent), nothing):
        assert not is_nothing or set(answer.values()) == {None}
    mean = pictures.mean(0).expand(2, -1, -1, -1)
    assert judge.things(mean) == [[], []]


def test_halves_are_the_two_things() -> None:
    picture = torch.ones(128, 128, 3)
    picture[40:60, 10:20] = 0.0
    picture[70:80, 100:110] = 0.5
    left, right = halves(picture)
    assert left.shape == right.shape == (72, 72, 3)
    assert (left.min(), right.min()) == (0.0, 0.5)
    assert (left == 0.0).sum() == 20 * 10 * 3
    assert (right == 0.5).sum() == 10 * 10 * 3


def test_right_answers_of_one_of_two_and_of_none() -> None:
    none = {head: len(words) for head, words in HEADS.items()}
    fox, noto, zorvik = OBJECTS.index("fox"), STYLES.index("noto"), CHARACTERS.index("Zorvik")
    one, two = COUNTS.index("one"), COUNTS.index("two")
    assert labels(("fox",), "noto") == {**none, "object": fox, "style": noto, "count": one}
    assert labels(("Zorvik",), None) == {**none, "character": zorvik, "count": one}
    assert labels(("ogre",), "noto") == {**none, "style": noto, "count": one}
    assert labels(("fox", "fox"), "noto") == {**none, "object": fox, "style": noto, "count": two}
    which = labels(("fox", "owl"), "noto")
    assert which == {**none, "object": IGNORED, "style": noto, "count": two}
    assert labels(("Zorvik", "Mirabo"), None)["character"] == IGNORED
    assert labels((), None, smear=True) == none


def test_smears_of_many_drawings_are_none_of_them() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(16, 3, 128, 128, generator=generator)
    bent = smeared(x, generator)
    assert bent.shape == x.shape
    assert bent.min() >= 0
    assert bent.max() <= 1
    apart = (bent[:, None] - x[None]).abs().mean((2, 3, 4)).numpy()
    assert np.min(apart) > 0.05
