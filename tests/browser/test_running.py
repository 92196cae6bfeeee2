"""The first template in the browser: run, cancelled, bypassed, misused, and saved."""

from __future__ import annotations

import pytest
from browser_page import browser as browser
from browser_page import nothing_is_thrown as nothing_is_thrown
from browser_page import page as page

from testbed.host.frontend import Frontend
from testbed.showcase import templates

pytestmark = pytest.mark.slow
ERASE, COMPARE = "Closed-Form Encoder Unlearn", "Compare Erasure"


@pytest.fixture
def opened(page: Frontend) -> Frontend:
    page.open_template(templates.SECONDS)
    page.set(COMPARE, "count", 1)
    page.set(COMPARE, "steps", 5)  # what is drawn does not matter here
    return page


def test_it_runs_and_shows_before_and_after(opened: Frontend) -> None:
    assert opened.run() == "success"
    assert "mushroom is gone" in opened.shown(ERASE)
    (size,) = opened.pictures(COMPARE)
    assert min(size) > 256
    assert opened.faulty() == []


def test_cancelled_it_says_so_on_the_node(opened: Frontend) -> None:
    # Not a word that another test erases: what is kept would be handed out at once.
    word = {"classic": "cat", "nodes 2.0": "dog"}[opened.style]
    opened.set("Concept", "value", word)
    opened.start()
    opened.until(("executing",), opened.number(ERASE))
    opened.cancel()
    assert opened.ended() == "interrupted"
    assert "Cancelled." in opened.shown(ERASE)


def test_bypassed_it_draws_the_original(opened: Frontend) -> None:
    opened.bypass(ERASE)
    assert opened.run() == "success"
    assert "Nothing was erased" in opened.shown(COMPARE)
    assert len(opened.pictures(COMPARE)) == 1
    assert opened.faulty() == []


def test_no_concept_gets_a_sentence_on_the_node(opened: Frontend) -> None:
    opened.set("Concept", "value", "")
    assert opened.run() == "error"
    said = opened.shown(ERASE)
    assert "Error: No concept is named: type the word or name to unlearn" in said
    assert "ValueError" not in said
    overlay = opened.page.get_by_test_id("error-overlay")
    overlay.wait_for()
    assert f"{ERASE} failed" in overlay.inner_text()


def test_saved_and_loaded_it_has_the_same_values(opened: Frontend) -> None:
    opened.set("Concept", "value", "fox")
    opened.set(ERASE, "kind", "character")
    opened.set(ERASE, "strength", 0.75)
    opened.set(ERASE, "other_names", False)
    before = opened.values()
    name = f"saved in {opened.style}"
    opened.save(name)
    opened.load()
    opened.page.wait_for_function("(name) => document.title.startsWith(name)", arg=name)
    assert opened.values() == before
    saved = opened.saved(name)["nodes"]
    assert {str(one["id"]): one.get("widgets_values", []) for one in saved} == {
        key: values for key, (_, _, values) in before.items()
    }
