"""Runs the tests of the ComfyUI backend on several versions of ComfyUI, and tables the results.

    python -m testbed.host.matrix FOLDER [FOLDER ...] [--page docs/hosts.md]

`python dev.py matrix` fetches the folders and starts this.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from .. import ROOT
from .machine import machine

TESTS = (
    "tests/comfy/test_host.py",
    "tests/comfy/test_training.py",
    "tests/comfy/test_attention.py",
    "tests/comfy/test_sentinels.py",
    "tests/comfy/test_encoders.py::test_gradient_reaches_every_selected_weight",
    "tests/comfy/test_other_encoders.py::test_gradient_reaches_every_selected_weight",
)
FORM = "tests/comfy/test_packed_networks.py::test_gradients_are_those_of_the_unpacked_network"
QUICK = (
    "tests/comfy/test_attention.py",
    "tests/comfy/test_sentinels.py",
    f"{FORM}[float8_e4m3fn]",
    f"{FORM}[int8_tensorwise]",
    "tests/comfy/test_host.py::test_gradients_reach_exactly_the_selected_weights",
    "tests/comfy/test_host.py::test_checkpointed_gradients_equal_unchecked_ones",
    "tests/comfy/test_host.py::test_node_hands_on_all_its_outputs",
)


@dataclass(frozen=True)
class Row:
    """The results on one host. failed: names of tests; skipped: the reasons given."""

    host: str
    passed: int
    failed: list[str]
    skipped: list[str]
    seconds: float

    def cells(self) -> list[str]:
        return [
            self.host,
            str(self.passed),
            "; ".join([str(len(self.failed)), *self.failed]),
            "; ".join([str(len(self.skipped)), *self.skipped]),
            f"{self.seconds:.0f}",
        ]


def version(folder: Path) -> str:
    text = (folder / "comfyui_version.py").read_text("utf-8")
    return re.findall(r'__version__ = "(.+?)"', text)[0]


def run(folder: Path, tests: Sequence[str]) -> Row:
    """Run the tests on a ComfyUI, in another process. Its output goes to the terminal."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *tests]
        environment = {**os.environ, "COMFYUI_PATH": str(folder)}
        subprocess.run(command, cwd=ROOT, env=environment, check=False)
        if not report.is_file():
            return Row(version(folder), 0, ["the tests did not run"], [], 0.0)
        return read(ElementTree.parse(report).getroot(), version(folder))


def read(report: ElementTree.Element, host: str) -> Row:
    """A row from pytest's report."""
    passed, failed, skipped = 0, [], []
    for case in report.iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(case.get("name"))
        elif (skip := case.find("skipped")) is not None:
            skipped.append(skip.get("message"))
        else:
            passed += 1
    if not passed and not failed:
        failed.append("no test ran")
    seconds = sum(float(suite.get("time")) for suite in report.iter("testsuite"))
    return Row(host, passed, failed, skipped, seconds)


def table(rows: list[Row]) -> str:
    head = ["ComfyUI", "passed", "failed", "skipped", "seconds"]
    lines = [head, ["---"] * len(head), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PAGE = """# ComfyUI's versions

Made by `python dev.py matrix{quick} --page docs/hosts.md`: which tests pass on which version of ComfyUI. They run on the CPU, with IconCanvas and with small models with random weights. All versions run with the packages of the newest, PyTorch included. The column *skipped* names the text encoders and forms of weights that an older ComfyUI does not have. The tests:

{tests}

{table}

Known differences of later versions are put into the newest of these and tested (tests/comfy/test_newer_hosts.py). To test your own ComfyUI, name it in the environment variable `COMFYUI_PATH` and run `python dev.py matrix`. Then tests/comfy/test_sentinels.py also says what your ComfyUI does that no test has tried.

Run on {machine}.
"""  # noqa: E501


def page(rows: list[Row], tests: Sequence[str]) -> str:
    told = "\n".join(f"* {test.replace('::', ', ')}" for test in tests)
    return PAGE.format(
        tests=told,
        table=table(rows),
        machine=machine(),
        quick=" --quick" if tests is QUICK else "",
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="testbed.host.matrix", description=__doc__)
    parser.add_argument("folder", nargs="+", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--quick", action="store_true", help="a few of the tests")
    options = parser.parse_args()
    tests, rows = QUICK if options.quick else TESTS, []
    for folder in options.folder:
        rows.append(run(folder.resolve(), tests))
        if options.page:
            options.page.write_text(page(rows, tests), "utf-8")
    print(table(rows))
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
