"""The example pictures of the shipped workflows and the demo: four drawings of a few concepts.

`dev.py` puts them into ComfyUI's input folder as iconcanvas_<concept>_<number>.png. IconCanvas was
trained on these drawings; it did not draw them. ATTRIBUTION.md names their makers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import testbed

from . import drawings
from .vocabulary import STYLES

FOLDER = testbed.FOLDER / "samples"
# The indices of the drawings: for an object by style, for a character spread over its faces.
CHOSEN = {
    "mushroom": [STYLES.index(style) for style in ("noto", "blob", "twitter", "glossy")],
    "Zorvik": [0, 4, 5, 9],
}


def write(folder: Path = FOLDER) -> list[Path]:
    """Write <concept>_1.png to <concept>_4.png into folder and return the files."""
    folder.mkdir(exist_ok=True)
    files = []
    for concept, indices in CHOSEN.items():
        pixels = (drawings.of(concept)[indices].numpy() * 255).round().astype(np.uint8)
        for number, picture in enumerate(pixels, start=1):
            files.append(folder / f"{concept.lower()}_{number}.png")
            Image.fromarray(picture).save(files[-1], optimize=True)
    return files


if __name__ == "__main__":
    for file in write():
        print(file.name)
