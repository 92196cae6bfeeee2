"""A cell: one erasure of a sweep, and the files in which its result lies.

A cell is done when its result is there: one JSON file, written whole or not at all, after the
erasure. So a sweep that was stopped anywhere goes on with the cells that have none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files.writing import whole_file


@dataclass(frozen=True)
class Cell:
    """One erasure to make."""

    key: str
    """A hash of all that decides the erasure. It names the cell's files."""
    args: argparse.Namespace
    """What `erase` is asked for."""
    about: Mapping[str, Any]
    """The plan's words for it: model, concept, kind, method, settings, seed."""
    folder: Path
    """Of its files."""

    @classmethod
    def of(cls, key: str, output: Path, args: argparse.Namespace, about: Mapping[str, Any]) -> Cell:
        """output: the folder of the sweep."""
        folder = (output / "cells").absolute()
        args.output = folder / f"{key}.safetensors"
        return cls(key, args, about, folder)

    @property
    def file(self) -> Path:
        """Where its result is written."""
        return self.folder / f"{self.key}.json"

    @property
    def name(self) -> str:
        """What a message calls it: fox by closed_form, seed 0, strength 0.7."""
        one = self.about
        settings = [f"{key} {value}" for key, value in one["settings"].items()]
        return ", ".join([f"{one['concept']} by {one['method']}", f"seed {one['seed']}", *settings])

    def result(self) -> dict[str, Any] | None:
        """Its result; None where it is not done, or where its files are damaged or gone."""
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        is_whole = isinstance(found, dict) and isinstance(found.get("record"), dict)
        return found if is_whole and self.args.output.is_file() else None

    def write(self, result: Mapping[str, Any]) -> None:
        """Write its result, which makes it done. Raises OSError."""
        with whole_file(self.file) as new:
            text = json.dumps(result, indent=1, sort_keys=True)
            new.write_text(text + "\n", encoding="utf-8")
