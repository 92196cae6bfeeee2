"""The charts that training nodes hand on."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1, 120, [50, 100]),
        (0.0, 1.0, [0.0, 0.5, 1.0]),
        (-0.031, 0.012, [-0.02, 0.0]),
        (3.0, 3.0004, [3.0, 3.0002, 3.0004]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(
    pack: ModuleType, low: float, high: float, expected: list[float]
) -> None:
    found = pack.nodes.charts.ticks(low, high, 4)
    assert found == pytest.approx(expected)
    assert len(found) <= 4


def test_a_loss_curve_has_numbered_axes_and_says_what_to_expect(pack: ModuleType) -> None:
    curve = pack.nodes.charts.loss_curve
    losses = [1.0, 0.9, 0.7, 0.4, 0.2, 0.1]
    plain, said = curve(losses), curve(losses, "steps", "It falls. " * 20)
    assert plain.shape == (1, 256, 512, 3)
    assert said.shape[1] >= 256 + 2 * 17, "a long sentence takes several lines"
    assert torch.equal(said[:, :256], plain)
    assert (said[0, 256:] < 0.6).any()
    ink = (plain[0] < 0.5).all(-1)
    assert ink[226:242, 60:].any(), "numbers below the axis"
    assert ink[20:220, :28].any(), "numbers beside it"
    assert not torch.equal(plain, curve([10 * loss for loss in losses])), "another scale"
    for few in ([], [0.5], [0.5, 0.5]):
        assert curve(few).isfinite().all()


def test_every_published_method_says_what_its_losses_do(pack: ModuleType) -> None:
    for node in pack.nodes.TRAINING:
        method = node.METHOD
        modes = method.described["mode"].choices if "mode" in method.described else ()
        if method.name != "closed_form":  # one value a layer, which its own page explains
            assert set(method.curve) == set(modes), method.name
            assert all(text.endswith(".") for text in method.curve.values())
