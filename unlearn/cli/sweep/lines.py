"""Progress of a sweep on the terminal: a line for each worker, and one for each finished cell."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from .on_ray import Busy, Outcome


class Lines:
    """The lines, as a context. Where the output is no terminal there are those of cells only.

    names: of all cells to come, by their keys. before: how many are done already.
    """

    def __init__(self, names: Mapping[str, str], before: int) -> None:
        self.names, self.done = names, before
        self.total = before + len(names)
        self.bars: dict[str, tqdm] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error) -> None:
        for bar in self.bars.values():
            bar.leave = False
            bar.close()

    def watch(self, busy: Busy) -> None:
        """What the workers do now."""
        working = {worker: (key, since) for key, (worker, since) in busy.items()}
        for worker in working.keys() - self.bars.keys():
            place = len(self.bars)
            self.bars[worker] = tqdm(bar_format="{desc}", position=place, disable=None)
        for number, (worker, bar) in enumerate(self.bars.items(), 1):
            text = "waits or is gone"
            if worker in working:
                key, since = working[worker]
                text = f"{self.names[key]}, since {max(0.0, time.time() - since):.0f} s"
            bar.set_description_str(f"worker {number} ({worker}): {text}")

    def ended(self, outcome: Outcome) -> None:
        """A cell has ended."""
        name = self.names[outcome.key]
        if outcome.failed:
            tqdm.write(f"failed: {name}: {outcome.failed}", file=sys.stderr)
            return
        self.done += 1
        tqdm.write(f"{self.done} of {self.total}: {name}: {outcome.line}", file=sys.stdout)
        sys.stdout.flush()
