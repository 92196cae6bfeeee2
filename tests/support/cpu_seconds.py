"""A pytest plugin that measures tests in CPU seconds, which hardly depend on the machine's load.

It counts this process and all that it starts, ended or still running, such as a server. The time of
a test includes its own fixtures. Session fixtures, and what a worker does before its first test,
have rows of their own; otherwise the first test would get the time for all.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiers import is_fast

DEAREST = 10


def cpu_seconds() -> float:
    """CPU seconds so far of this process and its children, ended or running.

    Not counted: an ended process whose parent never read its exit code.
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
        self._fast: set[str] = set()

    def _spent(self) -> float:
        """CPU seconds since the last call."""
        now = cpu_seconds()
        # The total can fall: when a child ends, the time of its own children may be lost.
        spent, self._last = max(0.0, now - self._last), now
        return spent

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._shared["start, imports and collection"] += self._spent()
        self._aside = 0.0
        result = yield
        spent = self._spent()
        self.tests[item.nodeid] = spent + self._aside
        if is_fast(item):
            self._fast.add(item.nodeid)
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
        if self._config.pluginmanager.hasplugin("dsession"):
            # The first of several processes. Its children are the workers: they count themselves.
            self._shared["start, imports and collection"] += sum(os.times()[:2])
            return
        self._shared["start, imports and collection"] += self._spent()
        output = getattr(self._config, "workeroutput", None)
        if output is not None:
            output["cpu_seconds"] = {
                "tests": self.tests,
                "fast": sorted(self._fast),
                "shared": dict(self._shared),
            }

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take over the figures of a worker of pytest-xdist that has ended."""
        found = getattr(node, "workeroutput", {}).get("cpu_seconds")
        if found:
            self.tests.update(found["tests"])
            self._shared.update(found["shared"])
            self._fast.update(found["fast"])

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.tests:
            return
        found = self._found()
        terminalreporter.section(f"{DEAREST} dearest tests, in CPU seconds")
        for name, spent in list(found["tests"].items())[:DEAREST]:
            terminalreporter.line(f"{spent:8.2f}  {name}")
        shared = ", ".join(f"{name} {spent:.1f}" for name, spent in self._shared.most_common(3))
        total, count = found["cpu_seconds"], len(self.tests)
        terminalreporter.line(f"{total:8.1f}  in all: {count} tests; of it shared: {shared}")
        if target := self._config.option.cpu:
            path = Path(target)
            text = json.dumps(found, indent=1) if path.suffix == ".json" else page(found)
            path.write_text(text + "\n", encoding="utf-8")
            terminalreporter.line(f"The table is in {target}.")

    def _found(self) -> dict[str, Any]:
        """All figures, the most expensive first: for each test, each file and each shared cost."""
        from testbed.host.machine import machine

        files: dict[str, dict[str, Any]] = {}
        for name, spent in self.tests.items():
            file = name.partition("::")[0]
            row = files.setdefault(file, {"tests": 0, "cpu_seconds": 0.0, "fast": 0.0})
            row["tests"] += 1
            row["cpu_seconds"] += spent
            row["fast"] += spent if name in self._fast else 0.0
        return {
            "machine": machine(),
            "cpu_seconds": sum(self.tests.values()) + sum(self._shared.values()),
            "fast": {
                "tests": len(self._fast),
                "cpu_seconds": sum(r["fast"] for r in files.values()),
            },
            "shared": dict(self._shared.most_common()),
            "files": dict(sorted(files.items(), key=lambda row: -row[1]["cpu_seconds"])),
            "tests": dict(sorted(self.tests.items(), key=lambda test: -test[1])),
        }


PAGE = """# What the tests cost

Made by `python dev.py test --cpu docs/tests.md`, in CPU seconds of all processes: a busy machine changes them little, and the clock's seconds much.

| tier | command | bar | measured |
|---|---|--:|--:|
| fast: no ComfyUI | `python dev.py test --fast` | 90 | {fast:.0f} of {fast_tests} tests, and the start |
| default, which CI runs | `python dev.py test` | 600 | {total:.0f} of {tests} tests, start included |
| the whole matrix | `python dev.py test --all` | none | not here |

## By file

{files}

Shared by all. Each of two processes does it for itself, but only one starts a server:

{shared}

## The dearest

{dearest}

Measured on {machine}.
"""  # noqa: E501


def page(found: dict[str, Any]) -> str:
    """The figures in Markdown."""
    files = [
        [name, str(row["tests"]), f"{row['cpu_seconds']:.1f}", f"{row['fast']:.1f}"]
        for name, row in found["files"].items()
    ]
    shared = [[name, f"{spent:.1f}"] for name, spent in found["shared"].items() if spent >= 0.05]
    dearest = [[name, f"{spent:.1f}"] for name, spent in list(found["tests"].items())[:DEAREST]]
    return PAGE.format(
        fast=found["fast"]["cpu_seconds"],
        fast_tests=found["fast"]["tests"],
        total=found["cpu_seconds"],
        tests=len(found["tests"]),
        files=table(["file", "tests", "CPU seconds", "of it fast"], files),
        shared=table(["what", "CPU seconds"], shared),
        dearest=table(["test", "CPU seconds"], dearest),
        machine=found["machine"],
    ).rstrip()


def table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])
