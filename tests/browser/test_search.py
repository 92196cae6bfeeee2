"""A first look, in every run: the page opens, draws a template, and its search finds the nodes."""

from __future__ import annotations

import pytest

from testbed.host.frontend import CLASSIC, Frontend
from testbed.showcase import templates

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
