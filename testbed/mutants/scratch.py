"""A copy of the repository to put faults into, and the tests run in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.host.patience import finish

from .faults import Fault

COPIED = ("unlearn", "nodes", "tests", "dev.py", "pyproject.toml")
LEFT_OUT = (".git", ".venv", ".pytest_cache", ".ruff_cache", ".mypy_cache", "__pycache__")
UNTIDY = shutil.ignore_patterns("__pycache__", ".*_cache")

KILLED, SURVIVED, BROKEN = "killed", "survived", "broken"
"""broken: the tests could not be run with the fault, which says nothing of them."""


@dataclass(frozen=True)
class Outcome:
    """What the tests said."""

    verdict: str
    by: str = ""
    """The first test that failed; of a broken run, the end of what pytest wrote."""
    seconds: float = 0.0
    """CPU seconds of the run."""


class Scratch:
    """A copy of the repository. Code and tests are copied; all else is linked, since it is large
    and only read."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source, self.folder = source, folder
        for entry in sorted(source.iterdir()):
            if entry.name in COPIED:
                _copy(entry, folder / entry.name)
            elif entry.name == "testbed":
                self._copy_testbed(entry, folder / "testbed")
            elif entry.name not in LEFT_OUT:
                _link(entry, folder / entry.name)

    def _copy_testbed(self, source: Path, target: Path) -> None:
        """Its Python files. Folders without any hold weights and pictures, and are linked."""
        target.mkdir()
        for entry in sorted(source.iterdir()):
            if entry.suffix == ".py" or (entry.is_dir() and any(entry.rglob("*.py"))):
                _copy(entry, target / entry.name)
            elif entry.name not in LEFT_OUT:
                _link(entry, target / entry.name)

    @contextmanager
    def holding(self, fault: Fault) -> Iterator[None]:
        """The fault is in the copy while this is open."""
        file = self.folder / fault.file
        before, stat = file.read_bytes(), file.stat()
        file.write_text(fault.applied(before.decode()), encoding="utf-8", newline="")
        # Python compiles a file anew where its time differs from the one that was compiled.
        os.utime(file, (stat.st_atime, stat.st_mtime + 2))
        try:
            yield
        finally:
            file.write_bytes(before)
            os.utime(file, (stat.st_atime, stat.st_mtime))

    def test(self, tests: Sequence[str], write_bytecode: bool = False) -> Outcome:
        """Run the fast ones of these tests until one fails."""
        options = ["-x", "-q", "--fast", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment["PYTHONDONTWRITEBYTECODE"] = "" if write_bytecode else "1"
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            said, _ = finish(process)
        except TimeoutError:
            return Outcome(KILLED, "silence: it did not end")
        return outcome(process.returncode, said)

    def judge(self, fault: Fault) -> Outcome:
        with self.holding(fault):
            return self.test(fault.tests)


def outcome(code: int, said: str) -> Outcome:
    """What pytest's exit code and words mean: 0, all passed; 1, one failed; else none was run."""
    spent = re.search(r"^ *([\d.]+) +in all:", said, re.MULTILINE)
    seconds = float(spent.group(1)) if spent else 0.0
    failed = re.search(r"^(?:FAILED|ERROR) \S*?(\w+\.py::\w+)", said, re.MULTILINE)
    if code == 0:
        return Outcome(SURVIVED, "", seconds)
    if code == 1 and failed:
        return Outcome(KILLED, failed.group(1), seconds)
    return Outcome(BROKEN, " ".join(said.split())[-300:], seconds)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=UNTIDY)
    else:
        shutil.copy2(source, target)


def _link(source: Path, target: Path) -> None:
    """A link, or a copy on Windows, where links need rights."""
    if os.name == "nt":
        _copy(source, target)
    else:
        target.symlink_to(source.resolve(), target_is_directory=source.is_dir())
