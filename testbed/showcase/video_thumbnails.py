"""The thumbnails of the workflows that make video: python -m testbed.showcase.video_thumbnails

The workflow for AnimateDiff-Evolved runs on IconCanvas if that pack is there; its thumbnail shows
frames. The workflows for Wan need gigabytes of weights that the testbed does not have; their
thumbnails show the graph.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..host import evolved
from ..host.server import Server
from ..host.workflow import api_prompt
from ..model import samples
from ..motion import motion
from . import templates, thumbnails

ANIMATEDIFF = "11 Clips with a saved erasure (AnimateDiff)"
TO_VIDEO = "12 Erase, and draw clips (Wan)"
LOADED = "13 Clips with a saved erasure (Wan)"
WAN = (TO_VIDEO, LOADED)
NAMES = (ANIMATEDIFF, *WAN)
FRAMES = (1, 6)  # the frames of a clip that are shown
WIDTH = 960
MARGIN = 8


def erase_first(server: Server) -> None:
    """Run the workflow for Few-Shot. The other workflow loads the file that it writes."""
    workflow = thumbnails.load(templates.PICTURES)
    server.run(api_prompt(workflow, server.object_info()), workflow)


def frames(server: Server, history: dict[str, Any]) -> dict[str, tuple[list, list]]:
    """From what is compared to the clips before and after, as lists of pictures."""
    pairs = thumbnails.comparisons(thumbnails.load(ANIMATEDIFF))
    return {
        what: (server.images(history, before), server.images(history, after))
        for what, (before, after) in pairs.items()
    }


def clips(modules: Path = motion.WEIGHTS) -> Image.Image:
    """Run the workflow for AnimateDiff-Evolved and show frames of its clips."""
    with tempfile.TemporaryDirectory() as temporary:
        shown = Path(temporary) / "input"
        shown.mkdir()
        for picture in samples.FOLDER.glob("*.png"):
            shutil.copy(picture, shown / f"iconcanvas_{picture.name}")
        with evolved.server(Path(temporary), modules, shown) as server:
            erase_first(server)
            workflow = thumbnails.load(ANIMATEDIFF)
            history = server.run(api_prompt(workflow, server.object_info()), workflow)
            drawn = frames(server, history)
    return thumbnails.compose(
        {what: tuple([side[i] for i in FRAMES] for side in sides) for what, sides in drawn.items()}
    )


def plan(workflow: dict[str, Any], width: int = WIDTH) -> Image.Image:
    """The graph as it lies on the canvas, and below it the titles of its groups."""
    groups = workflow["groups"]
    boxes = [group["bounding"] for group in groups]
    boxes += [[*node["pos"], *node["size"]] for node in workflow["nodes"]]
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, bottom = max(b[0] + b[2] for b in boxes), max(b[1] + b[3] for b in boxes)
    scale, line = (width - 2 * MARGIN) / (right - left), 22
    height = round((bottom - top) * scale) + 2 * MARGIN
    sheet = Image.new("RGB", (width, height + line * len(groups) + MARGIN), "#222")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)

    def place(x: float, y: float, w: float, h: float) -> list[float]:
        ends = (x - left, y - top, x + w - left, y + h - top)
        return [MARGIN + scale * end for end in ends]

    for group in groups:
        pen.rectangle(place(*group["bounding"]), fill="#333", outline=group["color"])
    for node in workflow["nodes"]:
        pen.rectangle(place(*node["pos"], *node["size"]), fill=node.get("bgcolor", "#555"))
    for i, group in enumerate(groups):
        y = height + i * line
        pen.rectangle([MARGIN, y + 4, MARGIN + 12, y + 16], fill=group["color"])
        pen.text((MARGIN + 22, y), group["title"], fill="white", font=font)
    return sheet


def main() -> None:
    if evolved.missing():
        print(f"{ANIMATEDIFF} is not drawn again: {evolved.missing()}.", file=sys.stderr)
    pictures = {name: plan(thumbnails.load(name)) for name in WAN}
    if not evolved.missing():
        pictures[ANIMATEDIFF] = clips(*map(Path, sys.argv[1:2]))
    for name, picture in pictures.items():
        file = thumbnails.FOLDER / f"{name}.jpg"
        picture.save(file, quality=88, optimize=True)
        print(file.name)


if __name__ == "__main__":
    main()
