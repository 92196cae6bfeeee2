"""Waiting for another process for as long as it works, and not for a total time.

A slow machine must not end a wait. A process that hangs must.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import psutil

IDLE_SECONDS = 300.0  # by the clock, without a word and without work
BUSY_SECONDS = 600.0  # of the process's own CPU time, without a word: longer than any one stage
AT_WORK = 0.02  # of a core: an idle server uses less, one that computes far more


class Patience:
    """Says when a process has been silent for too long.

    Call `heard` at every sign of life. `ran_out` is true when the process has since then done no
    work for `idle` seconds, or has worked for `busy` seconds of CPU time. clock and used give
    seconds: of the clock, and of CPU time that the process has used.
    """

    def __init__(
        self,
        pid: int,
        idle: float = IDLE_SECONDS,
        busy: float = BUSY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] | None = None,
    ) -> None:
        self._idle, self._busy, self._clock = idle, busy, clock
        self._used = used or (lambda: _cpu_seconds(pid))
        self.heard()

    def heard(self) -> None:
        """It said something."""
        self._worked_at, self._worked = self._clock(), self._used()
        self._heard = self._worked

    def ran_out(self) -> bool:
        now, used = self._clock(), self._used()
        if used - self._worked > AT_WORK * (now - self._worked_at):
            self._worked_at, self._worked = now, used
        if math.isinf(used):
            return True
        return now - self._worked_at > self._idle or used - self._heard > self._busy


def _cpu_seconds(pid: int) -> float:
    """Of a process and its children; of one that has ended, endless: there is nothing to wait
    for."""
    try:
        process = psutil.Process(pid)
        every = [process, *process.children(recursive=True)]
        return sum(sum(one.cpu_times()[:2]) for one in every)
    except psutil.NoSuchProcess:
        return math.inf
