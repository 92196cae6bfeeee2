"""What tests cost: CPU seconds of all processes, by test and by file."""

from __future__ import annotations

import subprocess
import sys
import time

from cpu_seconds import cpu_seconds, page

BURN = "import time\nwhile time.process_time() < 0.3: pass\n"


def test_own_work_counts_and_waiting_does_not() -> None:
    began = cpu_seconds()
    own = time.process_time()
    while time.process_time() < own + 0.2:
        pass
    worked = cpu_seconds() - began
    assert worked >= 0.15
    before = cpu_seconds(), time.process_time()
    time.sleep(0.3)
    waited = cpu_seconds() - before[0]
    assert waited < time.process_time() - before[1] + 0.1


def test_children_count_while_they_run_and_when_they_have_ended() -> None:
    began = cpu_seconds()
    command = [sys.executable, "-c", BURN + "print('done', flush=True)\ninput()"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        child.stdout.readline()
        running = cpu_seconds() - began
        child.communicate("\n")
    ended = cpu_seconds() - began
    assert running >= 0.25
    assert ended >= running - 0.05, "what it used is not lost with it"


def test_the_page_has_a_row_for_each_file_and_the_sums_of_both_tiers() -> None:
    found = {
        "machine": "A machine",
        "cpu_seconds": 12.4,
        "fast": {"tests": 1, "cpu_seconds": 3.0},
        "shared": {"fixture host": 2.0, "nothing": 0.0},
        "files": {
            "a.py": {"tests": 2, "cpu_seconds": 7.4, "fast": 0.0},
            "b.py": {"tests": 1, "cpu_seconds": 3.0, "fast": 3.0},
        },
        "tests": {"a.py::one": 7.0, "b.py::two": 3.0, "a.py::three": 0.4},
    }
    text = page(found)
    assert "| 90 | 3 of 1 tests" in text
    assert "| 600 | 12 of 3 tests" in text
    assert "| a.py | 2 | 7.4 | 0.0 |" in text
    assert "| b.py | 1 | 3.0 | 3.0 |" in text
    assert "| fixture host | 2.0 |" in text
    assert "nothing" not in text
    assert "| a.py::one | 7.0 |" in text
    assert text.endswith("Measured on A machine.")
