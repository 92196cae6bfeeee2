"""A font that has the letters of a text. Pillow's own has few beyond those of English, and the
sheets show what users type and what words are in other languages."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache

from PIL import ImageFont

# Of Linux, Windows and macOS, the Latin ones first; Pillow looks for them where the system has its
# fonts.
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
    """Pillow's own font, or the first of this machine's that has more of the texts' letters."""
    letters = {letter for text in texts for letter in text if not letter.isspace()}
    fonts = (font for name in (None, *NAMES) if (font := _font(name, size)) is not None)
    best, most = None, -1
    for font in fonts:
        count = sum(_has(font, letter) for letter in letters)
        if count > most:
            best, most = font, count
        if count == len(letters):
            break
    return best


def drawable(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text with letters that the font lacks made plain: without accents, or a question mark."""
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
    """What a font lacks it draws as it draws what no font has."""
    return bytes(font.getmask(letter)) != bytes(font.getmask(NOBODY_HAS))
