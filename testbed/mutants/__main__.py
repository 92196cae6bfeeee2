"""Put one fault after another into a copy of the repository, and run the tests that should notice.

    python dev.py mutants                 all faults: how many no test notices
    python dev.py mutants few-shot        those whose name has this in it
    python dev.py mutants --page docs/mutants.md

The faults are in testbed/mutants/faults.py. Ends with 1 where a fault survives, or where the tests
fail without any.
"""

from __future__ import annotations

import argparse
import queue
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from testbed import ROOT
from testbed.host.machine import machine

from .faults import FAULTS, Fault
from .scratch import BROKEN, KILLED, SURVIVED, Outcome, Scratch

AT_ONCE = 2
PAGE = """# Faults put in on purpose

Made by `python dev.py mutants --page docs/mutants.md`. Each row is one fault: in a copy of the repository one term of a loss, one sign or one constant is changed, and the tests that should notice run until the first one fails. A fault that no test notices is one that anybody could make. {survived} of {count} survive; the tests took {seconds:.0f} CPU seconds in all.

{table}

Run on {machine}.
"""  # noqa: E501


def run(
    source: Path,
    faults: Sequence[Fault],
    at_once: int = AT_ONCE,
    told: Callable[[str], object] = print,
) -> Iterator[tuple[Fault, Outcome]]:
    """Each fault and what the tests said of it, in the order of the list.

    source: the repository, which is only read. Raises SystemExit where the tests fail without any
    fault: then they tell nothing.
    """
    with tempfile.TemporaryDirectory() as place:
        copies: queue.Queue[Scratch] = queue.Queue()
        every = sorted({test for fault in faults for test in fault.tests})
        for number in range(min(at_once, len(faults))):
            (folder := Path(place) / f"copy{number}").mkdir()
            copies.put(Scratch(source, folder))

        def on_a_copy(work: Callable[[Scratch], Outcome]) -> Outcome:
            copy = copies.get()
            try:
                return work(copy)
            finally:
                copies.put(copy)

        pool = ThreadPoolExecutor(at_once)
        try:
            for plain in pool.map(lambda test: on_a_copy(lambda copy: copy.test([test])), every):
                if plain.verdict != SURVIVED:
                    raise SystemExit(f"Without any fault the tests fail: {plain.by}")
            told(f"{len(every)} files of tests pass without a fault.")
            outcomes = pool.map(lambda fault: on_a_copy(lambda copy: copy.judge(fault)), faults)
            yield from zip(faults, outcomes)
        finally:
            pool.shutdown(cancel_futures=True)  # those that have not begun


def chosen(words: Sequence[str]) -> list[Fault]:
    """The faults with one of these words in their names; all where there are none."""
    return [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]


def rows(found: Sequence[tuple[Fault, Outcome]]) -> dict[str, list[str]]:
    """A row of the table for each fault, by its name."""
    return {
        fault.name: [
            fault.name,
            fault.file,
            told.by if told.verdict == KILLED else f"**{told.verdict}**",
            f"{told.seconds:.1f}",
        ]
        for fault, told in found
    }


def rows_of(text: str) -> dict[str, list[str]]:
    """The rows of a page that was written before, of the faults that there still are."""
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    names = {fault.name for fault in FAULTS}
    return {row[0]: row for row in found if row[0] in names}


def page(found: dict[str, list[str]]) -> str:
    head = [["fault", "in", "killed by", "CPU seconds"], ["---", "---", "---", "--:"]]
    return PAGE.format(
        survived=sum(row[2].startswith("**") for row in found.values()),
        count=len(found),
        seconds=sum(float(row[3]) for row in found.values()),
        table="\n".join(f"| {' | '.join(row)} |" for row in [*head, *found.values()]),
        machine=machine(),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("word", nargs="*", help="only faults with this in their names")
    parser.add_argument(
        "--page",
        type=Path,
        help="write the table into this file, too, where other faults keep their rows",
    )
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="runs side by side")
    options = parser.parse_args(arguments)
    faults = chosen(options.word)
    if not faults:
        parser.error("no fault has a name like that")
    found = []
    for fault, told in run(ROOT, faults, options.at_once):
        found.append((fault, told))
        by = f"by {told.by}" if told.verdict == KILLED else told.by if told.by else ""
        print(f"{told.verdict:9}{told.seconds:6.1f} s  {fault.name}  {by}", flush=True)
    if options.page:
        # Asked for some, it keeps what the page says of the others.
        before = rows_of(options.page.read_text("utf-8")) if options.page.is_file() else {}
        every = {**before, **rows(found)}
        in_order = {fault.name: every[fault.name] for fault in FAULTS if fault.name in every}
        options.page.write_text(page(in_order), encoding="utf-8")
    left = [fault.name for fault, told in found if told.verdict == SURVIVED]
    broken = [fault.name for fault, told in found if told.verdict == BROKEN]
    seconds = sum(told.seconds for _, told in found)
    print(f"\n{len(left)} of {len(found)} faults survive; {seconds:.0f} CPU seconds.")
    for what, names in (("survived", left), ("could not be run", broken)):
        for name in names:
            print(f"  {what}: {name}")
    return 1 if left or broken else 0


if __name__ == "__main__":
    sys.exit(main())
