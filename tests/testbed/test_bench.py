"""The benchmark's jobs and tables; what a job measures the demo's test and the erasures' cover."""

from __future__ import annotations

import argparse
import json

import pytest
from PIL import Image

from testbed.bench import __main__ as bench
from testbed.bench import pictures as bench_pictures
from testbed.bench import plan as bench_plan
from testbed.bench import plot as bench_plot
from testbed.bench import table as bench_table
from testbed.host import workers
from testbed.studies import harden as harden_bench


def options(**given) -> argparse.Namespace:
    none = {"mode": None, "seed": None, "concept": None, "quick": False, "full": False}
    return argparse.Namespace(**{**none, "method": list(bench_plan.METHODS), **given})


def row(concept: str, **more) -> dict:
    figures = {"ua": 1.0, "ira": 0.5, "cra": 0.25, "style_kept": 0.0, "drift_feature": 0.01}
    cost = {"steps": 10, "start": None, "seconds": 2.0, "peak_mb": 900, "file_bytes": 1_500_000}
    named = {"method": "few_shot", "mode": "balanced", "concept": concept, "seed": 0}
    named["machine"] = "A, 2 cores"
    return {**named, "kind": "object", **figures, **cost, **more}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("method", ["few_shot", "key_step"])
def test_default_modes_are_measured_on_every_concept_in_full_twice(method: str, full: bool) -> None:
    asked = options(method=[method], mode=["balanced"], full=full)
    assert {(job["concept"], job["seed"]) for job in bench_plan.jobs_of(asked)} == {
        (concept, seed)
        for concept in bench_plan.CONCEPTS
        for seed in bench_plan.SEEDS[: 2 if full else 1]
    }


def test_a_full_run_holds_all_of_a_plain_and_of_a_quick_one() -> None:
    full = {bench_plan.job_key(job) for job in bench_plan.jobs_of(options(full=True))}
    for less in ({}, {"quick": True}):
        jobs = {bench_plan.job_key(job) for job in bench_plan.jobs_of(options(**less))}
        assert jobs < full
        assert {method for method, *_ in jobs} >= {"few_shot", "key_step", "domain_correction"}


def test_some_are_attacked_once_and_none_in_a_quick_run() -> None:
    attacked = [job for job in bench_plan.jobs_of(options()) if job["attack"]]
    assert {job["concept"] for job in attacked} == set(bench_plan.FEW)
    assert {job["seed"] for job in attacked} == {bench_plan.SEEDS[0]}
    several = {"few_shot+key_step"}
    assert {"few_shot", "key_step", "domain_correction", "closed_form"} | several == {
        job["method"] for job in attacked
    }
    quick = bench_plan.jobs_of(options(quick=True))
    assert {job["concept"] for job in quick} == set(bench_plan.QUICK)
    assert not any(job["attack"] for job in quick)


def test_a_row_measured_again_takes_the_place_of_the_old_one(monkeypatch, tmp_path) -> None:
    before = [row("fox", ua=0.0), row("cat")]
    monkeypatch.setattr(workers, "results", lambda module, shares: iter([[row("fox")]]))
    job = {"method": "few_shot", "mode": "balanced", "concept": "fox", "seed": 0}
    job["attack"] = False
    rows = bench.run_parallel([job], 1, tmp_path / "rows.json", before)
    assert rows == [row("cat"), row("fox")]
    assert json.loads((tmp_path / "rows.json").read_text("utf-8")) == rows


def test_tables_hold_means_and_middle_peaks() -> None:
    attacks = {"own": 0.0, "Ring-A-Bell": 0.5, "CCE": 1.0}
    text = bench_table.table([row("fox", attacks=attacks), row("cat", ua=0.5, peak_mb=1500)])
    both = next(line for line in text.splitlines() if "| all |" in line)
    cells = [cell.strip() for cell in both.strip("|").split("|")]
    assert cells[3:7] == ["2", "75.0%", "50.0%", "25.0%"]
    assert cells[-3:] == ["2.0", "1.2 GiB", "1.5 MB"]
    assert "| few_shot | balanced | 1 | 0% | 50% | 100% |" in text


def test_a_table_says_which_machine_measured_how_many_of_its_rows() -> None:
    rows = [row("fox"), row("cat")]
    assert bench_table.table(rows).endswith("\nMeasured on A, 2 cores.")
    rows.append(row("owl", machine="B, 8 cores"))
    last = bench_table.table(rows).splitlines()[-1]
    assert last == "Measured on A, 2 cores (2 of 3 rows); B, 8 cores (1 of 3 rows)."


def test_a_table_without_attacks_has_none() -> None:
    assert "Ring-A-Bell" not in bench_table.table([row("fox")])


def test_modes_are_compared_on_the_same_concepts() -> None:
    few = [row(concept, mode=mode) for mode in ("balanced", "paper") for concept in bench_plan.FEW]
    others = [row("cat", ua=0.0), row("fox", seed=1, ua=0.0), row("fox", mode="paper-all", ua=0.0)]
    text = bench_table.of_the_few([*few, *others])
    lines = [line for line in text.splitlines() if line.startswith("| few_shot")]
    assert [line.split(" | ")[1:5] for line in lines] == [
        ["balanced", "all", "3", "100.0%"],
        ["paper", "all", "3", "100.0%"],
    ]
    assert bench_table.of_the_few(others) == ""


def test_a_plot_has_a_line_for_each_mode(tmp_path) -> None:
    attacks = dict.fromkeys(bench_plot.ATTACKS, 0.5)
    rows = [
        row("fox", attacks=attacks),
        *(row("fox", mode="paper", epochs=n) for n in (4, 10)),
        row("fox", method="key_step"),
    ]
    found = bench_plot.groups(rows)
    assert list(found) == ["few_shot, balanced", "few_shot, paper", "key_step, balanced"]
    assert [one["epochs"] for one in found["few_shot, paper"]] == [10]
    bench_plot.save_plot(rows, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width > 500


def test_strips_that_were_not_kept_leave_a_page_out(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(bench_pictures, "STRIPS", tmp_path)
    jobs = bench_plan.jobs_of(options())
    pages = (bench_pictures.page_of_pictures, bench_pictures.page_of_modes)
    assert [draw(jobs) for draw in pages] == [None, None]
    fox = next(job for job in jobs if job["concept"] == "fox" and job["mode"] == "balanced")
    Image.new("RGB", (80, 20)).save(bench_pictures.strip_file(fox))
    assert all(draw(jobs) is not None for draw in pages)
    assert bench_pictures.page_of_pictures([job for job in jobs if job["mode"] == "paper"]) is None


def test_a_marked_file_gets_the_table_between_its_marks(tmp_path) -> None:
    file = tmp_path / "results.md"
    file.write_text("above\n<!-- bench -->\nold\n<!-- /bench -->\nbelow\n")
    bench_table.write_table(file, [row("fox")], "python dev.py bench")
    lines = file.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("above", "below")
    assert "old" not in lines
    assert any("100.0%" in line for line in lines)


@pytest.mark.parametrize("concept", ["fox", "ink", "Zorvik"])
def test_a_neighbour_is_another_of_its_kind(concept: str) -> None:
    from testbed.bench.row import neighbour
    from testbed.model.measure import kind_of

    assert neighbour(concept) != concept
    assert kind_of(neighbour(concept)) == kind_of(concept)


def test_hardening_is_compared_over_the_same_concepts() -> None:
    """Means over what happens to be measured would compare concepts and not seconds."""
    rows = [
        {"concept": concept, "seconds": seconds}
        for concept, most in (("fox", 60), ("ink", 30))
        for seconds in (60, 30, 0)
        if seconds <= most
    ]
    assert {s: len(some) for s, some in harden_bench.by_seconds(rows).items()} == {0: 2, 30: 2}
    assert harden_bench.by_seconds([]) == {}
