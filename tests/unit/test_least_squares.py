"""The solve of the closed form, by hand."""

from __future__ import annotations

import pytest
import torch

from unlearn.methods.parts import least_squares
from unlearn.methods.parts.least_squares import compressed, solve


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_number_by_hand() -> None:
    # Inputs 1 and 3 (mean square 5), wanted 2 and 4 (mean product 7), held 2 (mean square 4).
    inputs, wanted = [torch.tensor([[1.0], [3.0]])], [torch.tensor([[2.0], [4.0]])]
    held = [torch.tensor([[2.0]])]
    found = solve(inputs, wanted, held, hold=0.5, ridge=0.25)
    # The ridge counts relative to the input's own mean square, 5 + 0.5 * 4.
    assert found.item() == pytest.approx(7 / (5 + 0.5 * 4 + 0.25 * (5 + 0.5 * 4)))


def test_parts_are_one_whole() -> None:
    inputs, wanted, held = drawn(12, 5), drawn(12, 3, seed=1), drawn(8, 5, seed=2)
    whole = solve([inputs], [wanted], [held], 2.0, 1e-3)
    parts = solve(inputs.split(5), wanted.split(5), held.split(3), 2.0, 1e-3)
    torch.testing.assert_close(parts, whole)


def test_it_moves_what_it_should_and_holds_the_rest() -> None:
    inputs, wanted, held = drawn(6, 20), drawn(6, 4, seed=1), drawn(8, 20, seed=2)
    change = solve([inputs], [wanted], [held], hold=25.0, ridge=1e-9)
    torch.testing.assert_close(inputs @ change, wanted, atol=1e-5, rtol=0)
    assert (held @ change).abs().max() < 1e-5
    # More to hold than there is room for: what is held more moves less.
    many = drawn(60, 20, seed=3)
    free, bound = (solve([inputs], [wanted], [many], hold, 1e-9) for hold in (0.01, 100.0))
    assert (many @ bound).norm() < 0.1 * (many @ free).norm()
    assert (inputs @ free - wanted).norm() < 0.5 * (inputs @ bound - wanted).norm()


def test_widths_and_tokens_give_the_same() -> None:
    """In widths where tokens are many, in tokens where they are few; on the border both work."""
    inputs, wanted, held = drawn(6, 12), drawn(6, 4, seed=1), drawn(5, 12, seed=2)
    in_tokens = solve([inputs], [wanted], [held], 3.0, 1e-4)
    # The same sums with every token twice: 22 tokens are more than 12 widths.
    twice = solve([inputs] * 2, [wanted] * 2, [held] * 2, 3.0, 1e-4)
    torch.testing.assert_close(twice, in_tokens)


@pytest.mark.parametrize("width", [3, 60])
def test_a_token_may_count_several_times(width: int) -> None:
    """In widths and in tokens, as if it were there so often."""
    inputs, wanted, held = drawn(6, width), drawn(6, 4, seed=1), drawn(5, width, seed=2)
    times, held_times = torch.tensor([1, 3, 1, 2, 5, 1]), torch.tensor([2, 1, 1, 4, 1])
    often = [inputs.repeat_interleave(times, 0), wanted.repeat_interleave(times, 0)]
    expected = solve([often[0]], [often[1]], [held.repeat_interleave(held_times, 0)], 3.0, 1e-4)
    halves = [part.split(4) for part in (inputs, wanted, held)]
    found = solve(*halves, 3.0, 1e-4, times.split(4), held_times.split(4))
    torch.testing.assert_close(found, expected)
    assert (solve(*halves, 3.0, 1e-4) - expected).norm() > 1e-3 * expected.norm()


@pytest.mark.parametrize("width", [3, 7])
def test_the_effect_on_a_token_counts_as_often(width: int) -> None:
    inputs, change = drawn(5, 9), drawn(9, width, seed=1)
    times = torch.tensor([1, 30, 1, 2, 1])
    expected = compressed(change, [inputs.repeat_interleave(times, 0)], 0.7)
    up, down = compressed(change, inputs.split(3), 0.7, times.split(3))
    assert up.shape == expected[0].shape
    torch.testing.assert_close(up @ down, expected[0] @ expected[1])
    once = compressed(change, [inputs], 0.7)
    assert (once[0] @ once[1] - up @ down).norm() > 0.1 * (up @ down).norm()


def test_in_tokens_the_inputs_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, wanted, held = drawn(6, 12), drawn(6, 4, seed=1), drawn(5, 12, seed=2)
    whole = solve([inputs], [wanted], [held], 3.0, 1e-4)
    monkeypatch.setattr(least_squares, "COLUMNS", 5)
    torch.testing.assert_close(solve([inputs], [wanted], [held], 3.0, 1e-4), whole)


def test_a_giant_channel_does_not_drown_the_ridge_of_the_others() -> None:
    inputs, wanted, held = drawn(40, 6), drawn(40, 2, seed=1), drawn(40, 6, seed=2)
    scale = torch.tensor([1000.0, 1, 1, 1, 1, 0.001], dtype=torch.float64)
    plain = solve([inputs], [wanted], [held], 1.0, 0.1)
    scaled = solve([inputs * scale], [wanted], [held * scale], 1.0, 0.1)
    torch.testing.assert_close(scaled * scale[:, None], plain)


def test_nothing_to_hold_is_no_error() -> None:
    inputs, wanted = drawn(40, 6), drawn(40, 2, seed=1)
    expected = torch.linalg.lstsq(inputs, wanted).solution
    torch.testing.assert_close(solve([inputs], [wanted], [], 1.0, 1e-12), expected)


def test_the_smallest_rank_that_keeps_the_effect() -> None:
    inputs = torch.eye(4, dtype=torch.float64)
    change = torch.diag(torch.tensor([10.0, 3.0, 1.0, 0.1], dtype=torch.float64))
    # Squares: 100, 9, 1, 0.01 of 110.01.
    for keep, rank in ((0.9, 1), (0.95, 2), (0.99, 2), (0.995, 3), (1.0, 4)):
        up, down = compressed(change, [inputs], keep)
        assert (up.shape, down.shape) == ((4, rank), (rank, 4))
    up, down = compressed(change, [inputs], 0.95)
    torch.testing.assert_close((up @ down).T, torch.diag(torch.tensor([10.0, 3, 0, 0])).double())


def test_few_tokens_have_the_same_rank_and_effect_as_many() -> None:
    """Found from the tokens where they are fewer than the outputs."""
    inputs, change = drawn(5, 9), drawn(9, 7, seed=1)
    few = compressed(change, [inputs], 0.9)
    many = compressed(change, [inputs, inputs], 0.9)
    assert few[0].shape == many[0].shape
    torch.testing.assert_close(few[0] @ few[1], many[0] @ many[1])


def test_the_effect_counts_and_not_the_change() -> None:
    """What no input reaches is left out, however large."""
    change = torch.diag(torch.tensor([1.0, 50.0], dtype=torch.float64))
    up, down = compressed(change, [torch.tensor([[1.0, 0.0]], dtype=torch.float64)], 0.99)
    torch.testing.assert_close((up @ down).T, torch.diag(torch.tensor([1.0, 0.0])).double())
