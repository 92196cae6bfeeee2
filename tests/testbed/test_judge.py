"""The judge: it names drawings, tells two things apart, and sees nothing in a smear."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from testbed.model import drawings
from testbed.model.augment import augmented, bent, disturbed, scrambled, smeared, torn
from testbed.model.judge import (
    COUNTS,
    HEADS,
    IGNORED,
    KINDS,
    SIZE,
    SURE,
    Judge,
    JudgeNetwork,
    halves,
    labels,
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


def test_it_counts_none_only_when_it_is_sure() -> None:
    """The heads give the logits that they are told; the others say what they see all the same."""
    judge = Judge.__new__(Judge)
    judge.size = SIZE
    shares = torch.tensor([[0.1, 0.3, SURE - 0.3], [0.06, 0.05, SURE - 0.01], [0.04, 0.05, 0.91]])
    named = {kind: torch.eye(len(words) + 1)[:3] for kind, words in KINDS.items()}
    judge.network = lambda x: {**named, "count": shares.log()}
    counts = [answer["count"] for answer in judge.answers(torch.ones(3, 128, 128, 3))]
    assert counts == ["two", "one", None]
    seen = judge(torch.ones(3, 128, 128, 3))
    assert [answer["object"] for answer in seen] == [*OBJECTS[:2], None]
    assert [len(things) for things in judge.things(torch.ones(3, 128, 128, 3))] == [2, 1, 0]


def test_weights_tell_their_network(tmp_path: Path, pictures: torch.Tensor) -> None:
    """Weights of before have no count, a narrower last layer, another size, and one way to look at
    a style; they take every picture for one thing."""
    file = tmp_path / "judge.safetensors"
    before = JudgeNetwork(heads=tuple(KINDS), last=6, early=False)
    save_file(before.state_dict(), file)
    judge = Judge(file)
    assert judge.size == 96
    assert [len(things) for things in judge.things(pictures[:3])] == [1, 1, 1]
    assert judge.features(pictures[:3]).shape == (3, 2 * 6 * 32)
    now = JudgeNetwork()
    save_file(now.state_dict(), file, {"size": str(SIZE)})
    judge = Judge(file)
    assert judge.size == SIZE
    assert set(judge.answers(pictures[:1])[0]) == set(HEADS)
    now.eval()
    x = torch.rand(2, 3, SIZE, SIZE)
    for head, values in now(x).items():
        assert torch.equal(values, judge.network(x)[head])


def test_a_style_is_told_by_early_layers_too() -> None:
    network = JudgeNetwork().eval()
    torch.nn.init.zeros_(network.heads["style"].weight[:, : 2 * 8 * 32])
    x = torch.rand(2, 3, SIZE, SIZE, requires_grad=True)
    logits = network(x)["style"]
    assert not torch.allclose(logits[0], logits[1])
    # A map without spread must not make a slope infinite.
    (slope,) = torch.autograd.grad(network(torch.ones_like(x) * x.mean())["style"].sum(), x)
    assert slope.isfinite().all()


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


def test_augmented_pictures_have_the_judges_size() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.ones(64, 3, 128, 128)
    x[:, :, 40:88, 20:40] = 0  # a bar left of the middle
    for images in (x, x[..., ::2, ::2]):
        some = augmented(images, generator)
        assert some.shape == (64, 3, SIZE, SIZE)
        assert some.min() >= 0
        assert some.max() <= 1
        dark = 1 - some.mean(1)
        left = dark[..., : SIZE // 2].sum((1, 2)) > dark[..., SIZE // 2 :].sum((1, 2))
        assert 16 < left.sum() < 48, "half of them are mirrored"


def test_torn_maps_are_pieces_of_four() -> None:
    """Each number says which piece of which map it is from."""
    pieces = torch.arange(4 * 3 * 16.0).view(4, 3, 1, 4, 4)
    maps = pieces.repeat_interleave(4, -1).repeat_interleave(4, -2)
    made = torn(maps, torch.Generator().manual_seed(0))
    assert made.shape == (3, 1, 16, 16)
    for i, one in enumerate(made):
        blocks = one.unfold(1, 4, 4).unfold(2, 4, 4).reshape(16, 16)
        assert (blocks == blocks[:, :1]).all(), "a piece stays whole"
        numbers = blocks[:, 0].tolist()
        assert len(set(numbers)) == 16
        assert set(numbers) <= set(pieces[:, i].flatten().tolist()), "and is of its own four"
        assert len({number // 48 for number in numbers}) > 1


def test_disturbed_latents_stay_near_their_drawing_and_scrambled_ones_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    blank = torch.randn(4, 16, 16, generator=generator)
    smooth = torch.nn.functional.interpolate(
        2 * torch.randn(64, 4, 4, 4, generator=generator), (16, 16), mode="bicubic"
    )
    z = blank + smooth

    def likeness(some: torch.Tensor) -> torch.Tensor:
        return torch.cosine_similarity((some - blank).flatten(1), smooth.flatten(1))

    assert likeness(disturbed(z, blank, generator)).min() > 0.8
    assert likeness(disturbed(z, blank, generator)).mean() > 0.95
    assert likeness(scrambled(z, blank, generator)).max() < 0.8
    white = blank.expand(8, 4, 16, 16)
    assert torch.equal(scrambled(white, blank, generator), white), "nothing comes from the edges"
    assert torch.allclose(bent(smooth, torch.zeros(64, 1, 1, 1), generator), smooth, atol=1e-5)


@pytest.mark.usefixtures("host")
def test_batches_show_every_kind_as_drawn_and_worn() -> None:
    from testbed.model.train_judge import SHARES, JudgeBatches
    from testbed.model.worn import Worn

    assert sum(map(sum, SHARES.values())) == pytest.approx(1)
    pairs = [("fox", "noto"), ("owl", "noto"), ("ogre", "ink"), ("Zorvik", None), ("Mirabo", None)]
    images = np.full((len(pairs), 128, 128, 3), 250, np.uint8)
    names = [("fox",), ("Zorvik",), ("ogre",), ("fox", "owl"), ()]
    styles = ["noto", None, "ink", "noto", None]
    worn = Worn(np.full((5, SIZE, SIZE, 3), 100, np.uint8), list(zip(names, styles)), [()] * 5)
    batches = JudgeBatches(images, pairs, worn, 48, seed=0)
    x, right = next(batches)
    assert x.shape == (len(right["count"]), 3, SIZE, SIZE)
    assert 46 <= len(x) <= 52
    is_worn = x.mean((1, 2, 3)) < 0.75  # the dark ones, though their corners are white
    for half in (right["count"][is_worn], right["count"][~is_worn]):
        assert set(half.tolist()) == {0, 1, 2}
    named = set(right["object"].tolist()) - {IGNORED}
    assert named <= {*map(OBJECTS.index, ("fox", "owl")), len(OBJECTS)}
    assert {OBJECTS.index("fox"), len(OBJECTS)} <= named
    smears = right["count"] == len(COUNTS)
    assert (right["style"][smears] == len(STYLES)).all()
    assert batches.names == ["Mirabo", "Zorvik", "fox", "ogre", "owl"]
    assert (right["name"][right["count"] != 0] == IGNORED).all(), "two things, or nothing"
    asked = right["name"][right["count"] == 0]
    assert set(asked.tolist()) == set(range(5))
    foxes = right["object"][right["count"] == 0] == OBJECTS.index("fox")
    assert ((asked == 2) == foxes).all()


@pytest.mark.usefixtures("host")
def test_the_trial_judge_sees_nothing_made_of_what_it_must_not() -> None:
    from testbed.model.worn import Worn

    shown = [(("fox",), "noto"), (("fox", "owl"), "ink"), (("ogre",), "flat"), ((), None)]
    sources = [(0,), (1, 2), ("ogre",), ()]
    worn = Worn(np.arange(4), shown, sources)
    assert worn.made_of({2, "ogre"}, wanted=False).images.tolist() == [0, 3]
    unseen = worn.made_of({2, "ogre"})
    assert (unseen.images.tolist(), unseen.shown) == ([1, 2], shown[1:3])


@pytest.mark.usefixtures("host")
def test_the_judge_goes_on_from_the_trial_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from testbed.model import train_judge
    from testbed.model.data import Drawings
    from testbed.model.worn import Worn

    names, styles = ["fox", "ogre", "Zorvik"], ["noto", "ink", None]
    images = np.full((3, 128, 128, 3), 200, np.uint8)
    shown = [*(((n,), s) for n, s in zip(names, styles)), (("fox", "owl"), "noto"), ((), None)]
    worn = Worn(np.full((5, SIZE, SIZE, 3), 100, np.uint8), shown, [()] * 5)
    seen = []
    pairs = list(zip(names, styles))
    monkeypatch.setattr(train_judge, "WEIGHTS", tmp_path / "weights" / "judge.safetensors")
    monkeypatch.setattr(
        train_judge, "examples", lambda trial: seen.append(trial) or (images, pairs)
    )
    monkeypatch.setattr(train_judge.data, "load", lambda: Drawings(images, names, styles))
    monkeypatch.setattr(train_judge, "unseen_icons", list)
    monkeypatch.setattr(train_judge, "worn", lambda folder, unseen: worn)
    monkeypatch.setattr(train_judge, "accuracy", lambda judge, worn: {"object": 1.0})

    batch = 8 * train_judge.WORKERS
    train_judge.train_judge(tmp_path, steps=2, batch=batch, trial=True)
    assert not train_judge.WEIGHTS.exists(), "the trial judge is not kept"
    trial = Judge(tmp_path / "judge-trial.safetensors")
    train_judge.train_judge(tmp_path, steps=1, batch=batch)
    judge = Judge(train_judge.WEIGHTS)
    assert seen == [True, False]
    assert judge.size == SIZE
    for name, weight in judge.network.named_parameters():
        start = trial.network.get_parameter(name)
        assert (weight - start).abs().max() < 2e-3, f"one step of warm-up moves {name} little"
    assert set(judge.network.heads) == set(HEADS), "the head for all names is not kept"
    assert sorted(file.name for file in tmp_path.glob("*.pt")) == [
        "judge-further.pt",
        "judge-trial.pt",
    ]
