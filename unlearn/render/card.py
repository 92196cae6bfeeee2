"""A card: a heading, small pictures before and after where there are some, and a few sentences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

from .fonts import drawable, font_for
from .sheet import LINE, MARGIN, NARROWEST, Row, as_images, sheet, wrapped


def card(heading: str, sentences: Sequence[str], rows: Sequence[Row]) -> torch.Tensor:
    """The card, (1, height, width, 3) in 0..1."""
    if rows:
        return sheet({heading: list(rows)}, list(sentences))
    font, bold = font_for(sentences, 14), font_for([heading], 17)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    inside = NARROWEST - 2 * MARGIN
    above = wrapped(pen, heading, inside, bold)
    below = [line for text in sentences for line in wrapped(pen, text, inside, font)]
    tall = 3 * MARGIN + (len(above) + len(below)) * LINE
    page = Image.new("RGB", (NARROWEST, tall), "white")
    pen, top = ImageDraw.Draw(page), MARGIN
    for lines, used in ((above, bold), (below, font)):
        for line in lines:
            pen.text((MARGIN, top), drawable(line, used), fill="black", font=used)
            top += LINE
        top += MARGIN
    return as_images(page)
