"""Texts from files that a person, or somebody else, wrote."""

from __future__ import annotations

from pathlib import Path

from ..core.record import CONTROL

LARGEST = 2**22
"""Bytes of a file that is read: far more than anybody writes by hand."""


def read_text(file: Path, largest: int = LARGEST) -> str:
    """What a file says in UTF-8. Raises ValueError where it is no such text or far too large."""
    try:
        if not file.is_file() or file.stat().st_size > largest:
            raise ValueError
        text = file.read_bytes().decode("utf-8-sig")
    except OSError:
        raise ValueError from None
    if CONTROL.search(text):  # no text, but it may decode as one
        raise ValueError
    return text
