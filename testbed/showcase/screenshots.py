"""Pictures of the templates as a browser shows them: python -m testbed.showcase.screenshots FOLDER

Each is opened on a screen of 1920 x 1080 pixels, in both node styles. `--run` also runs the first
one. To look at after a change of a node or of a template.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..host import chromium
from ..host.frontend import STYLES, Frontend
from ..host.server import Server
from . import templates


def take(folder: Path, words: str = "", run: bool = False) -> Iterator[Path]:
    """The files, as they are written. words: only templates with this in their names."""
    names = sorted(file.stem for file in templates.FOLDER.glob("*.json") if words in file.stem)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as temporary,
        Server(Path(temporary)) as server,
        chromium.launched() as browser,
    ):
        for style in STYLES:
            page = Frontend(browser, server, style)
            for name in names:
                page.open_template(name)
                yield _taken(page, folder, f"{name}, {style}")
                if run and name == templates.SECONDS:
                    page.run()
                    yield _taken(page, folder, f"{name}, run, {style}")
            page.close()


def _taken(page: Frontend, folder: Path, name: str) -> Path:
    file = folder / f"{name}.png"
    page.screenshot(file)
    return file


def main() -> None:
    parser = argparse.ArgumentParser(prog="testbed.showcase.screenshots", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pictures are written")
    parser.add_argument("--only", default="", metavar="WORDS", help="templates by a part of a name")
    parser.add_argument("--run", action="store_true", help="also run the first template")
    options = parser.parse_args()
    for file in take(options.folder, options.only, options.run):
        print(file)


if __name__ == "__main__":
    main()
