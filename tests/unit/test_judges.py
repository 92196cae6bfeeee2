"""Judges: what each counts, where others come from, and what is said where one is missing."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nude_net
import pytest
import torch

from testbed.model import drawings, samples
from unlearn.core.progress import Progress
from unlearn.evaluate.detection import Seen
from unlearn.evaluate.judges import nudenet, original, registry
from unlearn.evaluate.judges.judge import Judge, Question, judged
from unlearn.evaluate.judges.registry import as_judge, judge_of, keys, register

ROOT = Path(__file__).resolve().parents[2]
RED, GREEN, BLUE, WHITE, BLACK = torch.tensor(
    [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 1.0, 1.0], [0, 0, 0]]
)


def question(*colours: torch.Tensor, **more: Any) -> Question:
    """About pictures (N, 4, 6, 3), each of one colour."""
    pictures = torch.stack([colour.expand(4, 6, 3) for colour in colours])
    return Question(pictures, ["nudity"], "object", lambda: nullcontext(None), **more)


def shown(judge: Judge, *colours: torch.Tensor, **more: Any) -> list[bool]:
    return [one.shown for one in judged(judge, question(*colours, **more))]


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered is forgotten afterwards."""
    monkeypatch.setattr(registry, "JUDGES", dict(registry.JUDGES))


# NudeNet


def test_nudenet_counts_the_exposed_parts_above_its_threshold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nude_net.installed(monkeypatch)
    colours = RED, GREEN, BLUE, WHITE, BLACK
    assert shown(judge_of("nudenet"), *colours) == [True, False, False, False, False]
    assert shown(judge_of("nudenet-all"), *colours) == [True, False, True, False, False]


def test_the_record_says_what_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nudenet.metadata, "version", lambda name: {"nudenet": "3.4.2"}[name])
    found = judge_of("nudenet").record()
    assert json.loads(json.dumps(found)) == found
    assert (found["key"], found["name"], found["version"]) == ("nudenet", "NudeNet", "3.4.2")
    assert found["settings"]["threshold"] == 0.45
    assert "BELLY_EXPOSED" not in found["settings"]["classes"]
    # The nine of nudity_eval.py in the released code of UnlearnDiffAtk.
    more = judge_of("nudenet-all").record()["settings"]["classes"]
    assert len(more) == len(set(more)) == 9
    assert all(name.endswith("_EXPOSED") for name in more)
    assert original.JUDGE.record() == {"key": "original", "name": "the original model"}


def test_nudenet_tells_how_far_it_is_and_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    nude_net.installed(monkeypatch)
    told: list[tuple[int, int]] = []

    class Cancelling(Progress):
        def stage(self, what: str, done: int, total: int, leader: str = "") -> None:
            told.append((done, total))
            if done == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shown(judge_of("nudenet"), RED, RED, RED, progress=Cancelling())
    assert told == [(1, 3), (2, 3)]


def one_sentence(judge: Judge) -> str:
    with pytest.raises(ValueError, match=r"another judge|install a newer") as error:
        judge.check()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_where_nudenet_is_missing_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nude_net.missing(monkeypatch)
    said = one_sentence(judge_of("nudenet"))
    assert said.startswith("NudeNet is not installed.")
    assert "AGPL-3.0" in said
    assert f'"{sys.executable}" -m pip install "nudenet>=3.4"' in said


def test_a_broken_or_an_old_nudenet_is_no_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("libGL.so.1: cannot open\nmore")

    nude_net.installed(monkeypatch, broken)
    assert "cannot be loaded (libGL.so.1: cannot open)" in one_sentence(judge_of("nudenet"))
    monkeypatch.setattr(nudenet.metadata, "version", lambda name: "2.0.9")
    assert one_sentence(judge_of("nudenet")).startswith("NudeNet 2.0.9 is too old")


def test_nudenet_is_imported_only_when_it_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    class Finder:
        def find_spec(self, name: str, *_: Any) -> None:
            looked.append(name)

    monkeypatch.delitem(sys.modules, "nudenet", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert keys()[:3] == ["original", "nudenet", "nudenet-all"]
    judge_of("nudenet").record()
    assert "nudenet" not in looked
    monkeypatch.setattr(sys, "path", [])  # so that it is nowhere
    one_sentence(judge_of("nudenet"))
    assert "nudenet" in looked


@pytest.mark.skipif(
    not importlib.util.find_spec("nudenet"), reason="the optional package nudenet is not installed"
)
def test_the_real_nudenet_sees_nothing_in_drawings() -> None:
    pictures = torch.cat([drawings.of(concept).float() for concept in samples.CHOSEN])
    asked = Question(pictures, ["nudity"], "object", lambda: nullcontext(None))
    for key in ("nudenet", "nudenet-all"):
        assert not any(one.shown for one in judged(judge_of(key), asked))


# Any judge


def test_a_picture_that_is_not_finite_shows_nothing_and_is_not_asked_for() -> None:
    asked = []
    judge = Judge("all", "All", lambda q: [asked.append(len(q.pictures)) or True] * len(q.pictures))
    broken = BLACK.clone()
    broken[1] = float("nan")
    assert shown(judge, RED, broken, GREEN) == [True, False, True]
    assert shown(judge, broken) == [False]
    assert asked == [2]


def test_a_judge_answers_once_for_each_picture() -> None:
    with pytest.raises(ValueError, match="The judge Some answered 1 times for 2 pictures"):
        judged(Judge("some", "Some", lambda q: [True]), question(RED, GREEN))
    told = [Seen(True, 0.25), Seen(False, 0.0)]
    assert judged(Judge("own", "Own", lambda q: told), question(RED, GREEN)) == told


def test_the_original_model_is_asked_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []

    def remains(*own: Any, **more: Any) -> list[Seen]:
        asked.append((own, more))
        return [Seen(True, 0.5)]

    monkeypatch.setattr(original, "remains", remains)
    ask = question(RED, others=["cat"], things=["dog"], draws=7, seed=3)
    assert judged(judge_of("original"), ask) == [Seen(True, 0.5)]
    ((own, more),) = asked
    assert own[2:] == (["nudity"], "object")
    more.pop("progress")
    assert more == {"others": ["cat"], "things": ["dog"], "draws": 7, "seed": 3}


# From elsewhere


def red(question: Any) -> list[bool]:
    return [bool((picture[..., 0] > 0.9).all()) for picture in question.pictures]


@pytest.mark.usefixtures("own_registry")
def test_a_judge_can_be_registered() -> None:
    one = SimpleNamespace(name="Red", settings={"above": (0.9,)}, look=red)
    judge = register(one, "red")
    assert judge is judge_of("red")
    assert keys()[-1] == "red"
    assert shown(judge, RED, GREEN) == [True, False]
    assert judge.record() == {"key": "red", "name": "Red", "settings": {"above": [0.9]}}
    judge.check()
    assert register(one, "red") == judge, "again, as where a notebook's cell runs twice"
    with pytest.raises(ValueError, match="There is a judge 'red' already"):
        register(SimpleNamespace(name="Other", settings={}, look=shown), "red")
    with pytest.raises(ValueError, match="There is a judge 'original' already"):
        register(one, "original")
    assert judge_of("original") is original.JUDGE


@pytest.mark.parametrize(
    ("key", "given", "why"),
    [
        ("", SimpleNamespace(name="A", look=red), "no key"),
        ("a", SimpleNamespace(look=red), "no name"),
        ("a", SimpleNamespace(name="A"), r"no function look\(question\)"),
        ("a", SimpleNamespace(name="A", look=red, settings=[1]), "no dictionary"),
        ("a", SimpleNamespace(name="A", look=red, settings={"a": float("nan")}), "no dictionary"),
    ],
)
def test_what_is_no_judge_is_refused(key: str, given: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        as_judge(key, given)


def test_the_judge_of_the_page_judges() -> None:
    page = (ROOT / "docs" / "judges.md").read_text("utf-8")
    code = re.search(r"^```python\n(class .+?)^```$", page, re.M | re.S).group(1)
    made: dict[str, Any] = {}
    exec(code, made)
    assert shown(as_judge("red", made["RED"]), RED, BLACK) == [True, False]
    names = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert names == list(registry.JUDGES)


def package(folder: Path, name: str, code: str, points: str) -> None:
    """An installed package with entry points."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{points}\n")


def test_an_installed_package_can_offer_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs nothing of this pack, and is imported when it is asked for."""
    code = """
class Dark:
    name, settings = "Dark", {"below": 0.1}
    def look(self, question):
        return [bool(picture.max() < 0.1) for picture in question.pictures]
JUDGE = Dark()
"""
    points = "dark = dark_pictures:JUDGE\nmissing = dark_pictures:NONE\noriginal = dark_pictures:X"
    package(tmp_path, "dark_pictures", code, points)
    monkeypatch.syspath_prepend(tmp_path)
    assert {"dark", "missing"} <= set(keys())
    assert keys().count("original") == 1, "nobody takes its place"
    assert judge_of("original") is original.JUDGE
    assert "dark_pictures" not in sys.modules
    dark = judge_of("dark")
    assert shown(dark, RED, BLACK) == [False, True]
    assert dark.record() == {"key": "dark", "name": "Dark", "settings": {"below": 0.1}}
    with pytest.raises(ValueError, match="'missing' cannot be loaded from dark_pictures:NONE"):
        judge_of("missing")
    monkeypatch.delitem(sys.modules, "dark_pictures")


def test_a_judge_that_is_not_here_is_named() -> None:
    with pytest.raises(ValueError, match=r"no judge 'dark' here; .* one of: original, nudenet, "):
        judge_of("dark")
