"""The benchmark: erase concepts from IconCanvas and measure what is gone and what is kept.

    python dev.py bench                     every method, nearly every mode
    python dev.py bench --quick             3 objects, 1 style, 1 character, default modes
    python dev.py bench --full              also a second seed, and more concepts for each mode
    python dev.py bench --method few_shot --concept fox --json rows.json

Rows, table, plot and pictures are written to output/bench, unless you name files. Rows that the
JSON file already has for the same weights and judge are not measured again, so a stopped run
continues. Delete the file to measure everything again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import testbed

from ..host import workers
from .pictures import page_of_modes, page_of_pictures, page_of_typed
from .plan import METHODS, job_key, jobs_of
from .plot import save_plot
from .table import table, write_table

HERE = testbed.ROOT / "output" / "bench"


def main() -> None:
    from ..model.measure import known

    parser = argparse.ArgumentParser(
        prog="python dev.py bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--mode", nargs="+", help="only these modes of a method")
    parser.add_argument("--concept", nargs="+", type=known, help="concepts of IconCanvas")
    parser.add_argument("--seed", nargs="+", type=int)
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--quick", action="store_true", help="a tenth of the work")
    amount.add_argument("--full", action="store_true", help="three times the work")
    parser.add_argument("--json", type=Path, help="where the rows are kept")
    parser.add_argument(
        "--table",
        nargs="+",
        type=Path,
        help="also write the table as Markdown; a file with <!-- bench --> marks gets it between "
        "them",
    )
    parser.add_argument("--pictures", type=Path, help="also write a PNG of before and after")
    parser.add_argument("--modes", type=Path, help="the same for every mode, on a few concepts")
    parser.add_argument(
        "--typed", type=Path, help="the same for prompts as people type them, on a few concepts"
    )
    parser.add_argument("--plot", type=Path, help="also write a PNG that plots the table")
    parser.add_argument(
        "--no-run", action="store_true", help="only write what the JSON file already has"
    )
    parser.add_argument("--jobs", type=int, help=workers.JOBS_HELP)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        run_jobs(json.loads(options.worker))
        return
    known = {mode for method in options.method for mode in METHODS[method]}
    for mode in options.mode or ():
        if mode not in known:
            parser.error(f"there is no mode {mode!r}; use {', '.join(sorted(known))}")
    pages = ("pictures", "modes", "typed")
    named = any(getattr(options, name) for name in ("json", "table", "plot", *pages))
    if not named:
        HERE.mkdir(parents=True, exist_ok=True)
        options.json, options.table = HERE / "rows.json", [HERE / "bench.md"]
        options.plot = HERE / "plot.png"
        for name in pages:
            setattr(options, name, HERE / f"{name}.png")
    jobs = jobs_of(options)
    if not jobs:
        parser.error("nothing to measure with these options: add --full or --concept.")
    rows = read_rows(options.json)
    done = {(job_key(row), attacked) for row in rows for attacked in {False, "attacks" in row}}
    missing = [job for job in jobs if (job_key(job), job["attack"]) not in done]
    if not options.no_run:
        rows = run_parallel(missing, options.jobs, options.json, rows)
    wanted = {job_key(job) for job in jobs}
    shown = [row for row in rows if job_key(row) in wanted]
    if not shown:
        raise SystemExit("bench: no such row is measured yet; run it without --no-run.")
    print(table(shown))
    for file in options.table or ():
        write_table(file, shown, command())
    if options.plot:
        save_plot(shown, options.plot)
    drawers = (page_of_pictures, page_of_modes, page_of_typed)
    for draw, name in zip(drawers, pages, strict=True):
        file = getattr(options, name)
        page = draw(jobs) if file else None
        if page:
            page.save(file, optimize=True)
        elif file and named:
            raise SystemExit(f"bench: there are no pictures for {file}; use another --json file.")


def command() -> str:
    """What was asked for, as a user types it. A run that only writes the pages made nothing."""
    told = (word for word in sys.argv[1:] if word != "--no-run")
    return shlex.join(["python", "dev.py", "bench", *told])


def read_rows(file: Path | None) -> list[dict]:
    """The file's rows of the repository's weights."""
    from ..model.fingerprint import of_these_weights

    rows = json.loads(file.read_text("utf-8")) if file and file.exists() else []
    return of_these_weights(rows, file)


def run_parallel(
    jobs: list[dict], count: int | None, file: Path | None, before: list[dict]
) -> list[dict]:
    """Measure the jobs in several processes. Returns `before` with the new rows, which replace old
    rows of the same job.

    file: written again whenever rows come in.
    """
    from tqdm import tqdm

    rows = before
    # The pictures before any edit are drawn once for each concept and seed, so these stay in one
    # process.
    pairs = [(job["concept"], job["seed"]) for job in jobs]
    shares = workers.shared(jobs, pairs, count, cost=lambda job: 1 + job["attack"])
    with tqdm(total=len(jobs), desc="bench", disable=not jobs) as progress:
        for new in workers.results("testbed.bench", shares):
            measured = {job_key(row) for row in new}
            rows = [row for row in rows if job_key(row) not in measured] + new
            progress.update()
            progress.set_postfix_str(f"{new[-1]['concept']} ua {new[-1]['ua']:.0%}")
            if file:
                workers.write_rows(file, rows)
    return rows


def run_jobs(jobs: list[dict]) -> None:
    """A worker: measures its jobs one by one and tells the rows of each."""
    import logging

    import torch

    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    from ..model import pack
    from ..model.judge import Judge
    from .row import draw_before, measure_job

    package = pack.load()
    parts = pack.checkpoint()
    judge = Judge()
    before: dict[tuple, torch.Tensor] = {}
    for job in sorted(jobs, key=lambda job: (job["concept"], job["seed"])):
        pair = job["concept"], job["seed"]
        if pair not in before:
            before = {pair: draw_before(package, parts, *pair)}
        rows = measure_job(package, parts, judge, before[pair], job)
        workers.tell(rows)


if __name__ == "__main__":
    main()
