"""Every template opens from the page's own dialog, in both node styles."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_page import browser as browser
from browser_page import nothing_is_thrown as nothing_is_thrown
from browser_page import page as page

from testbed.host.frontend import Frontend
from testbed.host.server import Server
from testbed.showcase import templates

pytestmark = pytest.mark.slow
FILES = sorted(file.stem for file in templates.FOLDER.glob("*.json"))
SAVED = Path(__file__).resolve().parents[1] / "data" / "saved_by_0.1.0"
EVOLVED = ["ADE_LoadAnimateDiffModel", "ADE_ApplyAnimateDiffModelSimple", "ADE_UseEvolvedSampling"]
FOREIGN = {
    "10": {"CLIPVisionLoader", "CopyrightMetric"},
    "11": {*EVOLVED},
    "12": {"UNETLoader", "CLIPLoader", "VAELoader"},
    "13": {"UNETLoader", "CLIPLoader", "VAELoader", "LoadErasedCLIP"},
}
"""The nodes of others, and those that name a file which no template makes with IconCanvas."""


@pytest.fixture(scope="module", autouse=True)
def saved_erasures(page: Frontend, server: Server) -> Iterator[None]:
    """The files that the templates for a saved erasure name: as after those that write them."""
    folder, made = server.output / "loras", []
    folder.mkdir(parents=True, exist_ok=True)
    for made_by, part in (("few_shot", "clip"), ("key_step", "model")):
        file = folder / f"erased_{part}_00001_.safetensors"
        if not file.exists():
            made.append(shutil.copy(SAVED / f"{made_by}.safetensors", file))
    page.load()  # a page reads the list of files when it opens
    yield
    for file in made:
        file.unlink()


def test_the_dialog_lists_them_in_order(page: Frontend) -> None:
    assert page.templates() == FILES
    page.page.keyboard.press("Escape")


def test_the_dialog_opens_on_them(page: Frontend, server: Server) -> None:
    """Where ComfyUI's own templates are not installed, as with `dev.py serve`."""
    assert "comfyui-workflow-templates is not installed" not in server.log.read_text("utf-8")
    page.command("Comfy.BrowseTemplates")
    cards = page.page.get_by_role("dialog").locator('[data-testid^="template-workflow-"]')
    cards.first.wait_for()
    first = cards.evaluate_all("(cards) => cards.map((card) => card.dataset.testid)")[0]
    assert first == f"template-workflow-{FILES[0]}"
    page.page.keyboard.press("Escape")


@pytest.mark.parametrize("name", FILES)
def test_it_opens_without_a_red_node(page: Frontend, name: str) -> None:
    page.open_template(name)
    assert page.unknown_types() == (EVOLVED if name.startswith("11 ") else [])
    assert set(page.faulty()) <= FOREIGN.get(name[:2], set())
    assert page.overlaps() == []
