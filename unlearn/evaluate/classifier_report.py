"""A ranking for people: as sentences, as a table, and as a bar chart."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw

from ..render.fonts import drawable, font_for
from ..render.sheet import DARK, PALE, as_images
from ..render.text_table import columns
from .classifier import Ranking

SHOWN = 10  # words


def verdict(ranking: Ranking) -> str:
    """The best word and its confidence, with a warning if no word explains the pictures."""
    first = ranking.words[0]
    text = f"The model calls it: {first.word} (confidence {sureness(ranking)})."
    # Not for styles: the right one is below zero half of the time.
    if first.explained <= 0 and ranking.kind != "style":
        text += (
            "\nBut no candidate explains the pictures better than an empty prompt: the right word "
            "may not be among them."
        )
    return text


def cost(ranking: Ranking, pictures: int) -> str:
    """What the ranking took, as a sentence."""
    return (
        f"{len(ranking.words)} candidates, {pictures} pictures, {ranking.evaluations} evaluations "
        "of the denoiser."
    )


def report(ranking: Ranking, pictures: int) -> str:
    """The ranking as lines of text."""
    lines = [
        f"{place}. {word.word}: explains {word.explained:.1%}, {word.draws} draws"
        for place, word in enumerate(ranking.words[:SHOWN], 1)
    ]
    return "\n".join([verdict(ranking), *lines, cost(ranking, pictures)])


def table(ranking: Ranking) -> str:
    """The best words as a table: how much each explains, the standard error of its difference to
    the first, and its draws."""
    rows = [["", "word", "explains", "error", "draws"]]
    for place, word in enumerate(ranking.words[:SHOWN], 1):
        error = f"{word.error:.1%}" if 0 < word.error < 1 else ""
        rows.append([f"{place}.", word.word, f"{word.explained:.1%}", error, str(word.draws)])
    return columns(rows)


def sureness(ranking: Ranking) -> str:
    """The confidence as text. It is never 100%."""
    return "over 99%" if ranking.confidence > 0.99 else f"{ranking.confidence:.0%}"


def bars(ranking: Ranking) -> torch.Tensor:
    """The best words as a bar chart, (1, height, 512, 3) in 0..1: how much each explains, and its
    standard error against the first, which is dark."""
    words = ranking.words[:SHOWN]
    line, left, width, top = 24, 150, 512, 10
    font = font_for([word.word for word in words], 13)
    image = Image.new("RGB", (width, top + line * len(words) + 2 * line), "white")
    pen = ImageDraw.Draw(image)
    errors = [word.error if word.error < 1 else 0.0 for word in words]
    low = min(0.0, *(word.explained - error for word, error in zip(words, errors)))
    high = max(low + 1e-6, *(word.explained + error for word, error in zip(words, errors)), 0.0)

    def place(value: float) -> float:
        return left + (width - left - 60) * (value - low) / (high - low)

    for i, (word, error) in enumerate(zip(words, errors)):
        y = top + i * line
        name = drawable(shortened(word.word), font)
        pen.text((left - 8, y + 3), name, fill="black", font=font, anchor="ra")
        ends = sorted((place(0.0), place(word.explained)))
        pen.rectangle([ends[0], y + 2, ends[1], y + line - 6], fill=PALE if i else DARK)
        if error:
            span = [place(word.explained + sign * error) for sign in (-1, 1)]
            pen.line([(span[0], y + 9), (span[1], y + 9)], fill="dimgray")
        pen.text((width - 4, y + 3), f"{word.explained:.1%}", fill="black", font=font, anchor="ra")
    bottom = top + line * len(words)
    pen.line([(place(0.0), top - 4), (place(0.0), bottom)], fill="black")
    pen.text(
        (width // 2, bottom + 8),
        f"share of the loss explained; confidence in "
        f"{drawable(shortened(words[0].word), font)}: {sureness(ranking)}",
        fill="black",
        font=font,
        anchor="ma",
    )
    return as_images(image)


def shortened(word: str) -> str:
    """At most 20 letters of a word."""
    return word if len(word) <= 20 else word[:19] + "..."
