"""The benchmark of speed: seconds and memory of each method, in phases, beside plain loops.

    python dev.py perf                              everything; takes hours on a CPU
    python dev.py perf --quick --sizes iconcanvas   some minutes: only to see that it works
    python dev.py perf --only machine few_shot --sizes sd15,sdxl
    python dev.py perf --json docs/perf.json        the rows there, and the page beside it
    python dev.py perf --json docs/perf.json --no-run
                                                    only the table and the page

Every case runs in a process of its own with a time limit, and the whole plan several times over: a
row has the medians of these rounds, and its ratios are of the same round. Rows that the JSON file
already has are not measured again, so a stopped run goes on. Nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import testbed

from ..host import workers
from ..host.machine import machine
from ..host.tether import end_with
from .kept import Kept, OtherRun
from .models import SIZES
from .plan import Case, cases_of, measure

HERE = testbed.ROOT / "output" / "perf"
ROUNDS = 3
ROOM = 0.9  # of the free memory may be needed
CAN_TELL = hasattr(os, "getloadavg")  # how busy the machine is


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python dev.py perf",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases whose name has this word")
    parser.add_argument(
        "--sizes", type=sizes_of, default=tuple(SIZES), help=f"of {','.join(SIZES)}; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="one round, and few steps of each")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}, with --quick 1")
    parser.add_argument("--json", type=Path, help="where the rows are kept; the page is beside it")
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        help="on a CPU; default: 1 for IconCanvas, for larger models as many as there are cores",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="measure again what the file has of these cases, also what could not be measured",
    )
    parser.add_argument("--no-run", action="store_true", help="only show what the file has")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        # It ends with the process that started it, also if that is killed.
        threading.Thread(target=end_with, args=(os.dup(0),), daemon=True).start()
        workers.tell(in_this_process(**asked.case))
        return 0
    file = asked.json or HERE / ("quick.json" if asked.quick else "perf.json")
    cases = cases_of(asked.sizes, asked.only, asked.quick)
    if not cases:
        parser.error(f"no case has {' or '.join(asked.only)} in its name.")
    if asked.no_run:
        if not file.exists():
            parser.error(f"{file} is not there; measure first.")
        kept, code = Kept.shown(file), 0
    else:
        try:
            kept = Kept.opened(file, machine(), asked.quick, asked.threads)
        except OtherRun as error:
            parser.error(str(error))
        if asked.again:
            kept.forget(cases)
        kept.commands = list(dict.fromkeys([*kept.commands, command()]))
        code = run(kept, cases, asked.rounds or (1 if asked.quick else ROUNDS))
    from .page import page, tables

    print("\n\n".join(tables(kept)))
    file.with_suffix(".md").write_text(page(kept), encoding="utf-8")
    return code


def sizes_of(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in SIZES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SIZES)}")
    return names


def command() -> str:
    """The command of this run, as a user types it."""
    return shlex.join(["python", "dev.py", "perf", *sys.argv[1:]])


def run(kept: Kept, cases: list[Case], rounds: int) -> int:
    """Measure what is missing; the exit code."""
    busy = os.getloadavg()[0] if CAN_TELL else 0.0
    if busy > 0.5:
        print(f"The machine is busy (load {busy:.1f}): seconds will be too many, ratios unsteady.")
    for number in range(1, rounds + 1):
        for case in cases:
            # What could not be measured once cannot be in the next round.
            if kept.has(case, number) or kept.why(case):
                continue
            print(f"round {number} of {rounds}, {case.key} ...", end=" ", flush=True)
            began = time.monotonic()
            try:
                found = in_process(case, kept.quick, kept.threads)
            except KeyboardInterrupt:
                print("\nInterrupted. The same command goes on from here.")
                return 130
            print(found.get("why") or f"{time.monotonic() - began:.0f} s", flush=True)
            row = {"case": case.name, "size": case.size, "round": number, **found}
            kept.add(row | ({"load": round(os.getloadavg()[0], 1)} if CAN_TELL else {}))
    return 0


def in_process(case: Case, quick: bool, threads: int) -> dict:
    """The row of a case, measured in a process of its own; {"why"} where that cannot be."""
    import torch

    from .memory import free_gib

    needs, free = case.needs(torch.cuda.is_available()), free_gib()
    if needs > ROOM * free:
        return {"why": f"not measured: needs about {needs:.0f} GB, and {free:.0f} GB are free"}
    told = {"name": case.name, "size": case.size, "quick": quick, "threads": threads}
    process = subprocess.Popen(
        [sys.executable, "-m", "testbed.perf", "--case", json.dumps(told)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=testbed.ROOT,
    )
    lifeline = process.stdin
    process.stdin = None  # `communicate` would close it, and end the case
    try:
        output, said = process.communicate(timeout=60 * case.minutes)
    except subprocess.TimeoutExpired:
        return {"why": f"not measured: stopped after {case.minutes:.0f} minutes"}
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        lifeline.close()
    if process.returncode == -getattr(signal, "SIGKILL", 9):
        return {"why": "not measured: the system ended the process, as it does for lack of memory"}
    lines = [line for line in output.splitlines() if line.startswith(workers.MARK)]
    if process.returncode or not lines:
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        return {"why": f"not measured: {last}"}
    return json.loads(lines[-1].removeprefix(workers.MARK))


def in_this_process(name: str, size: str, quick: bool, threads: int) -> dict:
    """The row of a case. Too little memory is a row, too."""
    import logging

    import torch

    from unlearn.core.peak_memory import is_too_little

    logging.disable(logging.INFO)
    threads = threads or (SIZES[size].threads if size else 0) or os.cpu_count() or 1
    torch.set_num_threads(threads)
    case = Case(name, size)
    if name == "import":
        logging.disable(logging.NOTSET)  # what it logs is a part of the start
    try:
        found = measure(case, quick)
    except (MemoryError, RuntimeError) as error:
        if not is_too_little(error):
            raise
        return {"why": f"not measured: {str(error).splitlines()[0]}"}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {**found, "device": device, **({"threads": threads} if device == "cpu" else {})}


if __name__ == "__main__":
    # As Ctrl-C: what runs a case ends it, and keeps what was measured before.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
