"""What a training shows of itself while it runs: one bar, the phases by name, the time left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from graphs import loader, node
from node_values import DOMAIN_CORRECTION
from prompts import executed, load, said

pytestmark = pytest.mark.usefixtures("node_body", "small_runs")


@pytest.fixture
def output(host: ModuleType, tmp_path: Path) -> Iterator[None]:
    """An output folder of its own: nothing was trained before."""
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    yield
    folder_paths.set_output_directory(before)


@pytest.fixture
def bar(host: ModuleType) -> Iterator[list[tuple[float, float, Any]]]:
    """What the host is told of progress: (value, total, preview)."""
    import comfy.utils

    told, before = [], comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(
        lambda value, total, preview, **_: told.append((value, total, preview))
    )
    yield told
    comfy.utils.set_progress_bar_global_hook(before)


def test_a_whole_run_has_one_bar_named_phases_and_an_early_picture(
    pack: ModuleType, output: None, bar: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nodes

    load(nodes, "nodes_preview_any")
    known = pack.unlearn.evaluate.known
    monkeypatch.setattr(known.Looked, "unknown", lambda *_: "")  # chance in so small pictures
    monkeypatch.setattr(known, "DRAWS", (2, 2))
    monkeypatch.setattr(known, "STEPS", 2)
    values = {**DOMAIN_CORRECTION, "iterations": 4, "filename_prefix": "x"}
    parts = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2]}
    prompt = loader() | {
        "unlearn": node("DomainCorrectionUNetUnlearn", **parts, **values),
        "show": node("PreviewAny", source=["unlearn", 4]),
    }
    said()
    _, error = executed(prompt, "show")
    assert error is None
    lines = [text.partition("\n")[2] for text in said() if text.startswith("unlearning fox\n")]
    begun = list(dict.fromkeys(line.split(":")[0] for line in lines))
    assert begun == ["looking first", "erasing", "warm-up", "saving", "measuring what is left"]
    steps = [line for line in lines if ": step " in line]
    assert steps[0].startswith("warm-up: step 1 of at most 4, loss ")
    assert steps[2].startswith("erasing: step 3 of at most 4, loss ")
    assert any(line.startswith("erasing: drawing pictures of the anchor, 0 of") for line in lines)
    shown = [(value, total, preview) for value, total, preview in bar if total == 1000]
    values = [value for value, *_ in shown]
    assert values == sorted(values)
    assert values[-1] == 1000
    pictures = [place for place, (*_, preview) in enumerate(shown) if preview]
    assert values[pictures[0]] < 100, "before it is trained"
    # What is looked at first, the verdict does not draw again.
    assert len([line for line in lines if "drawing fox, original, 0 of 4" in line]) == 1


def test_the_time_left_follows_the_pace(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    course_file, now = pack.nodes.course, [0.0]
    monkeypatch.setattr(course_file.time, "monotonic", lambda: now[0])
    course = course_file.Course()
    course.enter("looking", 0.1, 0.0)
    course.stage("drawing", 0, 4)
    assert course.left(0, 4) == ""
    now[0] = 3.0
    course.stage("drawing", 1, 4)
    assert course.left(1, 4) == ", 9 s left of this"
    course.enter("erasing", 0.9, 100.0)
    assert course.place == pytest.approx(0.1)
    course.step(7, 120)  # a run that goes on
    assert course.left(7, 120) == ""
    now[0] += 10.0
    course.step(9, 120)
    assert course.left(9, 120) == ", at most 11 min left"  # 111 steps of 5 s, and 100 s
    assert course.left(120, 120) == ""
    assert course_file.told(0.2) == "1 s"
    assert course_file.told(7800) == "2 h 10 min"


def test_the_bar_never_goes_back_nor_beyond_its_end(pack: ModuleType) -> None:
    course, places = pack.nodes.course.Course(), []

    def noted(*_: Any) -> None:
        places.append(course.place)

    noted(course.enter("looking", 0.1, 0.0))
    for what in ("drawing", "judging", "drawing", "judging", "judging"):
        for done in (0, 2, 4):
            noted(course.stage(what, done, 4))
    noted(course.enter("erasing", 0.9, 0.0))
    for what in map(str, range(30)):
        noted(course.stage(what, 1, 1))
    for step in (1, 60, 120, 1, 2, 3):  # a second loop begins anew
        noted(course.step(step, 120 if step > 3 else step + 3))
    assert places == sorted(places)
    assert places[-1] <= 0.9
    assert places[-3:] == sorted(set(places[-3:])), "the second loop moves it, too"
    noted(course.enter("", 1.0, 0.0))
    assert places[-1] == pytest.approx(0.9)


def test_an_early_picture_is_the_only_one_before_the_steps(pack: ModuleType) -> None:
    drawn: list[int] = []

    def draw() -> torch.Tensor:
        drawn.append(1)
        return torch.zeros(1, 8, 8, 3)

    progress = pack.nodes.progress.Progress(None, "unlearning cat", draw)
    for done in range(5):
        progress.stage("drawing", done, 4)
    assert len(drawn) == 1
