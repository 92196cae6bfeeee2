"""The fuzz: its fast part, and that it tells a fault from an answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from testbed import ROOT
from testbed.fuzz import changes as fuzz_changes
from testbed.fuzz import main as fuzz
from testbed.fuzz.readers import READERS
from unlearn.render.text_table import columns

FAST = {"concepts": 80, "words": 60, "pictures": 60, "sets": 40, "states": 10}
"""Inputs of the readers that need neither ComfyUI nor a model."""


@pytest.mark.parametrize(("name", "count"), FAST.items())
@pytest.mark.costly
def test_every_answer_is_a_sentence_or_a_result(name: str, count: int, tmp_path: Path) -> None:
    reader = READERS[name](tmp_path)
    answers = list(fuzz.run(reader, range(count), 0, tmp_path))
    faults = [answer for answer in answers if answer.is_fault]
    assert not faults, "\n".join(f"--only {one.number}: {one.kind}. {one.said}" for one in faults)
    kinds = {answer.kind for answer in answers}
    # What a state is of no use for is said beside the result.
    assert kinds == ({"result"} if name == "states" else {"sentence", "result"})


class Reader:
    """Answers as it is told."""

    name, share = "told", 1

    def make(self, rng: Random, folder: Path) -> int:
        return rng.randrange(1000)

    def read(self, given: int) -> None:
        self.given = given
        self.answer()


def raises(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda: None, "result"),
        (lambda: raises(ValueError("There is no word here; name one at least.")), "sentence"),
        (lambda: raises(ValueError("embedded null byte")), "raw error"),
        (lambda: raises(ValueError("There is no word here;\nname one at least.")), "raw error"),
        (lambda: raises(KeyError("There is no word here; name one at least.")), "raw error"),
        (lambda: b"\xff".decode(), "raw error"),
        (lambda: int("a word that is no number, and is none."), "raw error"),
        (lambda: raises(AssertionError()), "raw error"),
        (lambda: bytearray(2**28).find(b"x"), "large"),
    ],
)
def test_a_fault_is_told_from_an_answer(
    answer, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader()
    monkeypatch.setattr(fuzz, "MEMORY", 2**27)
    reader.answer = answer
    assert fuzz.ask(reader, 3, 0, tmp_path).kind == kind


def test_what_takes_too_long_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader()
    reader.answer = lambda: sum(range(10**5))
    monkeypatch.setattr(fuzz, "SECONDS", 1e-9)
    assert fuzz.ask(reader, 3, 0, tmp_path).kind == "slow"


def test_an_input_is_the_same_each_time(tmp_path: Path) -> None:
    reader, found = Reader(), []
    reader.answer = lambda: found.append(reader.given)
    for seed, number in ((0, 1), (0, 2), (1, 1), (0, 1)):
        fuzz.ask(reader, number, seed, tmp_path)
    assert found[0] == found[3]
    assert len(set(found)) == 3


def test_changes_are_many_and_leave_the_good_value_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_changes, "deep", lambda rng: "many brackets")
    good = {"a": [1, {"b": "x"}], "c": 0.5}
    changed = {repr(fuzz_changes.changed_value(Random(i), good))[:200] for i in range(300)}
    assert len(changed) > 60
    assert good == {"a": [1, {"b": "x"}], "c": 0.5}


def test_the_table_counts() -> None:
    answers = [fuzz.Answer(0, "result", "", 0.5, 10**6), fuzz.Answer(1, "sentence", "No.", 2.0)]
    row = fuzz.Row("words", [*answers, fuzz.Answer(2, "raw error"), fuzz.Answer(3, "hangs")])
    assert columns([row.line()]) == "words  4  1  1  2  2.0 s  1 MB"


@pytest.mark.costly
def test_the_program_starts_its_processes() -> None:
    """As dev.py starts it: the new process must find what it is to run."""
    command = [sys.executable, "-m", "testbed.fuzz", "--reader", "concepts", "--inputs", "2"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("concepts 2 ")
