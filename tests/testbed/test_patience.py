"""How long a wait for another process goes on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from testbed.patience import Patience


class Process:
    """A process that is asked for its clock and its CPU time."""

    def __init__(self) -> None:
        self.now, self.used = 0.0, 0.0

    def patience(self) -> Patience:
        return Patience(0, 300, 600, lambda: self.now, lambda: self.used)

    def pass_time(self, seconds: float, used: float) -> None:
        self.now += seconds
        self.used += used


def test_a_process_that_works_slowly_is_waited_for() -> None:
    """An hour on a machine that gives it a tenth of a core."""
    process = Process()
    patience = process.patience()
    for _ in range(720):
        process.pass_time(5, 0.5)
        assert not patience.ran_out()


def test_a_process_that_does_nothing_is_given_up_after_a_while() -> None:
    process = Process()
    patience = process.patience()
    process.pass_time(299, 1.0)
    assert not patience.ran_out()
    process.pass_time(2, 0.01)
    assert patience.ran_out()


def test_a_word_renews_patience() -> None:
    process = Process()
    patience = process.patience()
    for _ in range(3):
        process.pass_time(299, 0.0)
        assert not patience.ran_out()
        patience.heard()


def test_a_process_that_computes_without_a_word_is_given_up() -> None:
    process = Process()
    patience = process.patience()
    process.pass_time(599, 599)
    assert not patience.ran_out()
    process.pass_time(2, 2)
    assert patience.ran_out()


@pytest.mark.parametrize("code", ["pass", "raise SystemExit(3)"])
def test_a_process_that_has_ended_is_not_waited_for(code: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", code])
    process.wait()
    assert Patience(process.pid).ran_out()
