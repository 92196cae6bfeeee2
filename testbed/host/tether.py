"""Runs a Python script that ends together with the process that started it.

    python tether.py script.py its arguments

The starting process holds the other end of this script's standard input. When that process ends,
even if it is killed, the operating system closes the pipe. This works on every system.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import threading
from pathlib import Path


def end_with(lifeline: int) -> None:
    """Wait until the pipe is closed, then exit. Nothing is ever written into it."""
    while os.read(lifeline, 1):
        pass
    os._exit(1)


def end_with_parent() -> None:
    """For a process started by multiprocessing: end it when its parent has ended."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    # A duplicate that child processes do not inherit, so that they do not wait on the pipe.
    lifeline = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=end_with, args=(lifeline,), daemon=True).start()
    script = Path(sys.argv[1]).resolve()
    sys.argv = [str(script), *sys.argv[2:]]
    sys.path[0] = str(script.parent)  # as if Python had started the script itself
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
