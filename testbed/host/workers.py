"""Jobs in several processes of one thread each; results are read as they come."""

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
from unlearn.files.writing import whole_file

MARK = "RESULT "
JOBS_HELP = "number of processes (default: one for each core, or one with a graphics card)"
Job = TypeVar("Job")


def at_once() -> int:
    """The number of workers: one for each core, or a single one if there is a graphics card."""
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


# PyTorch allocates and frees tensors all the time. On Linux the C library returns large pieces to
# the system, which clears every page again; that can cost a quarter of the time.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


@contextmanager
def processes(count: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """A pool of `count` new processes of one thread each; `at_once()` by default."""
    import torch

    os.environ.update(KEEP_MEMORY, OMP_NUM_THREADS="1")  # inherited by the new processes
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count or at_once(), context, torch.set_num_threads, (1,)) as pool:
        yield pool


def shared(
    jobs: Sequence[Job],
    together: Sequence[Hashable],
    count: int | None = None,
    cost: Callable[[Job], float] = lambda job: 1.0,
) -> list[list[Job]]:
    """Split the jobs into at most `count` shares; `at_once()` by default.

    together: a group for each job. Jobs of one group stay in one share. cost: an estimate for one
    job. Groups are assigned from the most expensive down, each to the share with the least cost so
    far.
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
    """Start `python -m MODULE --worker SHARE` for each share; yield what they `tell`, as it comes.

    Raises SystemExit, after all have ended, if one of them failed.
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

    # One thread for each worker, since Windows has no select for pipes.
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
    """In a worker: send a JSON-like result to the process that started it."""
    print(MARK + json.dumps(result), flush=True)


def write_rows(file: Path, rows: list[dict]) -> None:
    """Write rows as JSON. If the program is stopped while it writes, the old file stays."""
    with whole_file(file) as new:
        new.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
