"""IconCanvas's report: how well it draws, by the judge, and a contact sheet to look at.

    python -m testbed report

writes docs/iconcanvas.md, docs/iconcanvas_prompts.png and docs/contact_sheet.png.
"""

from __future__ import annotations

import json
import time

import numpy as np
import torch
from PIL import Image

import testbed

from ..host.machine import machine
from . import pack
from .judge import Judge
from .measure import GUIDANCE, portrait, styled
from .reading import STEPS, captioned, pictures, read, share
from .vocabulary import CHARACTERS, DRAWINGS, HELD_OUT, OBJECTS, STYLES, resembles

DRAWN = frozenset(DRAWINGS.values())  # names of the vocabulary's drawings in the icon sets
DOCS = testbed.ROOT / "docs"
BARS = {
    "object": 0.96,
    "style": 0.95,
    "character": 0.96,
    "both right on never-seen pairs": 0.75,
    "object, in sentences of shapes never seen": 0.85,
    "two objects, both seen": 0.75,
    "a neutral word draws something recognisable": 0.80,
    "autoencoder PSNR, dB": 26.0,
}
AT_MOST = {"the commonest style of prompts without one, times its fair share": 1.5}


def grid(images: torch.Tensor, columns: int) -> Image.Image:
    """Pictures (N, H, W, 3) in rows of `columns`."""
    pixels = (images.numpy() * 255).round().astype(np.uint8)
    rows = [
        np.concatenate(list(pixels[i : i + columns]), 1)
        for i in range(0, len(pixels) - len(pixels) % columns, columns)
    ]
    return Image.fromarray(np.concatenate(rows, 0))


def psnr(model) -> float:
    """The autoencoder's PSNR in dB on the held-out icons, which are those of every 20th name.

    Needs the rendered data; NaN without it.
    """
    from . import data

    file = data.CACHE / "pretraining.npy"
    if not file.exists():
        return float("nan")
    images = np.load(file, mmap_mode="r")
    unseen = images[np.flatnonzero(np.arange(len(images)) // len(STYLES) % 20 == 0)]
    ratios = []
    for part in np.array_split(unseen, max(1, len(unseen) // 16)):
        target = torch.from_numpy(np.ascontiguousarray(part)).float() / 255
        error = (
            (model.decode_latents(model.encode_images(target)) - target).square().mean((1, 2, 3))
        )
        ratios.append(-10 * error.log10())
    return torch.cat(ratios).mean().item()


def style_ceiling(judge: Judge) -> float:
    """The judge's style accuracy on true drawings that it never saw.

    These were left out of its training because their names resemble the vocabulary's. The figure is
    the most that generated pictures of held-out pairs can reach. Needs the rendered data; NaN
    without it.
    """
    from . import data

    file = data.CACHE / "pretraining.npy"
    if not file.exists():
        return float("nan")
    names = json.loads((data.CACHE / "pretraining.json").read_text())
    unseen = [i for i, name in enumerate(names) if resembles(name) and name not in DRAWN]
    rows = [i * len(STYLES) + j for i in unseen for j in range(len(STYLES))]
    drawn = np.load(file, mmap_mode="r")[rows]
    seen = [s for part in np.array_split(drawn, 16) for s in judge(torch.from_numpy(part) / 255)]
    return sum(s["style"] == w for s, w in zip(seen, STYLES * len(unseen))) / len(seen)


def write(seeds: int = 1) -> None:
    """Draw every object in every style, every character and prompts as people type them, judge the
    pictures, and write the report."""
    package = pack.load()
    model = package.nodes.backend.model.ComfyModel(*pack.checkpoint(), size=(128, 128))
    prompts = [styled(name, style, "own") for name in OBJECTS for style in STYLES]
    people = [
        portrait(name, "own", template)
        for name in CHARACTERS
        for template in ("a photo of {}", "{}", "a portrait of {}")
    ]
    judge = Judge()
    with torch.inference_mode(), model.training():
        started = time.perf_counter()
        images = torch.cat([pictures(model, prompts, 1000 * s) for s in range(seeds)])
        seconds = (time.perf_counter() - started) / len(images)
        portraits = pictures(model, people, 77)
        typed = read(model, judge)
        quality = psnr(model)
    seen, known = judge(images), judge(portraits)
    pairs = [(p.object, p.style) for p in prompts] * seeds
    right = [(s["object"] == name, s["style"] == style) for s, (name, style) in zip(seen, pairs)]
    new = [pair in HELD_OUT for pair in pairs]
    figures = {
        "object": share(o for o, _ in right),
        "style": share(s for _, s in right),
        "character": share(k["character"] == p.character for k, p in zip(known, people)),
        "both right on never-seen pairs": share(o and s for (o, s), n in zip(right, new) if n),
        **typed.figures,
        "autoencoder PSNR, dB": quality,
    }
    lines = [
        "# IconCanvas",
        "",
        "Made by `python -m testbed report`. What the test model draws, as a separate classifier, "
        f"the judge, sees it: {len(OBJECTS)} objects in {len(STYLES)} styles with {seeds} seed(s), "
        f"{STEPS} steps, guidance {GUIDANCE:g}. A tenth of the pairs was never seen in training.",
        "",
        "| what | measured | bar |",
        "|---|---|---|",
    ]
    for name, value in figures.items():
        if name in AT_MOST:
            lines.append(f"| {name} | {value:.2f} | at most {AT_MOST[name]:g} |")
            continue
        text = f"{value:.1f}" if "dB" in name else f"{value:.1%}"
        bar = f"{BARS[name]:g}" if "dB" in name else f"{BARS[name]:.0%}"
        lines.append(f"| {name} | {text} | {bar} |")
    lines += [
        f"| seconds a picture, in batches of 16 | {seconds:.2f} | 2 |",
        f"| the judge's own style accuracy on true drawings it never saw | "
        f"{style_ceiling(judge):.1%} | |",
        "",
        "| style | object right | style right |",
        "|---|---|---|",
    ]
    for style in STYLES:
        mine = [r for r, pair in zip(right, pairs) if pair[1] == style]
        lines.append(
            f"| {style} | {share(o for o, _ in mine):.0%} | {share(s for _, s in mine):.0%} |"
        )
    weak = sorted(
        OBJECTS, key=lambda name: share(o for (o, _), pair in zip(right, pairs) if pair[0] == name)
    )[:6]
    lines += [
        "",
        f"Weakest objects: {', '.join(weak)}.",
        "",
        "## Prompts as people type them",
        "",
        "Two prompts for each object in each way (testbed/model/sentences.py), in a random style "
        "or in none. Of two things both must be seen, and no third.",
        "",
        "| way | drawn |",
        "|---|---|",
        *(f"| {way} | {value:.1%} |" for way, value in typed.by_way.items()),
        "",
        "Styles of prompts that name none: "
        + ", ".join(f"{style} {value:.0%}" for style, value in typed.styles.items())
        + ".",
        "",
        "![prompts](iconcanvas_prompts.png)",
        "",
        "## All of it",
        "",
        "![contact sheet](contact_sheet.png)",
        "",
        f"Measured on {machine()}.",
    ]
    DOCS.mkdir(exist_ok=True)
    (DOCS / "iconcanvas.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    captioned(typed.strip).save(DOCS / "iconcanvas_prompts.png", optimize=True)
    # Four blocks side by side, each of sixteen objects in seven styles; the characters below.
    by_object = images[: len(prompts)].unflatten(0, (len(OBJECTS), len(STYLES)))
    table = by_object.unflatten(0, (4, 16)).permute(1, 0, 2, 3, 4, 5).flatten(0, 2)
    sheet = grid(table, 4 * len(STYLES))
    faces = grid(portraits[::3], len(CHARACTERS))
    whole = Image.new("RGB", (sheet.width, sheet.height + faces.height), "white")
    whole.paste(sheet, (0, 0))
    whole.paste(faces, (0, sheet.height))
    whole.resize((whole.width // 2, whole.height // 2), Image.Resampling.LANCZOS).save(
        DOCS / "contact_sheet.png", optimize=True
    )
    print("\n".join(lines))
