"""The real page of the real server, in a real Chromium: one for each file and node style."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed.host import chromium
from testbed.host.frontend import STYLES, Frontend
from testbed.host.server import Server


# Not of the session: Playwright must end before tests in other files call asyncio.run.
@pytest.fixture(scope="module")
def browser() -> Iterator:
    if why := chromium.missing():
        pytest.skip(f"not run: {why}")
    with chromium.launched() as launched:
        yield launched


@pytest.fixture(scope="module", params=STYLES)
def page(request: pytest.FixtureRequest, browser, server: Server) -> Iterator[Frontend]:
    opened = Frontend(browser, server, request.param)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def nothing_is_thrown(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of the page ends without an error in its console."""
    yield
    if "page" in request.fixturenames:
        assert request.getfixturevalue("page").errors() == []
