"""The thumbnails of the shipped workflows, from the pictures that they draw.

Each workflow shows pictures in pairs of Preview Image nodes titled "Before: <what>" and
"After: <what>", or one picture in Compare Erasure or in a node titled "Result". The workflows run
on a real server here. The pictures become the .jpg files that ComfyUI's template browser shows.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

import testbed

from ..host.server import Server
from ..host.workflow import api_prompt
from ..model import samples
from . import templates

FOLDER = testbed.ROOT / "workflows"
IDENTIFY = "08 Find the word to erase (Identify Concept)"
PROBE = "09 Probe what is left"
# In their order: 03 loads what 02 saves, 06 what 04 saves.
NAMES = (*templates.MADE, IDENTIFY, PROBE)
COMPARED = {"originals": "original", "generated": "before", "generated_after": "after"}

WIDTH = 512  # pixels of a thumbnail
MARGIN = 8
LINE = 22  # height of a line of text


def load(name: str) -> dict[str, Any]:
    """A shipped workflow, as the browser saves it."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def comparisons(workflow: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """From what is compared to the ids of the nodes that show it before and after."""
    shown = {
        node.get("title", ""): node["id"]
        for node in workflow["nodes"]
        if node["type"] == "PreviewImage"
    }
    return {
        title.removeprefix("Before: "): (node, shown["After: " + title.removeprefix("Before: ")])
        for title, node in shown.items()
        if title.startswith("Before: ")
    }


def result(workflow: dict[str, Any]) -> int | None:
    """The id of the node titled "Result", or else of Compare Erasure; None if there is neither."""
    nodes = workflow["nodes"]
    titled = [node["id"] for node in nodes if node.get("title") == "Result"]
    compared = [node["id"] for node in nodes if node["type"] == "CompareErasure"]
    return next(iter(titled + compared), None)


def compose(
    rows: dict[str, tuple[list[Image.Image], list[Image.Image]]], width: int = WIDTH
) -> Image.Image:
    """A row for each comparison: two pictures before on the left, two after on the right."""
    side = (width - 3 * MARGIN) // 4
    columns = (MARGIN, 2 * MARGIN + 2 * side)
    font = ImageFont.load_default(14)
    sheet = Image.new("RGB", (width, LINE + len(rows) * (side + LINE + MARGIN)), "white")
    pen = ImageDraw.Draw(sheet)
    for left, word in zip(columns, ("before", "after")):
        pen.text((left, 4), word, fill="black", font=font)
    top = LINE
    for what, sides in rows.items():
        for left, pictures in zip(columns, sides):
            for i, picture in enumerate(pictures[:2]):
                sheet.paste(picture.convert("RGB").resize((side, side)), (left + i * side, top))
        pen.text((MARGIN, top + side + 2), what, fill="dimgray", font=font)
        top += side + LINE + MARGIN
    return sheet


def measured(server: Server, workflow: dict[str, Any]) -> Image.Image:
    """What Measure Copyright is given, side by side: the networks that measure are not here."""
    prompt = api_prompt(workflow, server.object_info())
    (metric,) = [node for node, one in prompt.items() if one["class_type"] == "CopyrightMetric"]
    given = prompt.pop(metric)["inputs"]
    prompt.pop(given["clip_vision"][0])
    for name in COMPARED:
        prompt[name] = {"class_type": "PreviewImage", "inputs": {"images": given[name]}}
    history = server.run(prompt)
    side = (WIDTH - 4 * MARGIN) // 3
    sheet = Image.new("RGB", (WIDTH, LINE + side + 2 * MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, (name, word) in enumerate(COMPARED.items()):
        left = MARGIN + i * (side + MARGIN)
        (picture,) = server.images(history, name)
        sheet.paste(picture.convert("RGB").resize((side, side)), (left, LINE + MARGIN))
        pen.text((left, 4), word, fill="black", font=font)
    return sheet


def drawn(server: Server, workflow: dict[str, Any]) -> Image.Image:
    """Run a workflow: its picture, or its pairs of pictures."""
    history = server.run(api_prompt(workflow, server.object_info()), workflow)
    whole = result(workflow)
    if whole is not None:
        return server.images(history, whole)[0]
    return compose(
        {
            what: (server.images(history, before), server.images(history, after))
            for what, (before, after) in comparisons(workflow).items()
        }
    )


def write(
    folder: Path = FOLDER, args: tuple[str, ...] = (), names: Sequence[str] = NAMES
) -> list[Path]:
    """Run the workflows, write <workflow>.jpg for each into folder, and return the files.

    args: more options for ComfyUI's main.py. Raises what Server.run raises.
    """
    files = []
    with tempfile.TemporaryDirectory() as temporary:
        shown = Path(temporary) / "input"
        shown.mkdir()
        for picture in samples.FOLDER.glob("*.png"):
            shutil.copy(picture, shown / f"iconcanvas_{picture.name}")
        with Server(Path(temporary), args=args) as server:
            for name in names:
                workflow = load(name)
                make = measured if name == templates.DISTANCE else drawn
                picture = make(server, workflow).convert("RGB")
                picture.thumbnail((1024, 4096))
                files.append(folder / f"{name}.jpg")
                picture.save(files[-1], quality=88, optimize=True)
    return files


if __name__ == "__main__":
    for file in write(names=sys.argv[1:] or NAMES):
        print(file.relative_to(testbed.ROOT))
