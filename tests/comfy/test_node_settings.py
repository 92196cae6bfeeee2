"""What the training nodes make of their widgets: a step or two, small, and what the record says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from node_values import DOMAIN_CORRECTION, FEW_SHOT, KEY_STEP, PICTURES
from small_erasures import run

from unlearn.methods.parts.adversarial import SECONDS
from unlearn.render.sheet import DARK

pytestmark = pytest.mark.usefixtures("node_body", "small_runs")

BAND = torch.tensor([235, 240, 250]) / 255  # behind the steps that were trained on


@pytest.fixture(autouse=True)
def output(host: ModuleType, tmp_path: Path) -> Iterator[None]:
    """An output folder of its own: nothing was trained before."""
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    yield
    folder_paths.set_output_directory(before)


@pytest.fixture
def unlearn(pack: ModuleType, parts: tuple) -> Callable[..., tuple]:
    """unlearn(method, **inputs): what its node hands on."""
    given = {
        "few_shot": (parts, FEW_SHOT),
        "key_step": (parts[:2], KEY_STEP),
        "domain_correction": (parts[:2], DOMAIN_CORRECTION),
    }

    def unlearned(method: str, **inputs: Any) -> tuple:
        connected, values = given[method]
        node = nodes_of(pack)[method]
        return run(node, *connected, **{**values, "verdict": False, **inputs})

    return unlearned


def nodes_of(pack: ModuleType) -> dict[str, Any]:
    """The training nodes by their methods' names."""
    return {node.METHOD.name: node for node in pack.nodes.TRAINING}


@pytest.fixture
def asked(
    pack: ModuleType, unlearn: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """asked(method, **inputs): the settings that it would train with, which would take long."""

    class Asked(Exception):
        pass

    def settings_of(method: str, **inputs: Any) -> Any:
        at = 3 if method == "few_shot" else 2  # behind its pictures

        def train(*given: Any) -> None:
            raise Asked(given[at])

        node = nodes_of(pack)[method]
        monkeypatch.setattr(node, "METHOD", replace(node.METHOD, train=train))
        with pytest.raises(Asked) as stopped:
            unlearn(method, **inputs)
        return stopped.value.args[0]

    return settings_of


def record(outputs: tuple) -> dict[str, Any]:
    return outputs[1].record


# harden, harden_seconds


def test_hardening_takes_its_seconds_where_it_is_on(unlearn: Callable[..., tuple]) -> None:
    off = record(unlearn("few_shot", harden_seconds=1.0))
    on = record(unlearn("few_shot", harden_seconds=1.0, harden=True))
    assert (off["settings"]["harden"], on["settings"]["harden"]) == (0.0, 1.0)
    assert off["steps"] == 1
    assert on["steps"] > 1, "the steps of hardening come after the one asked for"
    assert on["measured"]["seconds"] >= 1


def test_the_network_is_hardened_as_long_as_is_said(asked: Callable[..., Any]) -> None:
    assert asked("key_step", mode="balanced", harden=True, harden_seconds=7.0).harden == 7.0
    assert asked("key_step", mode="balanced", harden=True).harden == SECONDS
    assert asked("key_step", mode="balanced", harden_seconds=7.0).harden == 0.0


@pytest.mark.parametrize("method", ["few_shot", "key_step"])
def test_what_the_paper_does_is_not_hardened(unlearn: Callable[..., tuple], method: str) -> None:
    with pytest.raises(ValueError, match="balanced") as error:
        unlearn(method, mode="paper", harden=True)
    assert "\n" not in str(error.value)
    assert record(unlearn(method, mode="paper", harden_seconds=9.0))["settings"]["harden"] == 0


# key_steps, start


@pytest.mark.parametrize(
    ("inputs", "setting", "start"),
    [
        ({"key_steps": "by task"}, None, 3),  # 14 of 50 steps
        ({"key_steps": "by task", "task": "style"}, None, 5),  # 24 of 50
        ({"key_steps": "from start"}, 7, 7),
        ({"key_steps": "from start", "start": 0}, 0, 0),
    ],
)
def test_key_steps_begin_where_the_widgets_say(
    unlearn: Callable[..., tuple], inputs: dict, setting: int | None, start: int
) -> None:
    *_, plot = outputs = unlearn("key_step", **inputs)
    made = record(outputs)
    assert (made["settings"]["start"], made["start"]) == (setting, start)
    assert "key_steps" not in made
    assert begins(plot) == pytest.approx(start / 10, abs=0.01)
    assert not line(plot).any()


@pytest.mark.slow
def test_key_steps_that_were_measured_are_drawn(
    pack: ModuleType, unlearn: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack.unlearn.methods.parts.key_step_search, "JUDGED_AT", (400.0, 600.0))
    *_, plot = outputs = unlearn("key_step", key_steps="auto", concept="guitar", steps=4)
    made = record(outputs)
    assert made["settings"]["start"] == "auto"
    found = made["key_steps"]
    assert found["points"] == list(range(5))
    assert (found["left"][0], found["left"][-1]) == (0.0, 1.0)
    assert begins(plot) == pytest.approx(made["start"] / 4, abs=0.01)
    assert line(plot).any()


def begins(plot: torch.Tensor) -> float:
    """Which share of the plot's width stands before the steps that were trained on."""
    band = ((plot[0] - BAND).abs().max(-1).values < 0.01).any(0)
    left, right = band.nonzero()[0].item(), band.nonzero()[-1].item()
    return (left - 34) / (right - 34)


def line(plot: torch.Tensor) -> torch.Tensor:
    """Where something is drawn in the line's colour."""
    return (plot[0] - torch.tensor(DARK) / 255).abs().max(-1).values < 0.01


def test_the_line_is_what_was_left_at_each_point(pack: ModuleType) -> None:
    found = {"points": [0, 5, 10], "left": [0.0, 0.0, 1.0], "steps": 10}
    plot = pack.nodes.charts.key_steps_plot(4, 10, found)
    assert plot.shape[0] == 1
    assert plot.shape[1] > 256, "what the band and the line are stands below"
    drawn = line(plot)
    columns = drawn.any(0).nonzero().flatten()
    assert (columns[0].item(), columns[-1].item()) == pytest.approx((34, 502), abs=2)
    for column, row in ((40, 222), (260, 222), (385, 116), (500, 12)):
        height = drawn[:, column].nonzero().flatten().float().mean().item()
        assert height == pytest.approx(row, abs=4), column


@pytest.mark.parametrize("start", [0, 9])
def test_the_plot_may_begin_at_the_first_or_at_the_last_step(pack: ModuleType, start: int) -> None:
    plot = pack.nodes.charts.key_steps_plot(start, 10, None)
    assert begins(plot) == pytest.approx(start / 10, abs=0.01)
    assert (plot[0, 20:200, 34] < 0.1).all(), "the axis stays to be seen"


# kind, which was called task


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        *((kind, kind) for kind in ("object", "style", "character", "nudity")),
        ("instance", "character"),
    ],
)
def test_a_kind_may_have_its_old_name(
    pack: ModuleType, asked: Callable[..., Any], task: str, kind: str
) -> None:
    assert asked("key_step", task=task).kind == kind
    assert pack.nodes.key_step.KeyStepUNetUnlearn.validate_inputs(task=task)


def test_what_is_no_kind_is_refused(pack: ModuleType, unlearn: Callable[..., tuple]) -> None:
    node = pack.nodes.key_step.KeyStepUNetUnlearn
    said = re.escape("kind (task) is 'thing': choose object, style, character, nudity.")
    with pytest.raises(ValueError, match=said):
        node.validate_inputs(task="thing")
    with pytest.raises(ValueError, match=said):
        unlearn("key_step", task="thing")


# Zero is the mode's own number


@pytest.mark.parametrize("mode", ["balanced", "paper"])
@pytest.mark.parametrize(
    ("method", "widget"),
    [
        ("key_step", "iterations"),
        ("domain_correction", "iterations"),
        ("domain_correction", "pictures"),
    ],
)
def test_zero_is_the_modes_own_number(
    asked: Callable[..., Any], method: str, widget: str, mode: str
) -> None:
    assert getattr(asked(method, mode=mode, **{widget: 0}), widget) is None
    assert getattr(asked(method, mode=mode, **{widget: 3}), widget) == 3


def test_key_steps_own_iterations_are_those_of_its_mode(asked: Callable[..., Any]) -> None:
    for mode, iterations in (("balanced", 240), ("paper", 750)):
        assert asked("key_step", mode=mode, iterations=0).length(1) == iterations


# batch


@pytest.mark.slow
def test_as_many_pictures_a_step_as_batch_says(unlearn: Callable[..., tuple]) -> None:
    steps, needed = {}, {}
    for batch in (1, 3):
        made = record(unlearn("few_shot", mode="paper", images=PICTURES, batch=batch))
        assert made["settings"]["batch"] == batch
        steps[batch], needed[batch] = made["steps"], made["measured"]["estimated_mb"]
    assert steps == {1: 4, 3: 2}
    assert needed[1] < needed[3], "memory is planned for as many"
    usual = record(unlearn("few_shot", mode="paper", images=PICTURES))
    assert (usual["settings"]["batch"], usual["steps"]) == (2, 2)


# projection, push


@pytest.mark.parametrize(
    ("mode", "projections"),
    [
        ("paper", ("off", "orthogonal")),
        pytest.param("balanced", ("off", "orthogonal", "as_released"), marks=pytest.mark.slow),
    ],
)
def test_the_encoders_gradient_is_projected_in_both_modes(
    unlearn: Callable[..., tuple], mode: str, projections: tuple[str, ...]
) -> None:
    inputs = {"mode": mode, "max_steps": 2, "epochs": 2}
    made = {
        projection: unlearn("few_shot", **inputs, projection=projection)[1]
        for projection in projections
    }
    for projection, erasure in made.items():
        assert erasure.record["settings"]["projection"] == projection
        assert erasure.record["steps"] == 2
        for other in made:
            apart = distance(erasure, made[other])
            assert (apart > 1e-3 * erasure.norm()) == (other != projection)


def distance(one: Any, other: Any) -> float:
    return sum((one.delta(key) - other.delta(key)).norm() ** 2 for key in one.deltas) ** 0.5


@pytest.mark.slow
def test_a_style_is_pushed_beyond_the_neutral_word(pack: ModuleType, parts: tuple) -> None:
    """By half of the way there, where a thing is not: a few steps take it further already."""
    science = pack.unlearn.methods.few_shot
    assert science.OVERSHOOT == {"object": 0.0, "style": 0.5, "character": 0.0}

    def erased(**settings: Any) -> tuple[Any, float]:
        chosen = science.FewShotSettings(max_steps=3, **settings)
        with pack.nodes.backend.model.ComfyModel(*parts, (64, 64)).training() as model:
            erasure = science.few_shot(model, ["ink"], PICTURES[:1], chosen)
            asked = ["a house in the style of ink", "a house in the style of picture"]
            own, neutral = model.encode(asked).cross
        clip, _ = pack.nodes.backend.apply.erased_clip(parts[1], erasure)
        now = clip.encode_from_tokens(clip.tokenize(asked[0]))[0]
        way = (neutral - own).flatten()
        return erasure, ((now - own).flatten() @ way / (way @ way)).item()

    (usual, far), (plain, near) = erased(kind="style"), erased(kind="style", push=0.0)
    assert far > near
    assert distance(usual, plain) > 0.01 * plain.norm()
