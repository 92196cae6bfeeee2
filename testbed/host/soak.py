"""Does the memory of a server grow if it erases again and again? python dev.py soak

    python dev.py soak                            50 erasures of each method; docs/soak.md
    python dev.py soak --runs 10 --method few_shot

All runs use one real server: the methods in turn, a few steps each, at IconCanvas's size. Each has
another concept and seed, so that no result is cached. After every fifth run comes another one that
is cancelled during its steps, or refused because it asks for more memory than there is. The exit
code is 1 if the resident memory after the last run is more than 2% above that after the third.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import testbed

from ..model.drawings import SIZE
from ..model.vocabulary import OBJECTS
from .machine import machine
from .server import Interrupted, Progress, PromptError, Server, extended

PAGE = testbed.ROOT / "docs" / "soak.md"
LIVE = testbed.ROOT / "testbed" / "live"
# Counted in runs: the first that counts; between two rows of the table; between two runs that are
# cancelled or refused.
THIRD, EVERY, BESIDE = 3, 10, 5
GROWTH = 0.02
HEAD = "| run | resident, MiB | allocated, MiB | kept free, MiB | tensors | storages, MiB |"


@dataclass(frozen=True)
class Method:
    node: str
    inputs: dict[str, Any]
    endless: dict[str, Any]
    """Changed inputs for a run that will be cancelled."""
    huge: dict[str, Any]
    """Changed inputs for a run that no machine has memory for; None removes an input."""


METHODS = {
    "few_shot": Method(
        "FewShotEncoderUnlearn",
        {
            "vae": ["base", 2],
            "images": ["picture", 0],
            "mode": "balanced",
            "kind": "object",
            "shots": 1,
            "trainable": "mlp-final-attn",
            "max_steps": 3,
            "epochs": 1,
            "batch": 1,
        },
        {"max_steps": 10000},
        {"batch": 64, "size": 2048, "images": None},
    ),
    "key_step": Method(
        "KeyStepUNetUnlearn",
        {
            "mode": "paper",
            "task": "object",
            "steps": 4,
            "key_steps": "from start",
            "start": 1,
            "iterations": 3,
            "trainable": "cross-attention",
        },
        {"iterations": 10000},
        {"mode": "balanced", "size": 2048},
    ),
    "domain_correction": Method(
        "DomainCorrectionUNetUnlearn",
        {"mode": "paper", "kind": "object", "pictures": 1, "iterations": 2},
        {"iterations": 10000},
        {"size": 2048},
    ),
}


class SoakError(RuntimeError):
    """A run did not end as it should."""


def prompt(method: Method, number: int, more: dict[str, Any]) -> dict[str, Any]:
    """An API prompt of one erasure, different for every number."""
    inputs = {
        "model": ["base", 0],
        "clip": ["base", 1],
        "concept": OBJECTS[number % len(OBJECTS)],
        "size": SIZE,
        "rank": 0,
        "seed": number,
        # Without a verdict if pictures are connected, since empty ones would be refused. Otherwise
        # only now and then, since a verdict takes longer than the run itself.
        "verdict": "images" not in method.inputs and number % EVERY == 0,
        **method.inputs,
        **more,
    }
    given = {name: value for name, value in inputs.items() if value is not None}
    picture = {"width": SIZE, "height": SIZE, "batch_size": 1, "color": number}
    loader = {"ckpt_name": "iconcanvas.safetensors"}
    return {
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": loader},
        "picture": {"class_type": "EmptyImage", "inputs": picture},
        "erase": {"class_type": method.node, "inputs": given},
        "curve": {"class_type": "PreviewImage", "inputs": {"images": ["erase", 2]}},
    }


def cancelled(server: Server, method: Method, number: int) -> None:
    def at_the_first_step(progress: Progress) -> None:
        if progress.node == "erase" and progress.total:
            server.interrupt()

    try:
        server.run(prompt(method, number, method.endless), on_progress=at_the_first_step)
    except Interrupted:
        return
    raise SoakError(f"Run {number} was cancelled and went on to its end.")


def refused(server: Server, method: Method, number: int) -> None:
    try:
        server.run(prompt(method, number, method.huge))
    except PromptError as error:
        if error.exception_type == "MemoryError":
            return
        raise
    raise SoakError(f"Run {number} was not refused: this machine has room for it.")


def soak(server: Server, names: list[str], runs: int) -> Iterator[dict[str, int]]:
    """Memory figures after the third run, after every tenth and after the last."""
    total = runs * len(names)
    for number in range(1, total + 1):
        method = METHODS[names[number % len(names)]]
        server.run(prompt(method, number, {}))
        if number % BESIDE == 2:
            other = cancelled if number % (2 * BESIDE) == 2 else refused
            other(server, method, number)
        if number in (THIRD, total) or number % EVERY == 0:
            yield {"run": number, **server.ask("/live")}


def growth(rows: list[dict[str, int]]) -> float:
    """The relative growth of resident memory from the third run to the last."""
    return rows[-1]["resident"] / rows[0]["resident"] - 1


def told(row: dict[str, int]) -> str:
    """A line of the table. Cells are empty if the allocator gives no figures."""
    names = ("resident", "allocated", "kept_free", "tensor_bytes")
    sizes = ["" if row[name] is None else f"{row[name] / 2**20:.1f}" for name in names]
    resident, allocated, free, tensors = sizes
    return f"| {row['run']} | {resident} | {allocated} | {free} | {row['tensors']} | {tensors} |"


def page(rows: list[dict[str, int]], names: list[str], runs: int) -> str:
    done = rows[-1]["run"]
    verdict = f"{growth(rows):+.2%} from the third run to the last"
    if done < runs * len(names):
        verdict = f"{growth(rows):+.2%} from the third run to the {done}th, the last so far"
    return "\n".join(
        [
            "# Soak",
            "",
            f"Made by `python dev.py soak`: {runs} erasures with each of {', '.join(names)}, in "
            f"turn, in one ComfyUI server, at {SIZE} x {SIZE} pixels, a few steps each, every one "
            "of another concept and seed. After one run in ten, another run is cancelled during "
            "its steps; after another one in ten, a run is refused that asks for more memory than "
            "there is. Some runs have their verdict measured. "
            f"Resident memory: **{verdict}**; the bar is {GROWTH:.0%}.",
            "",
            "* **resident**: what the system counts for the server's process, after Python's "
            "garbage collector has run. No setting of the allocator is changed. When a node of the "
            "pack is done, it has the allocator give back what is free.",
            "* **allocated**: what was asked of the C allocator and not given back.",
            "* **kept free**: what the allocator holds for later requests.",
            "* **tensors**, **storages**: all that Python knows of, with the model's own.",
            "",
            "ComfyUI runs with its classic cache, which keeps only results that the last prompt "
            "used. The usual cache keeps them as long as there is memory.",
            "",
            HEAD,
            "|---|---|---|---|---|---|",
            *map(told, rows),
            "",
            f"Measured on {machine()}.",
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=50, help="erasures with each method")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--page", type=Path, help="where to write; all methods: docs/soak.md")
    options = parser.parse_args()
    names, rows = options.method, []
    if options.runs * len(names) <= THIRD:
        parser.error(f"more than {THIRD} runs are needed, since the third is the measure")
    file = options.page or (PAGE if names == list(METHODS) else None)
    with tempfile.TemporaryDirectory() as folder:
        args = (*extended(Path(folder), LIVE), "--cache-classic")
        with Server(Path(folder), args=args) as server:
            print(HEAD)
            for row in soak(server, names, options.runs):
                rows.append(row)
                print(told(row), flush=True)
                if file:
                    file.write_text(page(rows, names, options.runs), encoding="utf-8")
    print(f"Resident memory after the last run: {growth(rows):+.2%} of that after the third.")
    return 1 if growth(rows) > GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
