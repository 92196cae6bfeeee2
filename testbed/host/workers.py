"""Jobs shared out to processes of one thread each, whose results are read as they come."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import testbed

MARK = "RESULT "
Job = TypeVar("Job")


def at_once() -> int:
    """How many work side by side: one a core, or one alone where a graphics card does the work."""
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


# PyTorch takes and gives back its tensors' memory all the time. On Linux the C library would hand
# large pieces back to the system, which clears every page anew: up to a quarter of the time.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


@contextmanager
def processes(count: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """A pool of `count` new processes of one thread each, `at_once` where none is given."""
    import torch

    os.environ.update(KEEP_MEMORY, OMP_NUM_THREADS="1")  # theirs
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count or at_once(), context, torch.set_num_threads, (1,)) as pool:
        yield pool


def shared(
    jobs: Sequence[Job],
    together: Sequence[Hashable],
    count: int | None = None,
    cost: Callable[[Job], float] = lambda job: 1.0,
) -> list[list[Job]]:
    """At most `count` shares of the jobs, `at_once` where none is given; those alike in `together`
    stay in one share.

    The dearest group goes first, each to the share that costs least so far.
    """
    count = count or at_once()
    groups: dict[Hashable, list[Job]] = {}
    for job, group in zip(jobs, together, strict=True):
        groups.setdefault(group, []).append(job)
    shares: list[list[Job]] = [[] for _ in range(count)]
    costs = [0.0] * count
    for group in sorted(groups.values(), key=lambda group: -sum(map(cost, group))):
        least = costs.index(min(costs))
        shares[least] += group
        costs[least] += sum(map(cost, group))
    return [share for share in shares if share]


def results(module: str, shares: Sequence[Sequence]) -> Iterator[Any]:
    """What the workers `tell`, as it comes; each is `python -m MODULE --worker SHARE`.

    Raises SystemExit where one of them failed, when all have ended.
    """
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", module, "--worker", json.dumps(share)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=testbed.ROOT,
        )
        for share in shares
    ]
    lines: queue.Queue[str | None] = queue.Queue()

    def read(worker: subprocess.Popen) -> None:
        for line in worker.stdout:
            lines.put(line)
        lines.put(None)

    # A thread each: Windows has no select for pipes.
    for worker in workers:
        threading.Thread(target=read, args=(worker,), daemon=True).start()
    running = len(workers)
    while running:
        line = lines.get()
        if line is None:
            running -= 1
        elif line.startswith(MARK):
            yield json.loads(line.removeprefix(MARK))
    if any(worker.wait() for worker in workers):
        raise SystemExit(f"{module}: a worker failed; what it printed above says why.")


def tell(result: Any) -> None:
    """In a worker: hand a JSON-like result to the process that started it."""
    print(MARK + json.dumps(result), flush=True)


def write_rows(file: Path, rows: list[dict]) -> None:
    """As JSON; a run that is stopped while it writes leaves the file as it was."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    temporary.replace(file)
