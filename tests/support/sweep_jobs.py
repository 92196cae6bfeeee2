"""Jobs for Ray's workers that take a moment and leave a trace, in place of an erasure."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from unlearn.cli.sweep.cell import Cell
from unlearn.core.erasure import Erasure

WEIGHT = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.bias"
SECONDS = 1.5


def wait(job: tuple[str, str, float]) -> str:
    """job: (folder, its name, seconds). Writes what it does into the folder's log."""
    folder, name, seconds = job
    note(folder, f"begun {name} {os.getpid()}")
    time.sleep(seconds)
    Path(folder, name).touch()
    note(folder, f"done {name} {os.getpid()}")
    return f"waited for {seconds:g} s"


def cell(cell: Cell) -> str:
    """In place of sweep.task.work: the files of a cell that erases nothing."""
    folder = str(cell.folder.parent)
    note(folder, f"begun {cell.key} {os.getpid()}")
    time.sleep(SECONDS)
    Erasure({WEIGHT: {"diff": torch.ones(1)}}, {"concepts": ["fox"]}).save(cell.args.output)
    measured = {"seconds": SECONDS}
    cell.write({**cell.about, "file": cell.args.output.name, "record": {"measured": measured}})
    note(folder, f"done {cell.key} {os.getpid()}")
    return "nothing erased"


def note(folder: str, line: str) -> None:
    """Add a line to the log. Lines of several processes do not mix: each is one write."""
    with Path(folder, "log").open("ab", buffering=0) as log:
        log.write(f"{line}\n".encode())


def noted(folder: Path, what: str) -> list[tuple[str, int]]:
    """(name, process) of the log's lines of one kind."""
    file = folder / "log"
    lines = file.read_text().splitlines() if file.exists() else []
    found = [line.split() for line in lines if line.startswith(f"{what} ")]
    return [(name, int(process)) for _, name, process in found]
