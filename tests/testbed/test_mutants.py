"""The list of faults fits the code, and the program tells a fault that is noticed from another."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import dev
from testbed import ROOT
from testbed.mutants.__main__ import main, page, rows, rows_of, run
from testbed.mutants.faults import FAULTS, Fault
from testbed.mutants.scratch import BROKEN, KILLED, SURVIVED, Outcome, Scratch, outcome


def test_what_a_fault_changes_is_there_once_and_its_tests_are_there() -> None:
    for fault in FAULTS:
        text = (ROOT / fault.file).read_text(encoding="utf-8")
        changed = fault.applied(text)  # raises where it is not there once
        assert changed != text, fault.name
        compile(changed, fault.file, "exec")
        assert fault.tests, fault.name
        assert all((ROOT / test).is_file() for test in fault.tests), fault.name


def test_there_are_enough_faults_and_each_has_a_name_of_its_own() -> None:
    assert len(FAULTS) >= 60
    assert max(Counter(fault.name for fault in FAULTS).values()) == 1
    assert dev.MODULES["mutants"] == "testbed.mutants"


def test_a_fault_that_fits_nowhere_says_where_to_mend_it() -> None:
    fault = Fault("toy", "toy.py", "x", "y", ("test_toy.py",))
    for text, count in (("", 0), ("x = x", 2)):
        with pytest.raises(ValueError, match=f"'x' occurs {count} times in toy.py") as error:
            fault.applied(text)
        assert "testbed/mutants/faults.py" in str(error.value)
    assert fault.applied("a x b") == "a y b"


TOY = """
from unlearn.toy import double


def test_of_two():
    assert double(2) == 4
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One with a function and a test of it, which does not look at negative numbers."""
    place = tmp_path / "repository"
    for folder in ("unlearn", "tests/unit", "testbed", "docs"):
        (place / folder).mkdir(parents=True)
    (place / "unlearn" / "__init__.py").touch()
    (place / "unlearn" / "toy.py").write_text("def double(x):\n    return abs(x) * 2\n")
    (place / "tests" / "unit" / "test_toy.py").write_text(TOY)
    options = "def pytest_addoption(parser):\n    parser.addoption('--fast', action='store_true')\n"
    (place / "tests" / "conftest.py").write_text(options)
    (place / "docs" / "large.txt").write_text("linked, not copied")
    return place


def toy(old: str, new: str) -> Fault:
    return Fault(f"{old} to {new}", "unlearn/toy.py", old, new, ("tests/unit/test_toy.py",))


@pytest.mark.slow
def test_a_fault_that_is_noticed_is_told_from_one_that_is_not(repository: Path) -> None:
    before = (repository / "unlearn" / "toy.py").read_bytes()
    faults = [toy("* 2", "* 3"), toy("abs(x)", "x"), toy("return", "retrun"), toy("* 2", "+ 2")]
    faults.append(toy("abs(x) * 2", "abs(x) + x"))
    found = dict(zip((f.name for f in faults), (o for _, o in run(repository, faults, 2, str))))
    assert {name: told.verdict for name, told in found.items()} == {
        "* 2 to * 3": KILLED,
        "abs(x) to x": SURVIVED,
        "return to retrun": BROKEN,
        "* 2 to + 2": SURVIVED,
        "abs(x) * 2 to abs(x) + x": SURVIVED,
    }
    assert found["* 2 to * 3"].by == "test_toy.py::test_of_two"
    assert (repository / "unlearn" / "toy.py").read_bytes() == before


@pytest.mark.slow
def test_tests_that_fail_without_a_fault_tell_nothing(repository: Path) -> None:
    (repository / "tests" / "unit" / "test_toy.py").write_text("def test_x():\n    assert 0\n")
    with pytest.raises(SystemExit, match=r"Without any fault the tests fail: test_toy\.py::test_x"):
        list(run(repository, [toy("* 2", "* 3")], 1, str))


def test_a_copy_has_the_code_and_links_to_the_rest(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    copy = Scratch(repository, tmp_path / "copy")
    with copy.holding(toy("* 2", "* 3")):
        assert "* 3" in (copy.folder / "unlearn" / "toy.py").read_text()
    assert "* 2" in (copy.folder / "unlearn" / "toy.py").read_text()
    assert not (copy.folder / "unlearn").is_symlink()
    assert (copy.folder / "docs" / "large.txt").read_text() == "linked, not copied"


def test_what_pytest_says_is_read() -> None:
    said = "F\n  2.5  in all: 3 tests\nFAILED tests/unit/test_a.py::test_b[c d] - assert 0\n"
    assert outcome(1, said) == Outcome(KILLED, "test_a.py::test_b", 2.5)
    assert outcome(0, "   1.5  in all: 3 tests; of it shared: x 1.0") == Outcome(SURVIVED, "", 1.5)
    assert outcome(2, "ERROR collecting").verdict == BROKEN
    assert outcome(5, "no tests ran").verdict == BROKEN
    assert outcome(-9, "").verdict == BROKEN


def test_the_page_has_a_row_a_fault_and_can_be_read_again() -> None:
    one, other = FAULTS[:2]
    found = rows(
        [
            (one, Outcome(KILLED, "test_toy.py::test_of_two", 0.25)),
            (other, Outcome(SURVIVED, "", 1)),
        ]
    )
    written = page(found)
    assert f"| {one.name} | {one.file} | test_toy.py::test_of_two | 0.2 |" in written
    assert f"| {other.name} | {other.file} | **survived** | 1.0 |" in written
    assert "1 of 2 survive" in written
    assert "python dev.py mutants --page docs/mutants.md" in written
    assert rows_of(written) == found
    assert rows_of(written.replace(one.name, "a fault of last year")) == {
        other.name: found[other.name]
    }


def test_an_unknown_name_gets_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["splendid"])
    assert "no fault has a name like that" in capsys.readouterr().err
