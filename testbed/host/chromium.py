"""A Chromium that Playwright drives: the system's own, or the one that Playwright fetched.

python -m testbed.host.chromium     prints where it is, or says how to get one
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dev import NO_CHROMIUM, system_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NO_PLAYWRIGHT = "Playwright is not installed: `python dev.py setup` installs it"
OPTIONS = (
    "--no-sandbox",  # root, as in most containers, may not have one
    "--disable-dev-shm-usage",  # containers have little shared memory
)


def find() -> str:
    """The path of a Chromium. Raises FileNotFoundError with one sentence."""
    if find_spec("playwright") is None:
        raise FileNotFoundError(NO_PLAYWRIGHT)
    if own := system_chromium():
        return own
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        fetched = playwright.chromium.executable_path
    if not Path(fetched).is_file():
        raise FileNotFoundError(NO_CHROMIUM)
    return fetched


def missing() -> str:
    """A sentence that says what is missing for a browser, and how to get it; empty if nothing."""
    try:
        find()
    except FileNotFoundError as error:
        return str(error)
    return ""


@contextmanager
def launched() -> Iterator[Browser]:
    """A Chromium without a window. While it runs, asyncio.run fails in this thread.

    Raises FileNotFoundError with one sentence if there is none.
    """
    path = find()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*OPTIONS])
        try:
            yield browser
        finally:
            browser.close()


if __name__ == "__main__":
    try:
        print(find())
    except FileNotFoundError as error:
        sys.exit(f"{error}.")
