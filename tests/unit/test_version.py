"""One version, in pyproject.toml: the pack that ComfyUI loads from its folder knows it, too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from unlearn.core import version
from unlearn.core.version import own_version

ROOT = Path(__file__).resolve().parents[2]


def declared() -> str:
    (found,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    return found


def test_the_code_has_the_version_of_pyproject() -> None:
    assert own_version(ROOT) == version.VERSION == declared()


def test_nowhere_else_stands_a_version() -> None:
    for folder in ("unlearn", "nodes"):
        for file in (ROOT / folder).rglob("*.py"):
            assert f'"{declared()}"' not in file.read_text("utf-8"), file.name


def test_the_change_log_says_what_is_in_it() -> None:
    assert f"\n## {declared()}\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize("text", [None, '[project]\nname = "another"\nversion = "9.9"\n'])
def test_an_installed_package_asks_its_own_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    """Beside it lies nothing, or the pyproject.toml of somebody else."""
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.setattr(version, "version", lambda name: f"{name} 1.2.3")
    assert own_version(tmp_path) == "concept-unlearn 1.2.3"


def test_a_copy_without_either_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "NAME", "concept-unlearn-not-installed")
    assert own_version(tmp_path) == "unknown"


def test_only_the_projects_own_version_counts(tmp_path: Path) -> None:
    text = f'[project]\nname = "{version.NAME}"\nversion = "4.5.6"\n\n[tool.x]\nversion = "7"\n'
    (tmp_path / "pyproject.toml").write_text(text)
    assert own_version(tmp_path) == "4.5.6"
