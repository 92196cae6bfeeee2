"""Which weights a measured row is of. Rows of other weights are not mixed with it."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..host.machine import machine
from . import checkpoint, judge


def fingerprint(*files: Path, also: str = "") -> str:
    """Twelve hexadecimal digits that stand for what is in the files, and for the words `also`."""
    digest = hashlib.sha256(also.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def weights() -> str:
    """What stands for the repository's IconCanvas and its judge."""
    return fingerprint(checkpoint.WEIGHTS, judge.WEIGHTS)


def made_with() -> dict[str, str]:
    """The part of a row that says where it was measured, and with which weights."""
    return {"machine": machine(), "weights": weights()}


def of_these_weights(rows: Iterable[dict[str, Any]], file: Path | None) -> list[dict[str, Any]]:
    """The rows of the repository's weights. How many of others the file has is told."""
    rows = list(rows)
    some = [row for row in rows if row.get("weights") == weights()]
    if others := len(rows) - len(some):
        print(f"{file}: {others} rows of other weights are left out.", file=sys.stderr)
    return some
