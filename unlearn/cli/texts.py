"""Reads text files, which may come from anybody."""

from __future__ import annotations

from pathlib import Path

from ..core.record import CONTROL

LARGEST = 2**22
"""The most bytes of a file: far more than anybody writes by hand."""


def read_text(file: Path, largest: int = LARGEST) -> str:
    """The text of a UTF-8 file. Raises ValueError where it is not text, or larger than `largest`
    bytes."""
    try:
        if not file.is_file() or file.stat().st_size > largest:
            raise ValueError
        text = file.read_bytes().decode("utf-8-sig")
    except OSError:
        raise ValueError from None
    if CONTROL.search(text):  # binary data that happens to decode
        raise ValueError
    return text
