"""The thumbnails of the shipped workflows, from the pictures that they draw.

Each workflow shows pictures in pairs of Preview Image nodes titled "Before: <what>" and
"After: <what>", or one picture in a node titled "Result". The workflows run on a real server here.
The pictures become the .jpg files that ComfyUI's template browser shows.
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

FOLDER = testbed.ROOT / "workflows"
# The order matters: the second loads what the first saves.
NAMES = (
    "closed_form_encoder_unlearn",
    "few_shot_encoder_unlearn",
    "load_erased_clip",
    "key_step_unet_unlearn",
    "domain_correction_unet_unlearn",
    "identify_concept",
    "compare",
    "probe_erasure",
)

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
    """The id of the node titled "Result"; None if there is none."""
    titled = [node["id"] for node in workflow["nodes"] if node.get("title") == "Result"]
    return titled[0] if titled else None


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
                history = server.run(api_prompt(workflow, server.object_info()), workflow)
                rows = {
                    what: (server.images(history, before), server.images(history, after))
                    for what, (before, after) in comparisons(workflow).items()
                }
                whole = result(workflow)
                picture = compose(rows) if whole is None else server.images(history, whole)[0]
                picture = picture.convert("RGB")
                picture.thumbnail((1024, 4096))
                files.append(folder / f"{name}.jpg")
                picture.save(files[-1], quality=88, optimize=True)
    return files


if __name__ == "__main__":
    for file in write(names=sys.argv[1:] or NAMES):
        print(file.relative_to(testbed.ROOT))
