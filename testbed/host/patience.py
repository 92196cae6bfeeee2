"""Waits for another process as long as it works, without a limit on the total time.

A slow machine must not end a wait. A process that hangs must.
"""

from __future__ import annotations

import math
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import psutil

Result = TypeVar("Result")

POLL_SECONDS = 1.0

IDLE_SECONDS = 300.0  # by the clock, without a sign of life and without work
BUSY_SECONDS = 600.0  # of CPU time without a sign of life; every single stage takes less
AT_WORK = 0.02  # share of a core; an idle server uses less, a computing one far more


class Patience:
    """Says when a process has been silent for too long.

    Call `heard` at every sign of life. After the last one, `ran_out` becomes true once the process
    has not worked for `idle` seconds, or has used `busy` seconds of CPU time. clock() returns the
    time, used() the CPU time of the process, both in seconds.
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
        """The process gave a sign of life."""
        self._worked_at, self._worked = self._clock(), self._used()
        self._heard = self._worked

    def ran_out(self) -> bool:
        now, used = self._clock(), self._used()
        if used - self._worked > AT_WORK * (now - self._worked_at):
            self._worked_at, self._worked = now, used
        if math.isinf(used):
            return True
        return now - self._worked_at > self._idle or used - self._heard > self._busy


def finish(process: subprocess.Popen, patience: Patience | None = None) -> tuple[Any, Any]:
    """Wait for a process to end and return what it wrote: `process.communicate`, with patience.

    Raises TimeoutError, and kills the process, when patience runs out.
    """
    patience = patience or Patience(process.pid)
    while True:
        try:
            return process.communicate(timeout=POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if not patience.ran_out():
                continue
        if process.poll() is not None:
            # The process has ended, but one that it started may still hold its pipes.
            return process.communicate(timeout=IDLE_SECONDS)
        process.kill()
        process.wait()
        raise TimeoutError(f"{process.args} has been silent for too long.")


def wait_for_end(pid: int, patience: Patience | None = None) -> None:
    """Wait until a process that somebody else started has ended.

    Raises TimeoutError when patience runs out before.
    """
    patience = patience or Patience(pid)
    while _runs(pid):
        if patience.ran_out() and _runs(pid):
            raise TimeoutError(f"Process {pid} does not end.")
        time.sleep(0.05)


def answer(call: Callable[[], Result], patience: Patience) -> Result:
    """What a call to another process returns or raises, however long that process works on it.

    Raises TimeoutError when patience runs out. The call is then left to itself.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        # Raised again below, in the thread of the caller.
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(POLL_SECONDS)
    while thread.is_alive():
        if patience.ran_out():
            raise TimeoutError("The other process does not answer.")
        thread.join(POLL_SECONDS)
    if errors:
        raise errors[0]
    return results[0]


def _runs(pid: int) -> bool:
    """Whether the process runs. A zombie has ended, but its parent has not read its exit code."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process and its children. Infinite if it has ended: then no wait is needed."""
    try:
        process = psutil.Process(pid)
        used = sum(process.cpu_times()[:2])
        children = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return math.inf
    for child in children:
        with suppress(psutil.NoSuchProcess):  # it ended just now
            used += sum(child.cpu_times()[:2])
    return used
