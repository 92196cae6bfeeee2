"""The examples of CONTRIBUTING.md's recipes; those that are files, added to a copy of the pack."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPE = re.compile(r"In (unlearn/\w+/) write (\w+\.py).*?```python\n(.+?)```", re.S)
FUNCTION = re.compile(r" goes into (tests/\S+\.py), for example .*?:\n\n```python\n(.+?)```", re.S)
ENTRY = re.compile(r"^\| `([A-Z]+)` \| (tests/\S+\.py) \| `(.+?)` \|", re.M)


def page() -> str:
    return (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def files() -> dict[str, str]:
    """{a file's path: what the recipe writes into it}."""
    return {folder + name: text for folder, name, text in RECIPE.findall(page())}


def family_functions() -> list[tuple[str, str]]:
    """(a file's path, the function that the recipe adds to it), of the model family."""
    return FUNCTION.findall(page())


def family_entries() -> list[tuple[str, str, str]]:
    """(a dictionary, its file's path, the entry that the recipe adds to it)."""
    return ENTRY.findall(page())


def science(folder: Path, name: str) -> None:
    """A copy of unlearn/ as a package of another name, with the examples in it."""
    _copy(ROOT / "unlearn", folder / name)
    for path, text in files().items():
        (folder / name / Path(path).relative_to("unlearn")).write_text(text, "utf-8")


def pack(folder: Path) -> None:
    """A copy of what ComfyUI loads, with the examples in it."""
    for name in ("unlearn", "nodes"):
        _copy(ROOT / name, folder / name)
    for name in ("__init__.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    for path, text in files().items():
        (folder / path).write_text(text, "utf-8")


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
