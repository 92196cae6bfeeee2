"""sweep: make all erasures of a plan, on many workers, and gather them into one table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import options
from ..output import Failure, check_writable
from . import on_ray
from .cell import Cell
from .lines import Lines
from .plan import read_plan
from .table import JSON, PAGE, gather
from .task import work

HELP = "make all erasures of a plan on many workers, and gather them into one table"
EXAMPLES = """
examples:
  python -m unlearn sweep plan.toml -o sweep/
      on this machine, one erasure a GPU, or one a core without any
  python -m unlearn sweep plan.toml -o sweep/ --workers 2 --cores 4
      two at a time, each on four cores
  python -m unlearn sweep plan.toml -o /shared/sweep/ --address 10.0.0.1:6379
      on a cluster of Ray's, whose machines all see /shared
  python -m unlearn sweep plan.toml -o sweep/ --table-only

A plan names models, concepts, methods, settings and seeds: see docs/sweeps.md. A sweep that was
stopped goes on where it was with the same command. In the folder are table.md, table.json and
cells/, with a file for each erasure.
"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", type=Path, metavar="PLAN", help="a TOML file: what to erase, how")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="a new folder, or that of a sweep, which is continued",
    )
    parser.add_argument(
        "--workers",
        type=options.whole(1),
        metavar="N",
        help="erasures at once on this machine (default: as many as it has GPUs, or cores)",
    )
    parser.add_argument(
        "--cores",
        type=options.whole(1),
        default=1,
        metavar="N",
        help="cores of each erasure (default: 1)",
    )
    parser.add_argument(
        "--gpus",
        type=options.number,
        metavar="X",
        help="GPUs of each erasure; 0.5 lets two share one, 0 uses none (default: 1 if there are "
        "any)",
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of a cluster that Ray runs on already; auto: of the one that this machine belongs to",
    )
    parser.add_argument(
        "--table-only", action="store_true", help="run nothing, only write the table anew"
    )


def run(args: argparse.Namespace) -> None:
    if args.workers and args.address:
        raise Failure("--workers is for this machine alone; leave it out, or --address.")
    if args.gpus is not None and args.gpus < 0:
        raise Failure("--gpus must be at least 0; correct it.")
    check_folder(args.output)
    cells = read_plan(args.plan, args.output)
    missing = [] if args.table_only else [cell for cell in cells if cell.result() is None]
    if missing:
        on_ray.check_installed()
        missing[0].folder.mkdir(parents=True, exist_ok=True)
        gather(cells, {}, args.output)
    try:
        failed = make(missing, len(cells) - len(missing), args)
    except KeyboardInterrupt:
        done = gather(cells, {}, args.output)
        print(
            f"\nInterrupted; {done} of {len(cells)} erasures are done, and the same command goes "
            "on from here.",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    done = gather(cells, failed, args.output)
    print(f"{done} of {len(cells)} erasures are done: {args.output / PAGE}", flush=True)
    if failed:
        raise Failure(
            f"{len(failed)} of {len(cells)} erasures failed, see above; the same command tries "
            "them again."
        )


def check_folder(folder: Path) -> None:
    """Raises Failure where the output is something else than a folder of a sweep's or a new one."""
    check_writable(folder)
    if folder.exists() and not folder.is_dir():
        raise Failure(f"{folder} is a file, but the output is a folder; name another --output.")
    is_new = not folder.exists() or not any(folder.iterdir())
    if not is_new and not (folder / JSON).is_file():
        raise Failure(
            f"{folder} holds other files and no sweep; name a new folder, or that of a sweep."
        )


def make(cells: Sequence[Cell], before: int, args: argparse.Namespace) -> dict[str, str]:
    """Make the erasures of the cells. Returns why cells failed, by their keys.

    before: how many others are done already.
    """
    failed: dict[str, str] = {}
    if not cells:
        return failed
    place = on_ray.Place(args.address, args.workers, args.cores, args.gpus)
    for cell in cells:
        if place.gpus == 0 and cell.args.device == "auto":
            cell.args.device = "cpu"
    jobs = {cell.key: cell for cell in cells}
    names = {cell.key: cell.name for cell in cells}
    with on_ray.connected(place) as dashboard, Lines(names, before) as lines:
        if dashboard:
            print(f"Ray's dashboard: http://{dashboard}", flush=True)
        for outcome in on_ray.outcomes(jobs, work, place, lines.watch):
            lines.ended(outcome)
            if outcome.failed:
                failed[outcome.key] = outcome.failed
                if args.traceback:
                    print(outcome.trace, file=sys.stderr)
    return failed
