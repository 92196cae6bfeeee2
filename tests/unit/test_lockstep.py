"""Passes side by side: each waits for all the others, and nothing of them stays."""

from __future__ import annotations

import threading

import pytest
import torch

from unlearn.core.lockstep import Lockstep


def test_every_pass_waits_until_all_are_there() -> None:
    lockstep, told, met = Lockstep(), [], []

    def work(number: int) -> None:
        for place in ("first", "second"):
            told.append((place, lockstep.number))
            answer = lockstep.stop(place, 10 * number)
            assert answer == (place, 10 * number + 1)
        assert lockstep.number == number

    def meet(place: str, values: list[int]) -> list:
        met.append((place, values))
        return [(place, value + 1) for value in values]

    lockstep.run([lambda n=n: work(n) for n in range(3)], meet)
    assert met == [("first", [0, 10, 20]), ("second", [0, 10, 20])]
    assert told == [("first", n) for n in range(3)] + [("second", n) for n in range(3)]


def test_a_layer_is_computed_once_and_its_output_may_be_replaced() -> None:
    layers = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
    x = torch.randn(5, 4)
    lockstep, calls, out = Lockstep(), [], {}

    def hook(index: int):
        def replaced(module, inputs, output):
            calls.append((index, lockstep.number))
            return lockstep.stop(index, output)

        return replaced

    hooks = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(layers)]
    parts = x.split(2)

    def work(i: int) -> None:
        out[i] = layers(parts[i])

    lockstep.run([lambda i=i: work(i) for i in range(3)], lambda i, values: [v + i for v in values])
    for one in hooks:
        one.remove()
    assert sorted(calls) == [(i, n) for i in range(3) for n in range(3)]
    expected = layers[2](layers[1](layers[0](x)) + 1) + 2
    torch.testing.assert_close(torch.cat([out[i] for i in range(3)]), expected)
    assert not out[0].requires_grad


def test_an_error_ends_all_passes() -> None:
    before, lockstep, ended = threading.active_count(), Lockstep(), []

    def work(number: int) -> None:
        try:
            lockstep.stop("here", number)
            if number == 1:
                raise ValueError("no")
            lockstep.stop("there", number)
        finally:
            ended.append(number)

    with pytest.raises(ValueError, match="no"):
        lockstep.run([lambda n=n: work(n) for n in range(3)], lambda place, values: values)
    assert sorted(ended) == [0, 1, 2]
    assert threading.active_count() == before


def test_an_error_between_the_passes_ends_them() -> None:
    before, lockstep = threading.active_count(), Lockstep()

    def meet(place: str, values: list) -> list:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lockstep.run([lambda: lockstep.stop("here", 0)] * 2, meet)
    assert threading.active_count() == before


@pytest.mark.parametrize("scarce", [False, True])
def test_where_memory_is_scarce_every_pass_gives_back_what_it_freed(
    scarce: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lockstep, given = Lockstep(), []
    monkeypatch.setattr("unlearn.core.lockstep.is_scarce", lambda: scarce)
    monkeypatch.setattr("unlearn.core.lockstep.give_back", lambda: given.append(1))
    lockstep.run([lambda: lockstep.stop("here", 0)] * 3, lambda place, values: values)
    assert len(given) == (6 if scarce else 0)  # to the place, and on to the end


def test_passes_of_another_kind_are_refused() -> None:
    lockstep = Lockstep()
    works = [lambda: lockstep.stop("here", 0), lambda: None]
    with pytest.raises(RuntimeError, match="different places"):
        lockstep.run(works, lambda place, values: values)
