"""What the Comfy Registry gets: an archive that is small and whole, under a name that it takes."""

from __future__ import annotations

import io
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from unlearn.core.version import NAME

ROOT = Path(__file__).resolve().parents[2]
MOST = 2_000_000  # bytes of the archive


def listed(*more: str) -> set[str]:
    """Files of this repository, as git lists them."""
    line = ["git", "-C", str(ROOT), "ls-files", "-z", *more]
    return set(filter(None, subprocess.check_output(line, text=True).split("\0")))


@pytest.fixture(scope="module")
def archived() -> set[str]:
    """What the registry's own program packs: what git holds, without the files of .comfyignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("this copy is no clone, and git says what is published")
    ignored = listed("--cached", "--ignored", f"--exclude-from={ROOT / '.comfyignore'}")
    return {name for name in listed() - ignored if (ROOT / name).is_file()}


def test_the_archive_is_small(archived: set[str]) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in archived:
            archive.write(ROOT / name, name)
    assert len(packed.getvalue()) < MOST


def test_the_archive_has_all_that_a_user_needs(archived: set[str]) -> None:
    needed = {"__init__.py", "pyproject.toml", "README.md", "LICENSE", "ATTRIBUTION.md"}
    for folder in ("nodes", "unlearn", "workflows", "subgraphs"):
        needed |= {name for name in listed() if name.startswith(f"{folder}/")}
    assert needed <= archived
    assert not {name.split("/")[0] for name in archived} & {"tests", "testbed", "dev.py", ".github"}


def test_the_registry_takes_the_name_and_the_version() -> None:
    """By its specification: https://docs.comfy.org/registry/specifications"""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'\nname = "{NAME}"\n' in text
    assert re.fullmatch(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*", NAME)
    assert "comfyui" not in NAME
    assert re.search(r'^version = "\d+\.\d+\.\d+"$', text, re.M)
    workflow = (ROOT / ".github" / "workflows" / "publish.yml").read_text("utf-8")
    assert "REGISTRY_ACCESS_TOKEN" in workflow
