"""Chooses a font that has the letters of a text. Pillow's own has few beyond the English ones, and
the sheets show users' words and translations."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache

from PIL import ImageFont

# Fonts of Linux, Windows and macOS, Latin ones first. Pillow searches the system's font folders.
NAMES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "arial.ttf",
    "Arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "Arial Unicode.ttf",
    "PingFang.ttc",
)
NOBODY_HAS = "\U0010ffff"
PLAIN = {"–": "-", "—": "-", "’": "'", "ß": "ss", "ø": "o"}  # noqa: RUF001


def font_for(texts: Iterable[str], size: int) -> ImageFont.FreeTypeFont:
    """The font with the most of the texts' letters. Pillow's own comes first among equals."""
    letters = {letter for text in texts for letter in text if not letter.isspace()}
    best = ImageFont.load_default(size)
    most = -1
    for name in (None, *NAMES):
        font = _font(name, size)
        if font is None:
            continue
        count = sum(_has(font, letter) for letter in letters)
        if count > most:
            best, most = font, count
        if count == len(letters):
            break
    return best


def drawable(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text, where a letter that the font lacks loses its accent or becomes a question mark."""
    return "".join(
        letter if letter.isspace() or _has(font, letter) else _plain(letter) for letter in text
    )


def _plain(letter: str) -> str:
    parts = unicodedata.normalize("NFKD", PLAIN.get(letter, letter))
    return "".join(part for part in parts if part.isascii()) or "?"


@cache
def _font(name: str | None, size: int) -> ImageFont.FreeTypeFont | None:
    if name is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@cache
def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether the font has the letter. A font draws every letter that it lacks the same."""
    return bytes(font.getmask(letter)) != bytes(font.getmask(NOBODY_HAS))
