"""Runs a Python script that ends when whoever started it does, however that comes about.

    python tether.py script.py its arguments

Whoever starts it holds the other end of its standard input. The system closes that end with its
process, also when it is killed and has no time to clean up, on every system alike.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import threading
from pathlib import Path


def end_with(lifeline: int) -> None:
    """Wait for the end of the pipe; nothing is ever written into it."""
    while os.read(lifeline, 1):
        pass
    os._exit(1)


def end_with_parent() -> None:
    """In a process that multiprocessing started: end it when its parent has ended."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    # A copy that the script's own children do not inherit: they must not wait on the pipe.
    lifeline = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=end_with, args=(lifeline,), daemon=True).start()
    script = Path(sys.argv[1]).resolve()
    sys.argv = [str(script), *sys.argv[2:]]
    sys.path[0] = str(script.parent)  # as if Python had been given the script itself
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
