"""Sweeps on a real Ray of two workers: one is killed, the sweep is ended and killed, one erasure
fails. Nothing is lost, and nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import sweep_jobs
from commands import CPU
from conftest import ROOT, SUPPORT
from sweep_jobs import noted

from testbed.host.patience import Patience, finish
from unlearn.cli.sweep import on_ray
from unlearn.cli.sweep.plan import read_plan
from unlearn.core.erasure import Erasure

pytestmark = pytest.mark.slow

PLACE = on_ray.Place(workers=2, gpus=0)


@pytest.fixture(scope="module", autouse=True)
def ray_is_there() -> None:
    """Not skipped without: the whole tier promises it."""
    try:
        import ray  # noqa: F401
    except ImportError:
        pytest.fail("Ray is missing; `python dev.py test --all` installs it.")


def test_a_killed_worker_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    names = [f"job{number}" for number in range(8)]
    killed: list[tuple[str, int]] = []

    def watch(busy: on_ray.Busy) -> None:
        """Kill one worker in the midst of a job, once some are done."""
        done = dict(noted(tmp_path, "done"))
        for name, process in noted(tmp_path, "begun"):
            fresh = name in busy and name not in done and time.time() - busy[name][1] < 2
            if len(done) >= 2 and fresh and not killed:
                assert busy[name][0].endswith(f", process {process}")
                os.kill(process, signal.SIGKILL)
                killed.append((name, process))

    jobs = {name: (str(tmp_path), name, 4.0) for name in names}
    with on_ray.connected(PLACE):
        found = list(on_ray.outcomes(jobs, sweep_jobs.wait, PLACE, watch))
    ((victim, process),) = killed
    assert sorted(outcome.key for outcome in found) == names, "each once"
    assert {outcome.line for outcome in found} == {"waited for 4 s"}
    assert sorted(name for name, _ in noted(tmp_path, "done")) == names, "nothing twice"
    begun = Counter(name for name, _ in noted(tmp_path, "begun"))
    assert begun == {name: 1 + (name == victim) for name in names}
    assert (victim, process) not in noted(tmp_path, "done")


# The command

STAND_IN = (
    "import sys\nimport sweep_jobs\nfrom unlearn.cli.sweep import command\n"
    "command.work = sweep_jobs.cell\n"
    "from unlearn.__main__ import script\nsys.exit(script())\n"
)


def start(*arguments: str, code: str = "") -> subprocess.Popen:
    """The program; with `code` in place of its own beginning."""
    program = ["-c", code] if code else ["-m", "unlearn"]
    return subprocess.Popen(
        [sys.executable, *program, "sweep", *arguments, "--workers", "2", "--gpus", "0"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(SUPPORT)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until_done(process: subprocess.Popen, folder: Path, count: int) -> None:
    """Wait until `count` cells are done."""
    patience = Patience(process.pid)
    seen = 0
    while len(noted(folder, "done")) < count:
        assert process.poll() is None, process.communicate()
        assert not patience.ran_out()
        if len(noted(folder, "begun")) > seen:
            seen = len(noted(folder, "begun"))
            patience.heard()
        time.sleep(0.1)


def test_a_sweep_that_is_ended_or_killed_goes_on_where_it_was(
    tmp_path: Path, iconcanvas_folder: Path
) -> None:
    plan, folder = tmp_path / "plan.toml", tmp_path / "out"
    plan.write_text(
        f'models = "{iconcanvas_folder}"\nseeds = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n'
        '[concepts]\nobject = "fox"\n[methods.closed_form]\n'
    )
    asked = [str(plan), "-o", str(folder)]
    keys = sorted(cell.key for cell in read_plan(plan, folder))

    process = start(*asked, code=STAND_IN)
    until_done(process, folder, 2)
    process.send_signal(signal.SIGTERM)
    _, said = finish(process)
    assert process.returncode == 130
    kept = len(json.loads((folder / "table.json").read_text())["cells"])
    assert 2 <= kept < 10
    assert f"Interrupted; {kept} of 10 erasures are done, and the same command goes on" in said

    process = start(*asked, code=STAND_IN)
    until_done(process, folder, kept + 2)
    process.kill()
    finish(process)
    workers = {pid for _, pid in noted(folder, "begun")}
    patience = Patience(os.getpid(), busy=60)
    while any(map(psutil.pid_exists, workers)):  # Ray ends them when their driver is gone
        assert not patience.ran_out()
        time.sleep(0.1)
    assert len(noted(folder, "done")) < 10, "it was killed in the midst"

    process = start(*asked, code=STAND_IN)
    out, said = finish(process)
    assert process.returncode == 0, said
    assert f"10 of 10 erasures are done: {folder / 'table.md'}" in out
    assert sorted(key for key, _ in noted(folder, "done")) == keys, "none lost, none twice"
    found = json.loads((folder / "table.json").read_text())
    assert [row["seed"] for row in found["cells"]] == list(range(10))
    assert not found["missing"]


def test_one_erasure_fails_and_the_other_is_made(tmp_path: Path, iconcanvas_folder: Path) -> None:
    """With nothing in the place of the workers' own code."""
    plan, folder = tmp_path / "plan.toml", tmp_path / "out"
    plan.write_text(
        f'models = "{iconcanvas_folder}"\n[concepts]\nobject = ["fox -> koala", "owl"]\n'
        f'[methods.closed_form]\n[options]\nsize = 64\ndevice = "{CPU[1]}"\n'
    )
    made, fails = read_plan(plan, folder)
    fails.folder.mkdir(parents=True)
    (folder / "table.json").write_text("{}")
    fails.args.output.write_text("not an erasure")
    process = start(str(plan), "-o", str(folder))
    out, said = finish(process)
    assert process.returncode == 1
    assert "1 of 2: fox -> koala by closed_form, seed 0: " in out
    assert "failed: owl by closed_form, seed 0: " in said
    assert "was not written by this program" in said
    assert said.endswith("1 of 2 erasures failed, see above; the same command tries them again.\n")
    found = json.loads((folder / "table.json").read_text())
    assert [row["concept"] for row in found["cells"]] == ["fox -> koala"]
    (missing,) = found["missing"]
    assert "was not written by this program" in missing["failed"]
    measured = Erasure.load(made.args.output).record["measured"]
    assert measured["receipt"] == found["cells"][0]["record"]["measured"]["receipt"]
