"""How long a wait for another process goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import psutil
import pytest

from testbed.host.patience import Patience, answer, finish, wait_for_end


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


def test_a_child_that_ends_while_it_is_asked_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    gone = psutil.Process(child.pid)
    child.wait()
    monkeypatch.setattr(psutil.Process, "children", lambda process, recursive: [gone])
    assert not Patience(os.getpid()).ran_out()


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


def started(code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_what_a_process_wrote_until_it_ended() -> None:
    process = started("print('a word'); raise SystemExit(3)")
    assert finish(process) == ("a word\n", None)
    assert process.returncode == 3


@pytest.mark.parametrize(
    "wait", [finish, lambda process, patience: wait_for_end(process.pid, patience)]
)
def test_a_process_that_hangs_is_not_waited_for(wait: Callable) -> None:
    process = started("import time; time.sleep(3600)")
    try:
        with pytest.raises(TimeoutError):
            wait(process, Patience(process.pid, idle=0.0, used=lambda: 0.0))
    finally:
        process.kill()
        process.communicate()


def test_a_call_is_waited_for_as_long_as_it_takes() -> None:
    assert answer(lambda: 7, Process().patience()) == 7
    with pytest.raises(ZeroDivisionError):
        answer(lambda: 1 / 0, Process().patience())
    process, end = Process(), threading.Event()
    patience = process.patience()
    process.pass_time(301, 0.0)
    with pytest.raises(TimeoutError):
        answer(end.wait, patience)
    end.set()
