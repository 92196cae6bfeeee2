"""The tether: what a process started does not outlive it, ComfyUI least of all."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

from testbed.host.patience import IDLE_SECONDS, finish, wait_for_end
from testbed.host.server import TETHER

SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(3600)"

# Starts what it is given and waits, as the demo and the benchmark do.
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, *sys.argv[1:]], stdin=subprocess.PIPE)
time.sleep(3600)
"""

SERVES = """
import sys, time
from pathlib import Path
sys.path.append(sys.argv[1])
from testbed.host.server import Server
with Server(Path(sys.argv[2])) as server:
    print(server.address, flush=True)
    time.sleep(3600)
"""

each_end = pytest.mark.parametrize("end", ["terminate", "kill"])


def test_script_runs_as_if_python_had_been_given_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\n"
        "import beside\n"
        "print(json.dumps([__name__, sys.argv, beside.name, sys.stdin.read()]))\n"
    )
    (tmp_path / "beside.py").write_text("name = __name__")
    with subprocess.Popen(
        [sys.executable, TETHER, script, "one", "--two"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdin.write("not for the script")
        process.stdin.flush()
        said = json.loads(process.stdout.readline())
        wait_for_end(process.pid)  # before its input is closed, which would end it
    assert process.returncode == 0
    assert said == ["__main__", [str(script), "one", "--two"], "beside", ""]


def test_the_scripts_own_exit_code_is_handed_on(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit(3)")
    with subprocess.Popen([sys.executable, TETHER, script], stdin=subprocess.PIPE) as process:
        wait_for_end(process.pid)
    assert process.returncode == 3


@each_end
def test_script_ends_with_a_parent_that_was_ended(tmp_path: Path, end: str) -> None:
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, TETHER, script], stdout=subprocess.PIPE, text=True
    ) as parent:
        sleeper = int(parent.stdout.readline())
        getattr(parent, end)()
        wait_for_end(sleeper)


@pytest.mark.costly
def test_comfyui_ends_with_a_parent_that_was_terminated(checkpoint: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVES, str(ROOT), str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        name, _, port = parent.stdout.readline().strip().partition(":")
        socket.create_connection((name, int(port))).close()
        (server,) = psutil.Process(parent.pid).children()
        parent.terminate()
        finish(parent)
    wait_for_end(server.pid)
    assert gone(name, int(port))


def gone(name: str, port: int) -> bool:
    """Whether nothing answers there any more; the system may take a moment to close a port."""
    until = time.monotonic() + IDLE_SECONDS
    while time.monotonic() < until:
        try:
            socket.create_connection((name, port)).close()
        except ConnectionError:
            return True
        time.sleep(0.1)
    return False


FORKS = """
import multiprocessing, os, sys, time
sys.path.append(sys.argv[1])
from testbed.host.tether import end_with_parent

def work():
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(3600)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=work).start()
    time.sleep(3600)
"""


@each_end
def test_a_worker_ends_with_its_parent(end: str, tmp_path: Path) -> None:
    script = tmp_path / "forks.py"
    script.write_text(FORKS)
    command = [sys.executable, script, str(ROOT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        getattr(parent, end)()
        wait_for_end(worker)
