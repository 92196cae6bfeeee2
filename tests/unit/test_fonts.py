"""Sheets show what users type and words in other languages, not boxes."""

from __future__ import annotations

import pytest
from PIL import ImageFont

from unlearn.render import fonts
from unlearn.render.fonts import drawable, font_for


def boxes(font: ImageFont.FreeTypeFont, text: str) -> list[str]:
    """Letters that are drawn like one that no font has."""
    return [c for c in text if bytes(font.getmask(c)) == bytes(font.getmask(fonts.NOBODY_HAS))]


def test_english_keeps_pillows_own_font() -> None:
    font = font_for(["a photo of a fox, 50% (2 of 4)"], 14)
    assert font.getname() == ImageFont.load_default(14).getname()


@pytest.mark.parametrize(
    "text", ["Löwe", "éléphant", "plátano", "Schildkröte — 50 %", "狐", "ёлка"]
)
def test_no_letter_is_drawn_as_a_box(text: str) -> None:
    font = font_for([text], 14)
    assert not boxes(font, drawable(text, font).replace(" ", ""))


def test_a_machine_without_other_fonts_gets_plain_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "NAMES", ())
    font = font_for(["Löwe"], 14)
    assert (
        drawable("Löwe, größer \N{EN DASH} 狐 \N{GREEK SMALL LETTER BETA}", font)
        == "Lowe, grosser - ? ?"
    )
    assert drawable("a fox", font) == "a fox"
