"""What the tests of commands share."""

from __future__ import annotations

import pytest

from unlearn.__main__ import main

CPU = ["--device", "cpu"]
"""For commands that compute: the figures here are the CPU's, and "auto" would take Apple's GPU."""


def sentence(arguments: list, capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    """What a command that fails says; it must be one line on stderr and nothing else."""
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
