"""A pytest plugin that says what tests cost in CPU seconds, which a busy machine does not change.

Counted are this process and all that it starts: those that have ended and those that still run,
such as a server. A test pays for its own fixtures. Session fixtures, and what a worker does before
its first test, are rows of their own, since whichever test comes first would pay for all.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

DEAREST = 10
SHARED = "(shared)"


def cpu_seconds() -> float:
    """CPU seconds so far of this process, of its children that have ended, and of those that run.

    Missing is what a process used whose parent never asked for its end.
    """
    total = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        try:
            total += sum(child.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


class CpuSeconds:
    """Measures in each process that runs tests; the first of them gathers and prints."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._last = 0.0
        self._aside = 0.0  # spent on session fixtures while a test was measured
        self._shared: Counter[str] = Counter()
        self.tests: dict[str, float] = {}

    def _spent(self) -> float:
        """CPU seconds since the last call."""
        now = cpu_seconds()
        # Less than before where a child ended and took its own children's time along.
        spent, self._last = max(0.0, now - self._last), now
        return spent

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._shared["start, imports and collection"] += self._spent()
        self._aside = 0.0
        result = yield
        spent = self._spent()
        self.tests[item.nodeid] = spent + self._aside
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef, request: pytest.FixtureRequest
    ) -> Iterator[None]:
        if fixturedef.scope != "session":
            return (yield)
        self._aside += self._spent()
        try:
            return (yield)
        finally:
            self._shared[f"fixture {fixturedef.argname}"] += self._spent()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._shared["start, imports and collection"] += self._spent()
        output = getattr(self._config, "workeroutput", None)
        if output is not None:
            output["cpu_seconds"] = {"tests": self.tests, "shared": dict(self._shared)}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """A worker of pytest-xdist has ended: what it measured."""
        found = getattr(node, "workeroutput", {}).get("cpu_seconds")
        if found:
            self.tests.update(found["tests"])
            self._shared.update(found["shared"])

    def rows(self) -> list[dict[str, Any]]:
        """One a file, dearest first, and at the end one for each thing that the tests share."""
        files: dict[str, list[float]] = defaultdict(list)
        for name, spent in self.tests.items():
            files[name.partition("::")[0]].append(spent)
        rows = [
            {"file": name, "tests": len(spent), "cpu_seconds": sum(spent)}
            for name, spent in files.items()
        ]
        rows.sort(key=lambda row: -row["cpu_seconds"])
        shared = [
            {"file": f"{SHARED} {name}", "tests": 0, "cpu_seconds": spent}
            for name, spent in self._shared.most_common()
        ]
        return rows + [row for row in shared if row["cpu_seconds"] >= 0.05]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.tests:
            return
        dearest = sorted(self.tests.items(), key=lambda test: -test[1])
        total = sum(self.tests.values()) + sum(self._shared.values())
        terminalreporter.section(f"{DEAREST} dearest tests, in CPU seconds")
        for name, spent in dearest[:DEAREST]:
            terminalreporter.line(f"{spent:8.2f}  {name}")
        shared = ", ".join(f"{name} {spent:.1f}" for name, spent in self._shared.most_common(3))
        terminalreporter.line(
            f"{total:8.1f}  in all: {len(self.tests)} tests; of it shared by them: {shared}"
        )
        if target := self._config.option.cpu:
            write(Path(target), self.rows(), dict(dearest), total)
            terminalreporter.line(f"The table is in {target}.")


def write(target: Path, rows: list[dict[str, Any]], tests: dict[str, float], total: float) -> None:
    """The table as JSON or as a page in Markdown, by the file's name."""
    from testbed.host.machine import machine

    if target.suffix == ".json":
        found = {"machine": machine(), "cpu_seconds": total, "files": rows, "tests": tests}
        target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return
    lines = [f"| {r['file']} | {r['tests'] or ''} | {r['cpu_seconds']:.1f} |" for r in rows]
    dearest = [f"| {name} | {spent:.1f} |" for name, spent in list(tests.items())[:DEAREST]]
    target.write_text(
        f"{len(tests)} tests, {total:.0f} CPU seconds\n\n| file | tests | CPU seconds |\n"
        + "|---|--:|--:|\n"
        + "\n".join(lines)
        + "\n\n| test | CPU seconds |\n|---|--:|\n"
        + "\n".join(dearest)
        + f"\n\nMeasured on {machine()}.\n",
        encoding="utf-8",
    )
