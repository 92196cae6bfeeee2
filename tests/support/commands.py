"""Helpers for the tests of commands."""

from __future__ import annotations

import pytest

from unlearn.__main__ import main

CPU = ["--device", "cpu"]
"""For commands that compute. The tests expect the CPU's figures, and "auto" may take a GPU."""


def sentence(arguments: list, capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    """The message of a command that fails. It must be one line on stderr and nothing else."""
    capsys.readouterr()
    try:
        found = main([str(argument) for argument in arguments])
    except SystemExit as end:
        found = end.code
    out, err = capsys.readouterr()
    assert (found, out) == (code, "")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err
