"""Concept-preserving gradients, against vectors worked out by hand."""

from __future__ import annotations

import pytest
import torch

from unlearn.core.edit import Edit
from unlearn.core.gradient_projection import project_gradients

ERASE = torch.tensor([[3.0, -1.0], [0.5, 2.0]])
AGAINST = torch.tensor([[-2.0, 1.0], [0.0, 0.5]])  # the product is -6
ALONG = torch.tensor([[2.0, 1.0], [0.0, 0.5]])  # the product is 6


def test_orthogonal_leaves_nothing_along_an_opposed_gradient() -> None:
    (left,) = project_gradients([ERASE], [AGAINST], "orthogonal")
    assert (left * AGAINST).sum().item() == pytest.approx(0, abs=1e-6)
    # a - (a.b / b.b) b, with a.b = -6 and b.b = 5.25.
    assert torch.allclose(left, ERASE + 6 / 5.25 * AGAINST)


def test_what_stays_across_the_keeping_gradient_is_untouched() -> None:
    (left,) = project_gradients(
        [torch.tensor([-3.0, 4.0])], [torch.tensor([0.1, 0.0])], "orthogonal"
    )
    assert left.tolist() == pytest.approx([0.0, 4.0])


@pytest.mark.parametrize("projection", ["orthogonal", "as_released"])
def test_agreeing_gradients_are_left_bit_for_bit(projection: str) -> None:
    for keep in (ALONG, torch.tensor([[1.0, 3.0], [0.0, 0.0]])):  # along, and at a right angle
        (left,) = project_gradients([ERASE], [keep], projection)
        assert torch.equal(left, ERASE)


def test_each_tensor_is_judged_on_its_own() -> None:
    first, second = project_gradients([ERASE, ERASE], [AGAINST, ALONG], "orthogonal")
    assert not torch.equal(first, ERASE)
    assert torch.equal(second, ERASE)


def test_as_released_by_hand() -> None:
    # |a| = 5 and b points along the first axis: cos = -3/5, and cos b / |b| is (-0.6, 0).
    (left,) = project_gradients(
        [torch.tensor([-3.0, 4.0])], [torch.tensor([2.0, 0.0])], "as_released"
    )
    assert left.tolist() == pytest.approx([-2.4, 4.0])


def test_as_released_takes_away_too_much_of_a_short_gradient() -> None:
    short, keep = torch.tensor([-0.3, 0.4]), torch.tensor([2.0, 0.0])
    (left,) = project_gradients([short], [keep], "as_released")
    assert left.tolist() == pytest.approx([0.3, 0.4])
    assert (left * keep).sum() > 0, "it now pulls the way that keeping asks, unasked"
    (orthogonal,) = project_gradients([short], [keep], "orthogonal")
    assert orthogonal.tolist() == pytest.approx([0.0, 0.4])


def test_the_two_ways_agree_on_a_gradient_of_length_one() -> None:
    one, keep = torch.tensor([-0.6, 0.8]), torch.tensor([5.0, 0.0])
    (paper,), (released,) = (
        project_gradients([one], [keep], p) for p in ("orthogonal", "as_released")
    )
    assert torch.allclose(paper, released, atol=1e-6)


def test_off_changes_nothing() -> None:
    (left,) = project_gradients([ERASE], [AGAINST], "off")
    assert torch.equal(left, ERASE)


def test_clip_scales_each_set_as_a_whole() -> None:
    # Norm of the erasing set: sqrt(9 + 16) = 5; both of its tensors become a fifth.
    erase = [torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])]
    keep = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    first, second = project_gradients(erase, keep, "orthogonal", clip=1.0)
    assert first.tolist() == pytest.approx([0.6, 0.0])
    assert second.tolist() == pytest.approx([0.0, 0.8])


def test_clip_leaves_shorter_gradients_as_they_are() -> None:
    erase = [torch.tensor([0.3, 0.0]), torch.tensor([0.0, 0.4])]
    left = project_gradients(erase, erase, "orthogonal", clip=1.0)
    assert all(torch.equal(a, b) for a, b in zip(erase, left))


def test_clip_goes_before_the_projection() -> None:
    """As released, what is taken away depends on the length: here it is 1 after clipping."""
    (left,) = project_gradients(
        [torch.tensor([-30.0, 40.0])], [torch.tensor([2.0, 0.0])], "as_released", clip=1.0
    )
    assert left.tolist() == pytest.approx([0.0, 0.8], abs=1e-6)


def test_clip_does_not_count_missing_gradients() -> None:
    first, none = project_gradients(
        [torch.tensor([3.0, 4.0]), None], [None, None], "orthogonal", clip=1.0
    )
    assert first.tolist() == pytest.approx([0.6, 0.8])
    assert none is None


@pytest.mark.parametrize("projection", ["orthogonal", "as_released"])
def test_where_nothing_is_to_be_kept_the_gradient_stays(projection: str) -> None:
    first, second, third = project_gradients(
        [ERASE, ERASE, None], [None, torch.zeros(2, 2), AGAINST], projection
    )
    assert torch.equal(first, ERASE)
    assert torch.equal(second, ERASE)
    assert third is None


# In a step of an edit


def stepped(**how) -> tuple[torch.Tensor, torch.Tensor]:
    """The deltas of two weights after a step; its keeping loss pulls the first of them apart."""
    edit = Edit({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}, rank=0)
    a, b = (edit.changed(key, weight) for key, weight in edit.weights.items())
    loss, keep = a[0] + 2 * a[1] + b[0], -3 * a[0] + a[1] + b[0]
    edit.step(torch.optim.SGD(edit.parameters(), lr=0.5), loss, keep=keep, **how)
    return edit.deltas["a"].full.detach(), edit.deltas["b"].full.detach()


def test_a_step_does_not_raise_what_is_to_be_kept() -> None:
    keeping = torch.tensor([-3.0, 1.0])
    free, _ = stepped()
    a, b = stepped(projection="orthogonal")
    assert keeping @ free == 0.5, "without projection it rises"
    assert (keeping @ a).item() == pytest.approx(0, abs=1e-6)
    # The gradient (1, 2) without its component along (-3, 1), which is 0.3, -0.1.
    assert a.tolist() == pytest.approx([-0.35, -1.05])
    assert b.item() == -0.5, "where the two agree the step is the plain one"


def test_projection_off_is_a_plain_backward() -> None:
    a, b = stepped(projection="off")
    assert (a.tolist(), b.item()) == ([-0.5, -1.0], -0.5)


@pytest.mark.parametrize("projection", ["off", "orthogonal"])
def test_a_step_clips_the_gradient_as_a_whole(projection: str) -> None:
    a, b = stepped(projection=projection, clip=0.1)
    length = torch.cat([a, b]).norm().item()
    assert 0 < length <= 0.5 * 0.1 * (1 + 1e-5)
    if projection == "off":
        assert length == pytest.approx(0.5 * 0.1, rel=1e-4)


def test_weights_that_the_keeping_loss_does_not_read_take_the_plain_step() -> None:
    edit = Edit({"a": torch.ones(2), "unread": torch.ones(1)}, rank=0)
    a = edit.changed("a", edit.weights["a"])
    optimiser = torch.optim.SGD(edit.parameters(), lr=1.0)
    edit.step(optimiser, a.sum(), keep=-a[0], projection="orthogonal")
    assert edit.deltas["a"].full.tolist() == pytest.approx([0.0, -1.0])
    assert edit.deltas["unread"].full.grad is None
    assert set(edit.tensors()) == {"a"}


def test_low_rank_deltas_are_projected_factor_by_factor() -> None:
    edit = Edit({"w": torch.ones(4, 4)}, rank=1)
    w = edit.changed("w", edit.weights["w"])
    optimiser = torch.optim.SGD(edit.parameters(), lr=1.0)
    edit.step(optimiser, w[0].sum(), keep=-w[:2].sum(), projection="orthogonal")
    up = edit.deltas["w"].up.detach()[:, 0]
    # Up's gradients are s (1, 0, 0, 0) and -s (1, 1, 0, 0): half of the second is taken away.
    assert up[0].item() == pytest.approx(-up[1].item()) != 0
    assert not up[2:].any()
