"""Drawings for use as a user's pictures: every object in every style, and the characters.

The repository has them as two sheets, so the benchmark needs no rebuild of the data.
"""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image

import testbed

from .vocabulary import CHARACTERS, OBJECTS, STYLES

FOLDER = testbed.FOLDER / "weights"
SIZE = 128
POSES = 10  # drawings of each character in the sheet


def write() -> None:
    """Make the sheets from the rendered data (python -m testbed data)."""
    from . import data

    drawings = data.load()
    rows = [
        [
            drawings.images[i]
            for i, pair in enumerate(zip(drawings.names, drawings.styles))
            if pair[0] == name
        ]
        for name in (*OBJECTS, *CHARACTERS)
    ]
    characters = [row[:: len(row) // POSES][:POSES] for row in rows[len(OBJECTS) :]]
    for file, table in (("objects", rows[: len(OBJECTS)]), ("characters", characters)):
        sheet = np.concatenate([np.concatenate(row, 1) for row in table], 0)
        Image.fromarray(sheet).save(FOLDER / f"{file}.png", optimize=True)


@lru_cache
def _sheet(file: str) -> np.ndarray:
    pixels = np.asarray(Image.open(FOLDER / f"{file}.png").convert("RGB"))
    rows, columns = pixels.shape[0] // SIZE, pixels.shape[1] // SIZE
    return pixels.reshape(rows, SIZE, columns, SIZE, 3).swapaxes(1, 2)


def of(concept: str) -> torch.Tensor:
    """All drawings of an object (by style), a style (by object) or a character, (N, 128, 128,
    3)."""
    if concept in OBJECTS:
        pixels = _sheet("objects")[OBJECTS.index(concept)]
    elif concept in STYLES:
        pixels = _sheet("objects")[:, STYLES.index(concept)]
    else:
        pixels = _sheet("characters")[CHARACTERS.index(concept)]
    return torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255
