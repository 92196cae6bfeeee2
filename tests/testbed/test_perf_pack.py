"""The benchmark of speed on the pack itself: what it watches is there, and its rows are whole."""

from __future__ import annotations

from types import ModuleType

import pytest

from testbed.perf import growth, methods, others
from testbed.perf.growth import measure_growth
from testbed.perf.methods import Amount, measure_closed_form, measure_method
from testbed.perf.phases import places_of_pack


@pytest.fixture
def little(
    pack: ModuleType, parts: tuple, small_runs: None, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """The pack that the tests have loaded, and one step of each run measured."""
    for module in (methods, others, growth):
        monkeypatch.setattr(module.pack, "load", lambda: pack)
        monkeypatch.setattr(module, "parts_of", lambda size: parts)
    monkeypatch.setattr(methods, "amount_of", lambda size, quick: Amount(1))
    return pack


def check_phases(row: dict, *expected: str) -> None:
    assert set(expected) <= set(row["phases"])
    assert sum(row["phases"].values()) <= row["phases_of"] + 1e-5
    assert sum(row["first"]["phases"].values()) <= row["first"]["seconds"] + 1e-5
    assert row["peak_mb"] >= row["base_mb"] > 0


def test_a_step_that_trains_the_encoder(little: ModuleType) -> None:
    watched = [(owner, name, vars(owner).get(name)) for owner, name, *_ in places_of_pack(little)]
    row = measure_method("few_shot", "paper", "iconcanvas", True)
    assert all(vars(owner).get(name) is was for owner, name, was in watched)
    check_phases(row, "encoding", "network forward", "backward", "optimiser")
    assert row["first"]["phases"]["drawing"] > 0
    assert row["after"]["phases"]["saving"] > 0
    assert row["passes"] == {"prompts with gradients": 2, "latents with gradients": 2}
    assert (row["batch"], row["steps"], row["drawn"]) == (2, 8, 80)
    assert row["estimate_mb"] > 0
    # The backward pass takes at least as many operations as the way forward.
    assert row["operations"]["float32"] > 1e9
    assert row["bare_seconds"] > 0


def test_a_step_that_trains_the_denoiser(little: ModuleType) -> None:
    row = measure_method("key_step", "paper", "iconcanvas", True)
    check_phases(row, "network forward", "backward", "optimiser", "drawing")
    # Two of the trajectory, three of the original, and two of the student.
    assert row["passes"] == {"latents": 5, "latents with gradients": 2}
    assert (row["batch"], row["steps"], row["drawn"]) == (1, 500, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "mode"),
    [("few_shot", "balanced"), ("key_step", "balanced")]
    + [("domain_correction", mode) for mode in ("paper", "balanced")],
)
def test_other_steps(method: str, mode: str, little: ModuleType) -> None:
    row = measure_method(method, mode, "iconcanvas", True)
    check_phases(row, "network forward", "backward", "optimiser")
    assert row["bare_seconds"] > 0


@pytest.mark.slow
def test_the_closed_form(little: ModuleType) -> None:
    row = measure_closed_form("iconcanvas", True)
    check_phases(row, "encoding", "solve", "saving")
    assert row["passes"]["prompts"] > 100


@pytest.mark.slow
@pytest.mark.parametrize("what", growth.GROWTH)
def test_what_grows(what: str, little: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    values, *told = growth.GROWTH[what]
    some = (64, 128) if what == "encoder width" else values[:2]
    monkeypatch.setitem(growth.GROWTH, what, (some, *told))
    points = measure_growth(what, True)["points"]
    assert [point["x"] for point in points] == list(some)
    assert all(point["seconds"] > 0 for point in points)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["drawing", "identify", "erasures"])
def test_other_cases(name: str, little: ModuleType) -> None:
    row = getattr(others, f"measure_{name}")("iconcanvas", True)
    assert row.get("seconds", 1) > 0
    assert all(seconds > 0 for seconds in row.get("parts", {}).values())
