"""The example pictures of the shipped workflows and the demo: four drawings of a few concepts.

`dev.py` shows them in ComfyUI's input folder as iconcanvas_<concept>_<number>.png. They are
drawings that IconCanvas was trained on, not pictures that it drew; ATTRIBUTION.md names their
makers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import testbed

from . import drawings
from .vocabulary import STYLES

FOLDER = testbed.FOLDER / "samples"
# Which of a concept's drawings: an object's by style, a character's spread over its faces.
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
