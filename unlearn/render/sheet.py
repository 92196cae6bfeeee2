"""A labelled sheet of pictures: a row per prompt, before on the left and after on the right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from .fonts import drawable, font_for

MARGIN, LINE = 10, 20  # pixels
SMALLEST, LARGEST = 128, 256  # pixels of a picture's longer side on the sheet
NARROWEST = 560  # pixels of the sheet, so that the figures fit
PALE, DARK = (170, 190, 220), (20, 60, 150)  # colours of a plot: of its data, and of the result


@dataclass(frozen=True)
class Row:
    """The pictures of one prompt, (N, H, W, 3), from the same seeds before and after."""

    label: str
    before: torch.Tensor
    after: torch.Tensor


def as_images(picture: Image.Image) -> torch.Tensor:
    """A picture as a tensor, (1, height, width, 3) in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB")).astype(np.float32) / 255)[None]


def sheet(
    groups: dict[str, list[Row]],
    figures: list[str],
    columns: tuple[str, str] = ("before", "after"),
) -> torch.Tensor:
    """The sheet, (1, height, width, 3) in 0..1.

    groups: rows by heading. figures: sentences below the rows. columns: headings of the two halves.
    """
    rows = [row for group in groups.values() for row in group]
    count, height, width = rows[0].before.shape[:3]
    longer = max(height, width)
    scale = min(max(longer, SMALLEST), LARGEST) / longer
    cell = round(width * scale), round(height * scale)
    side = max(count * cell[0], (NARROWEST - 3 * MARGIN) // 2)
    whole = 2 * side + 3 * MARGIN
    font = font_for([*(row.label for row in rows), *figures], 14)
    bold = font_for(groups, 17)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    labels = [wrapped(pen, row.label, whole - 2 * MARGIN, font) for row in rows]
    notes = [line for text in figures for line in wrapped(pen, text, whole - 2 * MARGIN, font)]
    lines = sum(map(len, labels)) + len(notes)
    tall = sum(1 for group in groups.values() if group) * (LINE + 2 * MARGIN)
    tall += len(rows) * (cell[1] + MARGIN) + lines * LINE + LINE + MARGIN // 2 + MARGIN

    page = Image.new("RGB", (whole, tall), "white")
    pen = ImageDraw.Draw(page)
    places = MARGIN, 2 * MARGIN + side
    for left, word in zip(places, columns):
        pen.text((left, MARGIN // 2), word, fill="black", font=font)
    top, label = LINE + MARGIN // 2, iter(labels)
    for heading, group in groups.items():
        if group:
            pen.line([(MARGIN, top + 3), (whole - MARGIN, top + 3)], fill="lightgray")
            pen.text((MARGIN, top + MARGIN - 2), drawable(heading, bold), fill="black", font=bold)
            top += LINE + 2 * MARGIN
        for row in group:
            for left, pictures in zip(places, (row.before, row.after)):
                for i, picture in enumerate(resized(pictures, cell)):
                    page.paste(picture, (left + i * cell[0], top))
            top += cell[1]
            for line in next(label):
                pen.text((MARGIN, top + 1), line, fill="dimgray", font=font)
                top += LINE
            top += MARGIN
    for line in notes:
        pen.text((MARGIN, top), line, fill="black", font=font)
        top += LINE
    return as_images(page)


def page(sentences: list[str]) -> torch.Tensor:
    """Sentences alone, as a sheet has them below its rows: (1, height, width, 3) in 0..1."""
    font, pen = font_for(sentences, 14), ImageDraw.Draw(Image.new("RGB", (1, 1)))
    lines = [row for text in sentences for row in wrapped(pen, text, NARROWEST - 2 * MARGIN, font)]
    picture = Image.new("RGB", (NARROWEST, len(lines) * LINE + 2 * MARGIN), "white")
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + number * LINE), line, fill="black", font=font)
    return as_images(picture)


def resized(pictures: torch.Tensor, cell: tuple[int, int]) -> list[Image.Image]:
    """Pictures, (N, H, W, 3) in 0..1, at the size `cell`: width and height in pixels."""
    x = pictures.float().movedim(-1, 1)
    x = F.interpolate(x, cell[::-1], mode="bilinear", antialias=True, align_corners=False)
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


def wrapped(pen: ImageDraw.ImageDraw, text: str, width: int, font) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words."""
    lines = [""]
    for word in drawable(text, font).split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and pen.textlength(longer, font=font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
