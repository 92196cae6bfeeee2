"""Which concepts stayed back beside others, and how that is told."""

import pytest

from unlearn.methods.parts import way_left

MANY = {"fox": 0.1, "owl": 0.12, "bus": 0.08, "cat": 0.6, "dog": 0.45}


def test_behind_are_those_with_much_left_and_more_than_the_others() -> None:
    assert way_left.behind(MANY) == ["cat", "dog"]
    assert way_left.behind(dict.fromkeys(MANY, 0.3)) == []
    assert way_left.behind({**dict.fromkeys(MANY, 0.01), "cat": 0.3}) == [], "that is little"
    # All stayed back alike: none is behind the others.
    assert way_left.behind({**dict.fromkeys(MANY, 0.5), "cat": 0.9}) == []
    assert way_left.behind({**dict.fromkeys(MANY, 0.5), "cat": 1.0}) == ["cat"]


def test_a_single_concept_is_behind_nobody() -> None:
    assert way_left.behind({"fox": 0.9}) == []
    assert way_left.told({"left": {"fox": 0.9}}) == ""
    assert way_left.told({}) == ""


def test_at_most_three_are_solved_for_alone() -> None:
    left = {**{f"a{i}": 0.1 for i in range(9)}, **{f"b{i}": 0.5 + i / 100 for i in range(5)}}
    assert way_left.compared(left) == ["b4", "b3", "b2"]


def test_who_stayed_back_is_told_with_what_it_reached_alone() -> None:
    record = {"left": MANY, "left_alone": {"cat": 0.1, "dog": 0.42}}
    assert way_left.told(record) == (
        "Not all the way at their anchors: cat 40% of the way, alone 90%, dog 55% of the way, "
        "alone 58%. Beside fewer concepts cat would go further."
    )
    many = {**{f"a{i}": 0.1 for i in range(20)}, **{f"b{i}": 0.5 for i in range(9)}}
    assert way_left.told({"left": many}).endswith("b5 50% of the way and 3 more.")


@pytest.mark.parametrize(
    ("rest", "whole", "share"), [(0.25, 1.0, 0.5), (4.0, 1.0, 2.0), (0.0, 0.0, 0.0)]
)
def test_a_share_of_a_way_is_of_a_distance(rest: float, whole: float, share: float) -> None:
    assert way_left.share_left(rest, whole) == pytest.approx(share)
