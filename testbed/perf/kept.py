"""The rows that are measured, kept in a JSON file after each, so that a stopped run goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..host import workers
from .plan import Case


class OtherRun(ValueError):
    """The file's rows are of another machine or another amount."""


@dataclass
class Kept:
    """Rows of one machine and one amount. Each is of a case and a round, from 1."""

    file: Path
    machine: str
    quick: bool
    threads: int
    """On a CPU; 0: as the sizes say."""
    rows: list[dict] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    @staticmethod
    def opened(file: Path, machine: str, quick: bool, threads: int) -> Kept:
        """What a file has, or nothing where there is none. Raises OtherRun."""
        kept = Kept(file, machine, quick, threads)
        if not file.exists():
            return kept
        found = json.loads(file.read_text("utf-8"))
        for name, mine in (("machine", machine), ("quick", quick), ("threads", threads)):
            if found[name] != mine:
                raise OtherRun(
                    f"{file} has rows of another run: its {name} is {found[name]!r}, and here it "
                    f"is {mine!r}. Name another file with --json, or delete this one."
                )
        kept.rows, kept.commands = found["rows"], found["commands"]
        return kept

    @staticmethod
    def shown(file: Path) -> Kept:
        """What a file has, whatever machine it is of."""
        found = json.loads(file.read_text("utf-8"))
        names = ("machine", "quick", "threads", "rows", "commands")
        return Kept(file, **{name: found[name] for name in names})

    def has(self, case: Case, number: int) -> bool:
        return any(is_of(row, case) and row["round"] == number for row in self.rows)

    def why(self, case: Case) -> str:
        """Why a case could not be measured; "" if it could, or was not tried."""
        return next((row["why"] for row in self.rows if is_of(row, case) and "why" in row), "")

    def add(self, row: dict) -> None:
        self.rows.append(row)
        self.write()

    def forget(self, cases: list[Case]) -> None:
        """Leave out the rows of some cases, so that they are measured again."""
        self.rows = [row for row in self.rows if not any(is_of(row, case) for case in cases)]

    def write(self) -> None:
        names = ("machine", "quick", "threads", "commands", "rows")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        workers.write_rows(self.file, {name: getattr(self, name) for name in names})


def is_of(row: dict, case: Case) -> bool:
    return (row["case"], row["size"]) == (case.name, case.size)
