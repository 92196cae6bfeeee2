"""A copy of the repository to put faults into, and the tests run in it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from testbed import ROOT
from testbed.host.patience import POLL_SECONDS, Patience

from .faults import Fault

COPIED = ("unlearn", "nodes", "tests", "dev.py", "pyproject.toml")
LEFT_OUT = (".git", ".venv", ".pytest_cache", ".ruff_cache", ".mypy_cache", "__pycache__")
BUSY_SECONDS = 120.0  # of CPU time, after which a run hangs: none needs a quarter of it
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
        before = file.read_bytes()
        self._write(file, fault.applied(before.decode()).encode())
        try:
            yield
        finally:
            self._write(file, before)

    @staticmethod
    def _write(file: Path, content: bytes) -> None:
        """Python must compile it anew, also where its size and the second are those of before."""
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
            compiled.unlink()
        file.write_bytes(content)

    def test(self, tests: Sequence[str]) -> Outcome:
        """Run the fast ones of these tests until one fails."""
        options = ["-x", "-q", "--fast", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
        said, ended = (self.folder.with_suffix(end) for end in (".txt", ".code"))
        ended.unlink(missing_ok=True)
        given = self.folder, [*options, *tests], said, ended
        process = context().Process(target=run_pytest, args=given)
        process.start()
        patience = Patience(process.pid, busy=BUSY_SECONDS)
        while process.exitcode is None:
            process.join(POLL_SECONDS)
            if process.exitcode is not None or not patience.ran_out():
                continue
            process.join(POLL_SECONDS)  # it may have ended just now
            if process.exitcode is None:
                process.kill()
                process.join()
                return Outcome(KILLED, "silence: it did not end", BUSY_SECONDS)
        # Not process.exitcode: two threads that ask at once may get it wrong.
        code = int(ended.read_text()) if ended.exists() else -1
        return outcome(code, said.read_text(encoding="utf-8", errors="replace"))

    def judge(self, fault: Fault) -> Outcome:
        with self.holding(fault):
            return self.test(fault.tests)


@cache
def context() -> multiprocessing.context.BaseContext:
    """New processes, forked from one that has imported what takes long, where the system can."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    # An optimiser's first step imports the last of them: a second, each time.
    found.set_forkserver_preload(["torch", "pytest", "psutil", "safetensors", "torch._dynamo"])
    return found


def run_pytest(folder: Path, arguments: list[str], said: Path, ended: Path) -> None:
    """In a process of its own: run the tests of a copy. What they say goes to the file `said`, and
    pytest's exit code to the file `ended`."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("testbed", "unlearn")]:
        del sys.modules[name]  # those of the repository, not of the copy
    sys.path[:] = [str(folder), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(folder)
    with said.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        import pytest

        code = int(pytest.main(arguments))
        sys.stdout.flush()
        ended.write_text(str(code))
        os._exit(code)


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
