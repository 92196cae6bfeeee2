"""The real page of the real server, in a real Chromium: one for the tests of each node style."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed.host import chromium
from testbed.host.frontend import STYLES, Frontend
from testbed.host.server import Server


# Playwright's loop must end before another folder's tests call asyncio.run.
@pytest.fixture(scope="package")
def browser() -> Iterator:
    if why := chromium.missing():
        pytest.skip(f"not run: {why}")
    with chromium.launched() as launched:
        yield launched


@pytest.fixture(scope="package", params=STYLES)
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
