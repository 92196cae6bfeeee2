"""The judge: it names drawings, tells two things apart, and sees nothing in a smear."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from testbed.model import drawings
from testbed.model.judge import (
    COUNTS,
    HEADS,
    IGNORED,
    KINDS,
    Judge,
    JudgeNetwork,
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


def test_it_names_drawings(judge: Judge, pictures: torch.Tensor) -> None:
    seen = judge(pictures)
    assert all(set(answer) == set(KINDS) for answer in seen)
    assert [answer["object"] for answer in seen] == CHOSEN
    assert sum(answer["style"] == "noto" for answer in seen) >= len(CHOSEN) - 1
    assert not any(answer["character"] for answer in seen)
    faces = judge(torch.stack([drawings.of(name)[0] for name in CHARACTERS]))
    assert [answer["character"] for answer in faces] == CHARACTERS
    assert not any(answer["object"] for answer in faces)


class Counting(Judge):
    """A judge that counts what it is told to, and names things by how dark they are."""

    def __init__(self, *counts: str | None) -> None:
        self.counts = list(counts)

    def answers(self, images: torch.Tensor) -> list[dict]:
        counts = [self.counts.pop(0) if self.counts else "one" for _ in images]
        return [
            {"object": f"{image.min():.1f}", "style": "ink", "character": None, "count": count}
            for image, count in zip(images, counts)
        ]


def test_each_of_two_things_is_named_and_a_smear_is_nothing() -> None:
    picture = torch.ones(3, 128, 128, 3)
    picture[:, 40:60, 10:20], picture[:, 70:80, 100:110] = 0.2, 0.5
    one, two, none = Counting("one", "two", None).things(picture)
    assert [thing["object"] for thing in one] == ["0.2"]
    assert [thing["object"] for thing in two] == ["0.2", "0.5"], "from left to right"
    assert none == []
    assert Counting(None)(picture[:1]) == [dict.fromkeys(KINDS)]


def test_weights_without_a_count_take_every_picture_for_one_thing(
    tmp_path: Path, pictures: torch.Tensor
) -> None:
    network = JudgeNetwork(heads=tuple(KINDS))
    save_file(network.state_dict(), tmp_path / "judge.safetensors")
    judge = Judge(tmp_path / "judge.safetensors")
    assert [len(things) for things in judge.things(pictures[:3])] == [1, 1, 1]
    save_file(JudgeNetwork().state_dict(), tmp_path / "counts.safetensors")
    assert set(Judge(tmp_path / "counts.safetensors").answers(pictures[:1])[0]) == set(HEADS)


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
