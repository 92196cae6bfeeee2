"""Draws a workflow as ComfyUI shows it: its nodes, widgets and links, as a PNG.

    python -m testbed.showcase.graph_picture "workflows/09 Probe what is left.json" graph.png

Notes are left out. Only the widgets that `--widgets` names are drawn, so that a node with twenty
widgets stays readable. Only sockets with a link are drawn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

NOTES = {"MarkdownNote", "Note"}
# What a newcomer has to set or look at. All other widgets have a default.
WIDGETS = ("ckpt_name", "value", "concept", "kind", "anchor", "strength", "neighbours")
STOCK = {
    "CheckpointLoaderSimple": "Load Checkpoint",
    "PreviewAny": "Preview as Text",
    "PreviewImage": "Preview Image",
    "PrimitiveInt": "Int",
}
"""Display names of ComfyUI's own nodes. Those of the pack are the titles of their help pages."""

COLOURS = {
    "MODEL": "#b39ddb",
    "CLIP": "#ffd500",
    "VAE": "#ff6e6e",
    "IMAGE": "#64b5f6",
    "INT": "#29699c",
    "STRING": "#77ff77",
    "ERASURE": "#e0a060",
}
PAGE, BODY, TITLE, FIELD = "#1e1e1e", "#353535", "#2a2a2a", "#222222"
TEXT, DIM, OTHER = "#dddddd", "#999999", "#aaaaaa"

SCALE = 2  # it is drawn at twice the size and scaled down, for smooth edges
ROW = 24  # pixels of a socket or a widget
HEAD = 30
WIDTH, GAP = 250, 70  # pixels of a column of nodes, and between two columns
MARGIN = 24
LINES = 3  # most lines of a widget's text


def names(folder: Path) -> dict[str, str]:
    """Display names by node id. For the pack's nodes, the first line of the help page."""
    pages = (folder / "nodes" / "web" / "docs").glob("*.md")
    own = {page.stem: page.read_text("utf-8").splitlines()[0].lstrip("# ") for page in pages}
    return {**STOCK, **own}


class Node:
    """A node of a workflow, and where it is drawn."""

    def __init__(
        self, node: Mapping[str, Any], used: set[int], titles: Mapping[str, str], shown: set[str]
    ) -> None:
        self.id, self.place = node["id"], node["pos"]
        self.title = node.get("title") or titles.get(node["type"], node["type"])
        self.fill = node.get("bgcolor", BODY)
        ends = [socket for socket in node["inputs"] if socket["link"] in used]
        self.inputs = [(socket["link"], socket["name"], socket["type"]) for socket in ends]
        self.outputs = [
            (socket["links"], socket["name"], socket["type"])
            for socket in node["outputs"]
            if used & set(socket["links"] or ())
        ]
        widgets = [socket["name"] for socket in node["inputs"] if "widget" in socket]
        linked = {name for _, name, _ in self.inputs}
        # After a seed the browser saves one more value (what happens to it after a run), so names
        # and values do not match from there on. No widget that is drawn comes after a seed.
        values = dict(zip(widgets, node.get("widgets_values", ())))
        self.widgets = {
            name: str(value).splitlines()[:LINES] or [""]
            for name, value in values.items()
            if name in shown and name not in linked
        }
        self.left = self.top = 0

    @property
    def height(self) -> int:
        sockets = max(len(self.inputs), len(self.outputs))
        return HEAD + ROW * (sockets + sum(map(len, self.widgets.values()))) + 12

    def socket(self, link: int, is_output: bool) -> tuple[int, int]:
        """Where a link begins or ends."""
        if is_output:
            row = next(i for i, (links, _, _) in enumerate(self.outputs) if link in links)
            return self.left + WIDTH, self.top + HEAD + ROW * row + ROW // 2
        row = next(i for i, (one, _, _) in enumerate(self.inputs) if one == link)
        return self.left, self.top + HEAD + ROW * row + ROW // 2


def picture(workflow: Mapping[str, Any], titles: Mapping[str, str], shown: set[str]) -> Image.Image:
    """The graph with the columns of the workflow, drawn closer together."""
    drawn = [node for node in workflow["nodes"] if node["type"] not in NOTES]
    ids = {node["id"] for node in drawn}
    links = [link for link in workflow["links"] if {link[1], link[3]} <= ids]
    nodes = [Node(node, {link[0] for link in links}, titles, shown) for node in drawn]
    columns = sorted({node.place[0] for node in nodes})
    column_of = {node.id: columns.index(node.place[0]) for node in nodes}
    bottom = 0
    for i, column in enumerate(columns):
        # Links from the uppermost nodes to later columns get room above this column. Otherwise they
        # would look as if they ended here.
        firsts = {min((n.place[1], n.id) for n in nodes if n.place[0] == c)[1] for c in columns}
        passing = [link for link in links if column_of[link[1]] < i < column_of[link[3]]]
        rows = sum(link[1] in firsts for link in passing)
        top = MARGIN + (HEAD + ROW * rows if rows else 0)
        for node in sorted((n for n in nodes if n.place[0] == column), key=lambda n: n.place[1]):
            node.left, node.top = MARGIN + i * (WIDTH + GAP), top
            top += node.height + MARGIN
        bottom = max(bottom, top)
    width = 2 * MARGIN + len(columns) * WIDTH + (len(columns) - 1) * GAP
    page = Image.new("RGB", (width * SCALE, bottom * SCALE), PAGE)
    pen = ImageDraw.Draw(page)
    by_id = {node.id: node for node in nodes}
    for link, origin, _, target, _, kind in links:
        curve(pen, by_id[origin].socket(link, True), by_id[target].socket(link, False), kind)
    for node in nodes:
        draw_node(pen, node)
    return page.resize((width, bottom), Image.Resampling.LANCZOS)


def curve(pen: ImageDraw.ImageDraw, start: Sequence[int], end: Sequence[int], kind: str) -> None:
    """Draw a link as the browser does: a cubic curve that leaves and arrives horizontally."""
    reach = max(40, (end[0] - start[0]) // 2)
    xs = (start[0], start[0] + reach, end[0] - reach, end[0])
    ys = (start[1], start[1], end[1], end[1])

    def at(t: float, c: Sequence[int]) -> float:
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
        return SCALE * sum(weight * value for weight, value in zip(weights, c))

    points = [(at(i / 60, xs), at(i / 60, ys)) for i in range(61)]
    pen.line(points, fill=COLOURS.get(kind, OTHER), width=3 * SCALE)


def draw_node(pen: ImageDraw.ImageDraw, node: Node) -> None:
    font, bold = (ImageFont.load_default(size * SCALE) for size in (13, 15))

    def box(left: float, top: float, right: float, bottom: float, fill: str, round_: int) -> None:
        sides = [SCALE * side for side in (left, top, right, bottom)]
        pen.rounded_rectangle(sides, radius=round_ * SCALE, fill=fill)

    def text(left: float, top: float, said: str, fill: str, of=font, anchor: str = "lm") -> None:
        pen.text((SCALE * left, SCALE * top), said, fill=fill, font=of, anchor=anchor)

    def dot(x: float, y: float, kind: str) -> None:
        sides = [SCALE * side for side in (x - 5, y - 5, x + 5, y + 5)]
        pen.ellipse(sides, fill=COLOURS.get(kind, OTHER))

    left, top, right = node.left, node.top, node.left + WIDTH
    box(left, top, right, top + node.height, node.fill, 8)
    box(left, top, right, top + HEAD - 2, TITLE, 8)
    text(left + 12, top + HEAD / 2, node.title, TEXT, bold)
    for i, (_, name, kind) in enumerate(node.inputs):
        y = top + HEAD + ROW * i + ROW / 2
        dot(left, y, kind)
        text(left + 12, y, name, TEXT)
    for i, (_, name, kind) in enumerate(node.outputs):
        y = top + HEAD + ROW * i + ROW / 2
        dot(right, y, kind)
        text(right - 12, y, name, TEXT, anchor="rm")
    y = top + HEAD + ROW * max(len(node.inputs), len(node.outputs))
    for name, lines in node.widgets.items():
        box(left + 8, y + 2, right - 8, y + ROW * len(lines) - 2, FIELD, 6)
        room = SCALE * (WIDTH - 32)
        for i, line in enumerate(lines):
            y += ROW
            if i or len(lines) > 1:
                text(left + 16, y - ROW / 2, shortened(line, font, room), TEXT)
            else:
                text(left + 16, y - ROW / 2, name, DIM)
                left_over = room - font.getlength(name + "   ")
                said = shortened(line, font, left_over)
                text(right - 16, y - ROW / 2, said, TEXT, anchor="rm")


def shortened(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """The text, cut to this number of pixels if it is longer."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "...") > room:
        text = text[:-1]
    return text + "..."


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m testbed.showcase.graph_picture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workflow", type=Path)
    parser.add_argument("png", type=Path)
    parser.add_argument("--widgets", nargs="*", default=WIDGETS, help="which widgets are drawn")
    options = parser.parse_args()
    workflow = json.loads(options.workflow.read_text("utf-8"))
    titles = names(options.workflow.resolve().parent.parent)
    picture(workflow, titles, set(options.widgets)).save(options.png, optimize=True)


if __name__ == "__main__":
    main()
