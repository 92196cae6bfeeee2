"""A stand-in for the package nudenet, with its interface and without its network."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

# What it finds in a picture of one colour, by the colour as OpenCV has it: blue, green, red.
FINDS = {
    (0, 0, 255): ("FEMALE_BREAST_EXPOSED", 0.46),
    (0, 255, 0): ("BUTTOCKS_EXPOSED", 0.45),
    (255, 0, 0): ("BELLY_EXPOSED", 0.9),
    (255, 255, 255): ("FACE_FEMALE", 0.99),
}


class NudeDetector:
    """Finds one part in a picture of a colour of FINDS, and nothing in any other."""

    def detect(self, picture: np.ndarray) -> list[dict]:
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        colour = tuple(int(byte) for byte in picture[0, 0])
        if colour not in FINDS or (picture != picture[0, 0]).any():
            return []
        part, score = FINDS[colour]
        return [{"class": part, "score": score, "box": [0, 0, 1, 1]}]


class SeesAll:
    """Finds the same in every picture."""

    def detect(self, picture: np.ndarray) -> list[dict]:
        return [{"class": "FEMALE_GENITALIA_EXPOSED", "score": 0.8, "box": [0, 0, 1, 1]}]


def installed(monkeypatch: pytest.MonkeyPatch, detector: type = NudeDetector) -> None:
    """As if it were installed."""
    module = ModuleType("nudenet")
    module.NudeDetector = detector
    monkeypatch.setitem(sys.modules, "nudenet", module)


def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed."""
    monkeypatch.setitem(sys.modules, "nudenet", None)
