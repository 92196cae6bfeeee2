"""Imports run one way: nodes use the science, methods use their parts, nothing runs upwards."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "dev.py").is_file())
# Folder of unlearn/ -> the folders that it may import. Each may import itself.
ALLOWED = {
    "files": set(),
    "render": set(),
    "core": {"files"},
    "prompts": {"core"},
    "methods": {"core", "files", "prompts"},
    "attacks": {"core", "prompts"},
    "evaluate": {"attacks", "core", "files", "prompts", "render"},
    "diffusers_backend": {"core", "files"},
    "cli": {
        "attacks",
        "core",
        "diffusers_backend",
        "evaluate",
        "files",
        "methods",
        "prompts",
        "render",
    },
}
LONGEST = {"unlearn/methods": 350, "nodes/backend/model.py": 300}
"""Lines of a method's file, and of the file that holds ComfyModel."""


def name_of(file: Path) -> tuple[str, ...]:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(file: Path) -> set[tuple[str, ...]]:
    """The modules of this repository that a file imports when it runs, at any place in it."""
    here = name_of(file) if file.name == "__init__.py" else name_of(file)[:-1]
    found = set()
    tree = ast.parse(file.read_text("utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in for_types:
            base = here[: len(here) - node.level + 1]
            module = (*base, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                inner = ROOT.joinpath(*module, alias.name)
                is_module = inner.with_suffix(".py").is_file() or inner.is_dir()
                found.add((*module, alias.name) if is_module else module)
    return found


def modules(top: str) -> list[Path]:
    return sorted((ROOT / top).rglob("*.py"))


def test_every_folder_of_the_science_has_its_rule() -> None:
    folders = {f.name for f in (ROOT / "unlearn").iterdir() if (f / "__init__.py").is_file()}
    assert folders == set(ALLOWED)


@pytest.mark.parametrize("folder", ALLOWED)
def test_no_import_runs_upwards(folder: str) -> None:
    for file in modules(f"unlearn/{folder}"):
        for module in imports(file):
            assert module[0] == "unlearn", f"{file} imports {'.'.join(module)}"
            assert module[1] in {folder, *ALLOWED[folder]}, f"{file} imports {'.'.join(module)}"


def test_methods_import_only_their_parts() -> None:
    for file in modules("unlearn/methods"):
        for module in imports(file):
            if module[:2] == ("unlearn", "methods") and module[2:]:
                assert module[2] == "parts", f"{file} imports {'.'.join(module)}"


@pytest.mark.parametrize("top", ["unlearn", "nodes", "testbed"])
def test_there_is_no_circle(top: str) -> None:
    graph = {name_of(file): imports(file) - {name_of(file)} for file in modules(top)}
    # A package's own imports are for its users; what is in it may import the package's parts.
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(".".join(name) for name in error.args[1]))


@pytest.mark.parametrize("top", ["unlearn", "nodes", "testbed"])
def test_every_folder_says_what_lives_in_it(top: str) -> None:
    for folder in {file.parent for file in modules(top)}:
        doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8")))
        assert doc, folder
        assert doc.endswith("."), folder


def test_no_file_is_too_long() -> None:
    for place, most in LONGEST.items():
        path = ROOT / place
        for file in modules(place) if path.is_dir() else [path]:
            assert len(file.read_text("utf-8").splitlines()) <= most, file
