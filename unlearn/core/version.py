"""This package's version. Its only source is pyproject.toml."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

NAME = "concept-unlearn"


def own_version(folder: Path) -> str:
    """The version in the folder's pyproject.toml, else that of the installed package, else
    "unknown".

    ComfyUI runs the pack from its folder without installing it. An installed package has no
    pyproject.toml in its folder, or another project's.
    """
    file = folder / "pyproject.toml"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    project = text.partition("[project]\n")[2].partition("\n[")[0]
    found = dict(re.findall(r'^(name|version) = "(.+)"$', project, re.M))
    if found.get("name") == NAME:
        return found["version"]
    try:
        return version(NAME)
    except PackageNotFoundError:
        return "unknown"


VERSION = own_version(Path(__file__).resolve().parents[2])
