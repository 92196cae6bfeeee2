"""Jobs of a benchmark, shared out to processes."""

from __future__ import annotations

import json

import pytest

from testbed.host import workers


def test_what_belongs_together_stays_together() -> None:
    jobs = ["fox 0", "cat 0", "fox 1", "owl 0", "cat 1"]
    shares = workers.shared(jobs, [job.split()[0] for job in jobs], 2)
    assert shares == [["fox 0", "fox 1", "owl 0"], ["cat 0", "cat 1"]]


def test_shares_cost_about_the_same() -> None:
    costs = {"a": 1, "b": 5, "c": 1, "d": 6, "e": 2}
    shares = workers.shared(list(costs), list(costs), 2, costs.__getitem__)
    assert [sum(costs[job] for job in share) for share in shares] == [8, 7]


def test_no_share_is_empty() -> None:
    assert workers.shared(["fox"], ["fox"], 3) == [["fox"]]
    assert workers.shared([], [], 3) == []


def test_what_workers_tell_comes_through_and_the_rest_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    (tmp_path / "doubles.py").write_text(
        "import json, os, sys\n"
        "from testbed.host import workers\n"
        "print('a line of another kind')\n"
        "for number in json.loads(sys.argv[2]):\n"
        "    workers.tell({'twice': 2 * number, 'threads': os.environ['OMP_NUM_THREADS']})\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = list(workers.results("doubles", [[1, 2], [3]]))
    assert sorted(one["twice"] for one in found) == [2, 4, 6]
    assert {one["threads"] for one in found} == {"1"}


def test_a_worker_that_fails_is_told_when_all_have_ended() -> None:
    with pytest.raises(SystemExit, match="no_such_module: a worker failed"):
        list(workers.results("no_such_module", [[1]]))


def test_a_result_is_one_line(capsys: pytest.CaptureFixture) -> None:
    workers.tell(["two\nlines"])
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert json.loads(said.removeprefix(workers.MARK)) == ["two\nlines"]
