"""Runs jobs as Ray's tasks: one job a task, started again where its worker is lost.

Nothing here knows what a job is. Ray is imported when it is needed: only sweeps need it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from ..output import Failure
from ..sentences import sentence_of

INSTALL = (
    "A sweep needs Ray, which is not installed; install it with: pip install "
    '"ray[default]>=2.49,<3"'
)
RETRIES = 3  # how often a job is started again after its worker was lost
POLL = 0.5  # seconds between two looks at the workers
STARTS = 3  # tries: Ray gives its own processes 30 s, which a busy machine may not keep...
PATIENCE = 300  # ... and some of them less, if they are not given so many seconds
SIGNALS = (signal.SIGINT, signal.SIGTERM)
STORE = 100 << 20  # bytes of Ray's object store: jobs and outcomes are small
PACKAGE = Path(__file__).parents[2]
Job = TypeVar("Job")


@dataclass(frozen=True)
class Place:
    """Where jobs run, and what each of them takes."""

    address: str | None = None
    """Of a cluster. None: Ray is started on this machine, and ended afterwards."""
    workers: int | None = None
    """How many jobs at once on this machine. None: as many as fit."""
    cores: int = 1
    """Of each job, which computes in so many threads."""
    gpus: float | None = None
    """Of each job. None: one where there are any."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    key: str
    line: str = ""
    """What the job says of its result."""
    failed: str = ""
    """Why it failed, in a sentence; "" if it did not."""
    trace: str = ""
    """Where in the program the error was raised."""


Busy = Mapping[str, tuple[str, float]]
"""By the keys of the jobs that run: their worker, and since when (time.time)."""


class Board:
    """Where workers note what they begin. It runs as an actor: one process that all can reach."""

    def __init__(self) -> None:
        self.busy: dict[str, tuple[str, float]] = {}

    def begin(self, key: str, worker: str) -> None:
        # A worker does one job at a time. What it noted before has ended.
        self.busy = {other: at for other, at in self.busy.items() if at[0] != worker}
        self.busy[key] = worker, time.time()

    def read(self) -> dict[str, tuple[str, float]]:
        return self.busy


def attempt(key: str, job: Any, work: Callable[[Any], str], board: Any, cores: int) -> Outcome:
    """One task, in a worker: its error is told and harms no other."""
    import torch

    torch.set_num_threads(cores)
    board.begin.remote(key, f"{socket.gethostname()}, process {os.getpid()}")
    try:
        return Outcome(key, work(job))
    except Exception as error:  # noqa: BLE001 (every error becomes a sentence)
        return Outcome(key, failed=sentence_of(error, "sweep"), trace=traceback.format_exc())


def check_installed() -> None:
    """Raises Failure where Ray is not installed."""
    try:
        import ray  # noqa: F401
    except ImportError:
        raise Failure(INSTALL) from None


@contextmanager
def connected(place: Place) -> Iterator[str]:
    """Ray, for the duration of the block. Yields the address of its dashboard, "" without one.

    Raises Failure where the cluster cannot be reached.
    """
    check_installed()
    # Ray sends figures of its use to its makers unless it is told not to, and starts a task for
    # ever again where the memory is too small for it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))
    os.environ.setdefault("RAY_agent_register_timeout_ms", str(PATIENCE * 1000))
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if place.address:
        # The other machines run this very code, whatever they have.
        options |= {"address": place.address, "runtime_env": {"py_modules": [str(PACKAGE)]}}
    else:
        count = place.workers and place.workers * place.cores
        options |= {"address": "local", "num_cpus": count, "object_store_memory": STORE}
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}
    try:
        context = _joined(options)
    except Exception as error:  # Ray raises many kinds, and plain Exception
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise Failure(
            f"Ray's cluster at {place.address} cannot be used ({reason}); correct --address."
            if place.address
            else f"Ray cannot be started on this machine ({reason}); try it again."
        ) from error
    try:
        yield getattr(context, "dashboard_url", None) or ""
    finally:
        ray.shutdown()


def _joined(options: Mapping[str, Any]) -> Any:
    """Ray's context, after `ray.init`. On this machine several tries are made."""
    import ray

    hears = {number: signal.getsignal(number) for number in SIGNALS}
    left = STARTS if options["address"] == "local" else 1
    try:
        while True:
            before = set(psutil.Process().children(recursive=True))
            try:
                return ray.init(**options)
            except Exception:  # Ray has many for a start that took too long
                left -= 1
                if not left:
                    raise
            for process in set(psutil.Process().children(recursive=True)) - before:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            options = {**options, "include_dashboard": False}  # half of what is started
    finally:
        for number, handler in hears.items():  # of which Ray takes some
            signal.signal(number, handler)


def outcomes(
    jobs: Mapping[str, Job],
    work: Callable[[Job], str],
    place: Place,
    watch: Callable[[Busy], None] = lambda busy: None,
) -> Iterator[Outcome]:
    """Run `work` of every job on the connected Ray; yield each outcome as it comes.

    jobs: by keys of the caller's. work: a function of a module, which returns a line; what it
    raises becomes a sentence. It may be run again after it was cut short. watch: called about twice
    a second with what runs. Raises Failure where no machine has what a job takes.
    """
    import ray

    gpus = gpus_of_each(place)
    board = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()
    task = ray.remote(attempt).options(
        num_cpus=place.cores, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=False
    )
    waiting = {task.remote(key, job, work, board, place.cores): key for key, job in jobs.items()}
    looked = time.monotonic()
    while waiting:
        ready, _ = ray.wait(list(waiting), timeout=POLL)
        for one in ready:
            key = waiting.pop(one)
            try:
                yield ray.get(one)
            except ray.exceptions.RayError as error:
                yield Outcome(key, failed=_lost(error), trace=str(error))
        if time.monotonic() - looked >= POLL:
            noted, left = _noted(board), set(waiting.values())
            watch({key: at for key, at in noted.items() if key in left})
            looked = time.monotonic()


def gpus_of_each(place: Place) -> float:
    """The GPUs that a job takes. Raises Failure where no machine has what a job takes."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if place.gpus is not None:
        gpus = place.gpus
    else:
        gpus = float(any(machine.get("GPU", 0) >= 1 for machine in machines))
    if not any(
        machine.get("CPU", 0) >= place.cores and machine.get("GPU", 0) >= gpus
        for machine in machines
    ):
        raise Failure(
            f"No machine of Ray's has {place.cores} cores and {gpus:g} GPUs for one erasure; give "
            "smaller --cores or --gpus."
        )
    return gpus


def _noted(board: Any) -> Busy:
    """What the workers noted; nothing while the board is being started again."""
    import ray

    try:
        return ray.get(board.read.remote(), timeout=10)
    except ray.exceptions.RayError:
        return {}


def _lost(error: Exception) -> str:
    """Why a task has no outcome, in a sentence."""
    import ray

    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "Its machine had too little memory; give fewer --workers, or more --cores to each."
    if isinstance(error, ray.exceptions.WorkerCrashedError | ray.exceptions.NodeDiedError):
        return f"Its worker was lost {RETRIES + 1} times; look into the log of Ray on its machine."
    last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    return f"Its worker could not begin ({last[0].rstrip('.')}); the machine lacks what it needs."
