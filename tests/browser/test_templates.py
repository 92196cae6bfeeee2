"""Every template opens from the page's own dialog, in both node styles."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from testbed.host.frontend import Frontend
from testbed.host.server import Server
from testbed.showcase import templates

pytestmark = pytest.mark.slow
FILES = sorted(file.stem for file in templates.FOLDER.glob("*.json"))
FOREIGN = {
    "10": {"CLIPVisionLoader", "CopyrightMetric"},
    "12": {"UNETLoader", "CLIPLoader", "VAELoader"},
    "13": {"UNETLoader", "CLIPLoader", "VAELoader"},
}
"""The nodes that name a model which comes neither with the pack nor with IconCanvas."""
EVOLVED = ["ADE_LoadAnimateDiffModel", "ADE_ApplyAnimateDiffModelSimple", "ADE_UseEvolvedSampling"]


@pytest.fixture(scope="module")
def saved_erasures(server: Server) -> None:
    """The files that the templates for a saved erasure name: as after those that write them."""
    folder = server.output / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    data = Path(__file__).resolve().parents[1] / "data" / "saved_by_0.1.0"
    for made_by, part in (("few_shot", "clip"), ("key_step", "model")):
        shutil.copy(data / f"{made_by}.safetensors", folder / f"erased_{part}_00001_.safetensors")


def test_the_dialog_lists_them_in_order(page: Frontend) -> None:
    assert page.templates() == FILES
    page.page.keyboard.press("Escape")


@pytest.mark.parametrize("name", FILES)
def test_it_opens_without_a_red_node(page: Frontend, saved_erasures: None, name: str) -> None:
    page.open_template(name)
    assert page.unknown_types() == (EVOLVED if name.startswith("11 ") else [])
    assert set(page.faulty()) <= FOREIGN.get(name[:2], set())
