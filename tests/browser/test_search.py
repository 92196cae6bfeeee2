"""A first look, in every run: the page opens, draws a template, and its search finds the nodes."""

from __future__ import annotations

import pytest
from browser_page import browser as browser
from browser_page import nothing_is_thrown as nothing_is_thrown
from browser_page import page as page

from testbed.host.frontend import CLASSIC, EMPTY, Frontend
from testbed.showcase import blueprint, templates

WORDS = ("forget", "remove", "erase", "censor", "nsfw", "sanitise")
NEAR = 5
"""Results that are seen without scrolling."""


@pytest.mark.parametrize("page", [CLASSIC], indirect=True)
def test_the_first_template_opens_and_the_search_finds_us(page: Frontend) -> None:
    page.open_template(templates.SECONDS)
    assert page.unknown_types() == []
    assert page.faulty() == []
    found = {word: page.search(word)[:NEAR] for word in WORDS}
    page.page.keyboard.press("Escape")
    for word, results in found.items():
        assert any("unlearn" in one.lower() for one in results), (word, results)


@pytest.mark.slow
def test_the_blueprint_is_found_and_put_on_the_canvas(page: Frontend) -> None:
    page.open_template(templates.SECONDS)
    page.search(blueprint.NAME)
    page.page.get_by_test_id("result-item").first.click()
    page.page.mouse.click(*EMPTY)  # where it is put down
    ask = "(title) => app.graph.nodes.find((one) => one.title === title)?.subgraph?.nodes.length"
    page.page.wait_for_function(ask, arg=blueprint.NAME)
    assert page.faulty() == []
    names = "(title) => app.graph.nodes.find((n) => n.title === title).widgets.map((w) => w.name)"
    assert page.page.evaluate(names, blueprint.NAME) == [*blueprint.FACE]
