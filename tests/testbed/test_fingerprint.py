"""Rows of other weights are not mixed with those of the repository's."""

import hashlib
import json
from pathlib import Path

import pytest

import testbed
from testbed.bench.__main__ import read_rows
from testbed.model import checkpoint, judge
from testbed.model.fingerprint import fingerprint, made_with, weights
from testbed.studies.options import kept_rows


def test_a_fingerprint_is_of_all_that_the_files_hold(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"ab")
    other.write_bytes(b"c")
    assert fingerprint(one, other, also="x") == hashlib.sha256(b"xabc").hexdigest()[:12]
    assert fingerprint(one) != fingerprint(other)


def test_weights_are_the_model_and_the_judge() -> None:
    assert weights() == fingerprint(checkpoint.WEIGHTS, judge.WEIGHTS)
    assert made_with()["weights"] == weights()


@pytest.mark.parametrize("read", [read_rows, kept_rows])
def test_only_rows_of_these_weights_are_read(read, tmp_path: Path, capsys) -> None:
    file = tmp_path / "rows.json"
    mine, theirs, old = {"ua": 1, "weights": weights()}, {"ua": 0, "weights": "0"}, {"ua": 0.5}
    assert read(file) == []
    file.write_text(json.dumps([theirs, mine, old]), encoding="utf-8")
    assert read(file) == [mine]
    assert "2 rows of other weights are left out" in capsys.readouterr().err
    file.write_text(json.dumps([mine]), encoding="utf-8")
    assert read(file) == [mine]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["bench", "many"])
def test_every_kept_row_says_which_weights_it_is_of(name: str) -> None:
    file = testbed.ROOT / "docs" / f"{name}.json"
    rows = json.loads(file.read_text("utf-8"))
    assert rows
    assert all(len(row["weights"]) == 12 for row in rows)
