"""The benchmark of speed: phases, the tables of kept rows, and a stopped run that goes on."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from testbed.perf import __main__ as program
from testbed.perf import page as pages
from testbed.perf.growth import GROWTH
from testbed.perf.kept import Kept, OtherRun
from testbed.perf.methods import Amount, told_passes, watched
from testbed.perf.phases import Phases, Steps, median_of, replaced
from testbed.perf.plan import Case, cases_of
from testbed.perf.roof import Operations

FAST = ("machine", "few_shot paper", "plain few_shot", "drawing")


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def phases(clock: Clock) -> Phases:
    return Phases(now=clock)


def test_a_phase_inside_another_counts_for_itself(phases: Phases, clock: Clock) -> None:
    with phases.phase("optimiser"):
        clock.time += 1
        with phases.phase("backward"):
            clock.time += 4
        clock.time += 2
    clock.time += 100
    assert phases.seconds == {"optimiser": 3, "backward": 4}


def test_what_is_inside_a_whole_phase_counts_for_it(phases: Phases, clock: Clock) -> None:
    with phases.phase("drawing", whole=True):
        clock.time += 1
        with phases.phase("encoding"), phases.phase("network forward"):
            clock.time += 2
        clock.time += 4
    with phases.phase("encoding"):
        clock.time += 8
    assert phases.seconds == {"drawing": 7, "encoding": 8}


def test_a_phase_ends_where_an_error_leaves_it(phases: Phases, clock: Clock) -> None:
    def fail() -> None:
        clock.time += 1
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), phases.phase("solve"):
        phases.around(fail, "encoding")()
    clock.time += 5
    with phases.phase("saving"):
        clock.time += 2
    assert phases.seconds == {"encoding": 1, "solve": 0, "saving": 2}


def test_the_clock_is_read_when_the_device_has_done_all(clock: Clock) -> None:
    def finish() -> None:
        clock.time = 3.0

    phases = Phases(synchronise=finish, now=clock)
    phases.enter("solve")
    clock.time = 1.0
    assert phases.clock() == 3.0


def test_the_median_step_is_a_real_one() -> None:
    """Medians of each phase by itself could add up to more than the median step."""
    steps = [
        (3.0, Counter({"encoding": 2.5, "backward": 0.1})),
        (2.0, Counter({"encoding": 0.5, "backward": 1.4})),
        (1.0, Counter({"encoding": 0.8, "saving": 0.0})),
        (9.0, Counter({"encoding": 9.0})),
    ]
    assert median_of(steps) == (2.0, {"encoding": 0.5, "backward": 1.4})
    assert median_of(steps[2:3]) == (1.0, {"encoding": 0.8})


def test_a_step_has_what_passed_since_the_last(phases: Phases, clock: Clock) -> None:
    steps = Steps(phases)
    for seconds in (1, 2):
        with phases.phase("encoding"):
            clock.time += seconds
        clock.time += 1
        steps.on_step(1, 2, 0.5, None)
    assert steps.ended == [(2, {"encoding": 1}), (3, {"encoding": 2})]


def test_functions_are_replaced_for_a_while() -> None:
    class One:
        def call(self) -> int:
            return 1

    class Two(One):
        pass

    with replaced(Two, "call", lambda self: 2):
        assert (One().call(), Two().call()) == (1, 2)
    assert "call" not in vars(Two)
    assert Two().call() == 1


class Loop:
    """A small training whose parts are phases."""

    def __init__(self) -> None:
        self.weight = torch.ones(32, 32, requires_grad=True)
        self.optimiser = torch.optim.Adam([self.weight])

    def encode(self) -> torch.Tensor:
        return torch.randn(64, 32)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight

    def run(self, on_step) -> None:
        for _ in range(5):
            self.optimiser.zero_grad()
            self.predict(self.encode()).square().mean().backward()
            self.optimiser.step()
            on_step()


def test_phases_add_up_to_at_most_the_whole() -> None:
    places = [(Loop, "encode", "encoding", False), (Loop, "predict", "network forward", False)]
    loop, before = Loop(), torch.Tensor.backward
    row = watched(torch.device("cpu"), places, loop.run, Amount(steps=3, warm=1))
    assert set(row["phases"]) == {"encoding", "network forward", "backward", "optimiser"}
    assert 0 < sum(row["phases"].values()) <= row["phases_of"] + 1e-5
    assert row["seconds"] == row["phases_of"]
    assert len(row["all"]) == 3
    assert sum(row["first"]["phases"].values()) <= row["first"]["seconds"] + 1e-5
    assert torch.Tensor.backward is before
    assert "encode" in vars(Loop)
    assert row["peak_mb"] >= row["base_mb"] > 0


def test_on_a_gpu_the_seconds_are_of_a_run_without_phases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pretended one: the clock is read when it has done all, and its driver tells the memory."""
    waited: list[int] = []
    figures = {
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 1 << 20,
        "max_memory_allocated": lambda: 5 << 20,
        "mem_get_info": lambda device=None: (10 << 20, 80 << 20),
        "synchronize": lambda device=None: waited.append(1),
    }
    for name, figure in figures.items():
        monkeypatch.setattr(torch.cuda, name, figure)
    loop, runs, waits = Loop(), [], []

    def run(on_step) -> None:
        before = len(waited)
        loop.run(on_step)
        runs.append(getattr(torch.Tensor.backward, "__wrapped__", None))
        waits.append(len(waited) - before)

    row = watched(torch.device("cuda"), [], run, Amount(steps=3, warm=1))
    assert runs == [None, torch.Tensor.backward]
    assert waits[0] == 5  # once a step: nothing else is waited for where the seconds are taken
    assert waits[1] > waits[0]
    assert set(row["phases"]) == {"backward", "optimiser"}
    assert (row["peak_mb"], row["base_mb"], row["driver_mb"]) == (5, 1, 70)


def test_operations_are_counted_by_dtype() -> None:
    with Operations() as operations:
        torch.randn(3, 5) @ torch.randn(5, 7)
        torch.randn(2, 5, dtype=torch.bfloat16) @ torch.randn(5, 2, dtype=torch.bfloat16)
    assert operations.counts == {"float32": 2 * 3 * 5 * 7, "bfloat16": 2 * 2 * 5 * 2}
    query, key = torch.randn(1, 2, 6, 8, requires_grad=True), torch.randn(1, 2, 10, 8)
    with Operations() as operations:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, key)
        forward = operations.counts["float32"]
        out.sum().backward()
    product = 2 * 2 * 6 * 10 * 8
    assert forward == 2 * product
    assert operations.counts["float32"] == 7 * product


def test_passes_of_a_step_are_told() -> None:
    step = [("encode", 4, False), ("encode", 2, True), ("predict", 2, True), ("predict", 1, True)]
    told = {"prompts": 4, "prompts with gradients": 2, "latents with gradients": 3}
    assert told_passes(step) == told


def row(name: str, size: str = "", number: int = 1, **more) -> dict:
    return {"case": name, "size": size, "round": number, "load": 0.1, "threads": 1, **more}


def step_row(name: str, seconds: float, number: int = 1, **more) -> dict:
    phases = {"encoding": 0.25 * seconds, "backward": 0.5 * seconds}
    own = {
        "seconds": seconds,
        "phases": phases,
        "phases_of": seconds,
        "first": {"seconds": 3 * seconds, "phases": {"drawing": seconds}},
        "peak_mb": 900,
        "base_mb": 600,
    }
    return row(name, "iconcanvas", number, **own, **more)


def some_rows() -> list[dict]:
    machine = {"rates": {"float32": 1e11, "bfloat16": 4e11}, "bandwidth": 2e10}
    paper = {"bare_seconds": 1.0, "cpu_seconds": 2.0, "bare_cpu_seconds": 0.5}
    paper |= {"operations": {"float32": 5e10, "bfloat16": 2e10}}
    paper |= {"steps": 8, "drawn": 80, "estimate_mb": 400, "batch": 2, "passes": {"latents": 2}}
    rows = [row("machine", number=number, **machine) for number in (1, 2, 3)]
    rows += [step_row("drawing", 0.5, number) for number in (1, 2, 3)]
    # A slow second round: ratios are of the same round.
    for number, slow in ((1, 1.0), (2, 10.0), (3, 1.2)):
        rows.append(step_row("plain few_shot", 4 * slow, number))
        rows.append(step_row("few_shot paper", 2 * slow, number, **paper))
    points = [{"x": x, "seconds": 0.1 * x**2, "peak_mb": 3} for x in (1, 2, 4)]
    points += [{"x": 8, "why": "too little memory"}]
    grown = {"points": points, "unit": "pictures", "of": "a step by its pictures"}
    rows.append(row("growth pictures", "iconcanvas", **grown))
    rows.append(row("import", parts={"ComfyUI with its own nodes": 4.0, "the pack beyond it": 0.3}))
    rows.append(row("plain few_shot", "sdxl", why="not measured: needs about 40 GB"))
    return rows


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    found = Kept(tmp_path / "perf.json", "a machine, 2 cores", False, 0)
    found.rows, found.commands = some_rows(), ["python dev.py perf"]
    found.write()
    return found


def line(text: str, beginning: str) -> list[str]:
    """The cells of the first line of a table that begins so."""
    found = next(one for one in text.splitlines() if one.startswith(f"| {beginning} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_page_comes_out_of_kept_rows(kept: Kept) -> None:
    text = pages.page(Kept.shown(kept.file))
    seconds, plain, bare, floor, first, whole, passes = line(text, "few_shot paper")[1:]
    assert (seconds, plain) == ("2.40 a step of 2", "0.50 x")
    # 5e10 / 1e11 + 2e10 / 4e11 seconds are the floor.
    assert (bare, floor) == ("2.40 x", f"{2.4 / 0.55:.2f} x")
    # 7.2 - 2.4 s without drawing, 7 more steps, and 80 sampler steps.
    assert (first, whole, passes) == ("7.20", f"{4.8 + 7 * 2.4 + 40:.1f} s, 8 steps", "2 latents")
    assert "Made by `python dev.py perf`" in text
    assert "Measured on a machine, 2 cores. Threads: 1." in text
    assert "300 MiB | 400 MiB | 0.75" in text
    assert "1: 0.100 s, 3 MiB; 2: 0.400 s, 3 MiB; 4: 1.60 s, 3 MiB; 8: too little memory" in text
    assert "| 4.00 x |" in text  # of twice as many
    assert line(text, "the pack beyond it")[1] == "0.300"
    assert "sdxl: plain few_shot: not measured: needs about 40 GB." in text
    assert line(text, "plain few_shot")[2:4] == ["", ""]


def test_phases_of_the_table_are_of_one_step(kept: Kept) -> None:
    text = pages.page(kept)
    line = [one for one in text.splitlines() if one.startswith("| few_shot paper |")][1]
    cells = [cell for cell in map(str.strip, line.strip("|").split("|")) if cell]
    # Encoding, backward, the rest, and the whole; then the processor's.
    assert list(map(float, cells[1:])) == [0.6, 1.2, 0.6, 2.4, 2.0, 0.5]


def test_rows_of_another_run_are_not_mixed(kept: Kept) -> None:
    assert len(Kept.opened(kept.file, kept.machine, False, 0).rows) == len(kept.rows)
    for other in (("another", False, 0), (kept.machine, True, 0), (kept.machine, False, 2)):
        with pytest.raises(OtherRun, match="delete this one"):
            Kept.opened(kept.file, *other)


def run_program(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["perf", *arguments])
    return program.main()


def test_an_interrupted_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the second round, which then begins where it was."""
    done: list[str] = []
    stopping = [True]

    def in_process(case: Case, quick: bool, threads: int) -> dict:
        if len(done) == 5 and stopping:
            stopping.clear()
            raise KeyboardInterrupt
        done.append(case.name)
        if case.name == "drawing":
            return {"why": "not measured: no brush"}
        found = next(one for one in some_rows() if one["case"] == case.name)
        return {k: v for k, v in found.items() if k not in ("case", "size", "round", "load")}

    monkeypatch.setattr(program, "in_process", in_process)
    monkeypatch.setattr(program, "machine", lambda: "a machine")
    file = tmp_path / "new" / "perf.json"
    asked = ["--json", str(file), "--sizes", "iconcanvas", "--rounds", "2", "--only"]
    asked += ["machine", "drawing", "few_shot paper", "plain few_shot"]
    assert run_program(monkeypatch, *asked) == 130
    first = ["machine", "drawing", "plain few_shot", "few_shot paper"]
    assert done == [*first, "machine"]
    assert "The same command goes on" in capsys.readouterr().out
    assert len(json.loads(file.read_text("utf-8"))["rows"]) == 5
    assert "| few_shot paper | 2.00 a step" in file.with_suffix(".md").read_text("utf-8")
    assert run_program(monkeypatch, *asked) == 0
    # What could not be measured is not tried again, and nothing is measured twice.
    assert done == [*first, "machine", "plain few_shot", "few_shot paper"]
    assert run_program(monkeypatch, *asked) == 0
    assert len(done) == 7
    assert run_program(monkeypatch, *asked, "--again", "--rounds", "1") == 0
    assert done[7:] == first


def test_a_case_that_needs_more_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("testbed.perf.memory.free_gib", lambda: 8.0)
    found = program.in_process(Case("plain key_step", "sdxl"), True, 1)
    assert found["why"].startswith("not measured: needs about ")
    assert found["why"].endswith("GB, and 8 GB are free")


def test_a_case_runs_in_a_process_with_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Case, "minutes", 0.001)
    assert "stopped after" in program.in_process(Case("machine"), True, 1)["why"]
    monkeypatch.undo()
    assert "KeyError" in program.in_process(Case("nothing"), True, 1)["why"]


def test_the_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("testbed.perf.roof.SIDE", {"cpu": 256, "cuda": 256})
    monkeypatch.setattr("testbed.perf.roof.BYTES", {"cpu": 2**20, "cuda": 2**20})
    threads = torch.get_num_threads()
    found = program.in_this_process("machine", "", True, threads)
    assert min(found["rates"].values()) > 1e8
    assert found["bandwidth"] > 1e8
    assert (found["device"], found["threads"]) == ("cpu", threads)


def test_the_plan_has_every_method_and_all_that_grows() -> None:
    from unlearn.methods.registry import METHODS

    cases = cases_of(["iconcanvas", "sd15", "sdxl", "wide"], None, False)
    for size in ("iconcanvas", "sd15", "sdxl"):
        names = [case.name for case in cases if case.size == size]
        assert {"drawing", "identify", "erasures", "closed_form"} < set(names)
        for name, method in METHODS.items():
            modes = [name]
            if "mode" in method.described:
                modes = [f"{name} {mode}" for mode in method.described["mode"].choices]
                modes.append(f"plain {name}")
            assert set(modes) <= set(names)
    assert {"machine", "import"} < {case.name for case in cases}
    assert {f"growth {what}" for what in GROWTH} < {case.name for case in cases}
    assert [case.size for case in cases_of(["wide"], ["closed_form"], True)] == ["wide"]


def test_sizes_that_do_not_exist_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_program(monkeypatch, "--sizes", "iconcanvas,sd16")
    assert "'sd16' is none of iconcanvas, sd15, sdxl, wide" in capsys.readouterr().err


def test_dev_knows_it() -> None:
    import dev

    assert dev.MODULES["perf"] == "testbed.perf"
    assert os.access(Path(program.__file__), os.R_OK)
