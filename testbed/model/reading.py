"""How IconCanvas reads prompts that are no templates: as people type them, and without a name.

Part of its report.
"""

from __future__ import annotations

import random
import textwrap
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from .judge import Judge
from .measure import Prompt, draw
from .sentences import WAYS, Sentence, sentence
from .vocabulary import OBJECTS, STYLES

NEUTRAL = (
    *("a picture", "a thing", "an object", "a photo of a thing", "draw an object", "picture"),
    *("a person", "a photo of a person", "a portrait of a person"),
)
EACH = 8  # pictures of each neutral wording
STEPS = 25  # of every picture of the report


def pictures(model, prompts: list[Prompt], seed: int, batch: int = 16) -> torch.Tensor:
    parts = [
        draw(model, prompts[i : i + batch], seed + i, STEPS)
        for i in tqdm(range(0, len(prompts), batch), desc="drawing")
    ]
    return torch.cat(parts)


def share(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def read_prompts() -> dict[str, list[Sentence]]:
    """Prompts as people type them, by way: two for each object in a way of sentences.py."""
    rng = random.Random(0)
    found: dict[str, list[Sentence]] = {}
    for way in WAYS:
        for name in OBJECTS * 2:
            one = sentence(rng, way, name, rng.choice((*STYLES, None)))
            if one:
                found.setdefault(way, []).append(one)
    return found


@dataclass
class Read:
    """What the model draws of prompts that are not templates."""

    figures: dict[str, float]
    by_way: dict[str, float]
    styles: dict[str, float]
    """The share of each style in prompts that name none."""
    strip: list[tuple[str, torch.Tensor]]
    """Some prompts and their pictures."""


def read(model, judge: Judge) -> Read:
    asked = read_prompts()
    by_way, strip = {}, []
    for number, (way, some) in enumerate(asked.items()):
        images = pictures(model, [Prompt(s.text) for s in some], 3000 + 500 * number)
        seen = judge.things(images)
        by_way[way] = share(
            s.shows_all(things) if len(s.names) == 2 else s.shows(s.names[0], "object", things)
            for s, things in zip(some, seen)
        )
        strip += [(some[i].text, images[i]) for i in (1, 40)]
    plain = [Prompt(f"a photo of a {name}", name) for name in OBJECTS for _ in range(4)]
    seen = [s["style"] for s in judge(pictures(model, plain, 9000))]
    styles = {style: seen.count(style) / len(seen) for style in STYLES}
    anything = [Prompt(text) for text in NEUTRAL for _ in range(EACH)]
    images = pictures(model, anything, 12000)
    shown = [answer["object"] or answer["character"] for answer in judge(images)]
    strip += [(anything[i].text, images[i]) for i in (0, EACH, 6 * EACH, 7 * EACH)]
    figures = {
        "object, in sentences of shapes never seen": by_way["new sentence"],
        "two objects, both seen": by_way["beside another"],
        "a neutral word draws something recognisable": share(map(bool, shown)),
        "the commonest style of prompts without one, times its fair share": max(styles.values())
        * len(STYLES),
    }
    return Read(figures, by_way, styles, strip)


def captioned(strip: list[tuple[str, torch.Tensor]], columns: int = 6) -> Image.Image:
    """Pictures (H, W, 3), all of one size, in rows of `columns` with their prompts below."""
    height, width = strip[0][1].shape[:2]
    text_height = 74
    rows = -(-len(strip) // columns)
    sheet = Image.new("RGB", (columns * (width + 8), rows * (height + text_height)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for i, (text, image) in enumerate(strip):
        x, y = i % columns * (width + 8) + 4, i // columns * (height + text_height)
        pixels = (image.numpy() * 255).round().astype(np.uint8)
        sheet.paste(Image.fromarray(pixels), (x, y))
        lines = textwrap.wrap(text, 24)
        if len(lines) > 6:
            lines = [*lines[:5], f"{lines[5]} ..."]
        pen.multiline_text((x, y + height), "\n".join(lines), "black", font, spacing=1)
    return sheet
