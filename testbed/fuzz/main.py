"""Fuzz: gives every reader of files and texts thousands of bad inputs, from a seed.

    python dev.py fuzz                                   5,000 inputs over all readers
    python dev.py fuzz --reader pictures --inputs 300    one of them
    python dev.py fuzz --reader pictures --seed 0 --only 17    one input again, with its traceback

A reader must answer with one sentence or with a right result, within 10 s of CPU time and 1 GB of
memory. Each runs in a process of its own, so that a crash or a hang is noticed too.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import psutil
import torch

from unlearn.core.peak_memory import PeakMemory
from unlearn.render.text_table import columns

from .. import ROOT
from ..host.tether import end_with_parent
from . import changes as fuzz_changes

SECONDS, MEMORY = 10.0, 2**30
"""The most that one input may cost."""
LONGEST = 25 * SECONDS
"""Seconds after which a process ends itself, if its parent did not end it before."""
LOOK = 0.2  # seconds between two checks of a silent process
ALLOWED = ("ValueError", "ErasureError", "ModelError", "Failure")
"""The names of allowed errors. By name, since inside ComfyUI the pack's classes are other objects,
and since subclasses of ValueError from Python and libraries must not count."""


@dataclass(frozen=True)
class Answer:
    """A reader's answer to one input."""

    number: int
    kind: str
    """ "sentence", "result", or a description of a fault."""
    said: str = ""
    seconds: float = 0.0
    memory: int = 0

    @property
    def is_fault(self) -> bool:
        return self.kind not in ("sentence", "result")


@dataclass
class Row:
    """All of a reader's answers."""

    reader: str
    answers: list[Answer] = field(default_factory=list)

    def line(self) -> list[str]:
        kinds = [answer.kind for answer in self.answers]
        slowest = max((answer.seconds for answer in self.answers), default=0)
        peak = max((answer.memory for answer in self.answers), default=0)
        faults = sum(answer.is_fault for answer in self.answers)
        counts = (len(kinds), kinds.count("sentence"), kinds.count("result"), faults)
        return [self.reader, *map(str, counts), f"{slowest:.1f} s", f"{peak / 1e6:.0f} MB"]


def ask(reader, number: int, seed: int, folder: Path) -> Answer:
    """Make one input, let the reader read it, and judge the answer."""
    rng = Random(f"{seed} {reader.name} {number}")
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(10 * fuzz_changes.DEEP)  # inputs may have thousands of brackets
    try:
        given = reader.make(rng, folder)
    finally:
        sys.setrecursionlimit(usual)
    began = time.process_time()
    with PeakMemory(torch.device("cpu")) as memory:
        kind, said = "result", ""
        try:
            reader.read(given)
        except Exception as error:  # noqa: BLE001
            said = f"{type(error).__name__}: {error}"
            kind = "sentence" if is_sentence(error) else "raw error"
            if kind == "raw error":
                said += "\n" + "".join(traceback.format_tb(error.__traceback__)[-3:])
    seconds, used = time.process_time() - began, memory.peak - memory.base
    if kind in ("sentence", "result") and seconds > SECONDS:
        kind = "slow"
    if kind in ("sentence", "result") and used > MEMORY:
        kind = "large"
    return Answer(number, kind, said, seconds, used)


def is_sentence(error: Exception) -> bool:
    """Whether an error is one of the program's own, raised by its own code, with one sentence."""
    text, frames = str(error), traceback.extract_tb(error.__traceback__)
    own = Path(frames[-1].filename).is_relative_to(ROOT) and ".host" not in frames[-1].filename
    ends = text.endswith(".") or "for example" in text
    is_line = "\n" not in text and ends and 5 < len(text.split()) < 120
    return type(error).__name__ in ALLOWED and own and is_line


def run(reader, numbers: Iterable[int], seed: int, folder: Path) -> Iterator[Answer]:
    for number in numbers:
        yield ask(reader, number, seed, folder)


def _work(name: str, numbers: range, seed: int, told) -> None:
    """Runs a reader in a process of its own. Sends the number of each input, then the answer."""
    import logging
    import warnings

    from .readers import READERS

    end_with_parent()
    # Needed as well, since the thread above cannot run while a call of a library hangs.
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    logging.disable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        reader = READERS[name](Path(folder))
        ask(reader, -1, seed, Path(folder))  # a warm-up: what it loads must not count for an input
        for number in numbers:
            faulthandler.dump_traceback_later(LONGEST, exit=True)
            told.send(number)
            told.send(ask(reader, number, seed, Path(folder)))
    told.send(None)


def apart(name: str, count: int, seed: int) -> Iterator[Answer]:
    """The answers of a reader in a process of its own. If it dies, a new one continues."""
    first = 0
    context = multiprocessing.get_context("spawn")
    while first < count:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(name, range(first, count), seed, theirs))
        process.start()
        theirs.close()
        number, why = None, ""
        try:
            watch = Watch(process.pid)
            while not why:
                if not ours.poll(LOOK):
                    why = "" if number is None else watch.fault()
                    continue
                told = ours.recv()
                watch = Watch(process.pid)
                if told is None:
                    return
                if isinstance(told, Answer):
                    yield told
                else:
                    number = told
        except (EOFError, psutil.Error):
            why = "kills the process"
        finally:
            if process.is_alive():
                process.kill()
            process.join()
        if number is None:
            raise SystemExit(f"The reader {name} cannot be set up; see above.")
        yield Answer(number, why)
        first = number + 1


class Watch:
    """CPU time and memory that a process has used since its last message."""

    def __init__(self, pid: int) -> None:
        self.process, self.began = psutil.Process(pid), time.monotonic()
        self.seconds, self.memory = self._now()

    def _now(self) -> tuple[float, int]:
        times = self.process.cpu_times()
        return times.user + times.system, self.process.memory_info().rss

    def fault(self) -> str:
        seconds, memory = self._now()
        if memory - self.memory > 2 * MEMORY:
            return f"takes over {2 * MEMORY / 1e9:.1f} GB"
        # CPU time first: on a busy machine a process gets only a part of the time.
        if seconds - self.seconds > 1.2 * SECONDS or time.monotonic() - self.began > 20 * SECONDS:
            return f"hangs over {SECONDS:g} s"
        return ""


def main(arguments: list[str] | None = None) -> int:
    from .readers import READERS

    parser = argparse.ArgumentParser(
        prog="dev.py fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--inputs", type=int, default=5000, help="over all readers (default: 5000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=READERS, nargs="+", default=list(READERS))
    parser.add_argument("--only", type=int, metavar="N", help="one input of one reader")
    given = parser.parse_args(arguments)
    if given.only is not None:
        with TemporaryDirectory() as folder:
            reader = READERS[given.reader[0]](Path(folder))
            print(ask(reader, given.only, given.seed, Path(folder)))
        return 0
    rows, shares = [], sum(READERS[name].share for name in given.reader)
    for name in given.reader:
        rows.append(Row(name))
        for answer in apart(name, -(-given.inputs * READERS[name].share // shares), given.seed):
            rows[-1].answers.append(answer)
            if answer.is_fault:
                print(f"\n{name}: {answer.kind}, {answer.seconds:.1f} s. {answer.said}")
                again = f"--reader {name} --seed {given.seed} --only {answer.number}"
                print(f"To see it again: python dev.py fuzz {again}", flush=True)
        print(" ".join(rows[-1].line()), flush=True)
    head = ["reader", "inputs", "sentences", "results", "faults", "slowest", "peak memory"]
    print("\n" + columns([head, *(row.line() for row in rows)]))
    return int(any(answer.is_fault for row in rows for answer in row.answers))
