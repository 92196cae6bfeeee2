"""The subgraph blueprint that the pack ships: python -m testbed.showcase.blueprint

ComfyUI offers it among its nodes, as Erase a concept. It erases and compares, and shows the
concept, its kind and the anchor.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import testbed
from dev import HOST_VERSION

from ..host.server import Server
from .canvas import IDS, Canvas
from .templates import text

NAME = "Erase a concept"
FILE = testbed.ROOT / "subgraphs" / f"{NAME}.json"
ABOUT = (
    "Takes a concept out of the text encoder in seconds, and draws before and after. Use the CLIP "
    "in place of the checkpoint's."
)
WORDS = ["erase", "forget", "remove", "remove concept", "delete object", "censor", "unlearn"]
FACE = ("concept", "kind", "anchor")
ENTRANCE, EXIT = -10, -20
"""The browser's numbers of what a subgraph's inputs and outputs hang on."""
SLOT, TOP = 20, -60
"""Pixels: the height of a socket there, and where both begin."""


def blueprint(info: Mapping[str, Any]) -> dict[str, Any]:
    """As the browser publishes one: a single node, and what is in it."""
    canvas = Canvas(NAME, info, HOST_VERSION)
    erase = canvas.node("ClosedFormEncoderUnlearn", (0, 0), (400, 460))
    seen = canvas.node("CompareErasure", (480, 0), (440, 820), erased_clip=(erase, 0))
    both = [erase, seen]
    ends = dict.fromkeys(("model", "clip", "vae", "concept", "kind"), both) | {"anchor": [erase]}
    given = {"CLIP": (erase, 0), "ERASURE": (erase, 1), "summary": (erase, 4), "picture": (seen, 0)}
    links = [
        dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link))
        for link in canvas.links
    ]

    def link(**more: Any) -> int:
        links.append({"id": len(links) + 1, **more})
        return len(links)

    inputs, outputs = [], []
    for slot, (name, targets) in enumerate(ends.items()):
        numbers = []
        for target in targets:
            sockets = canvas.nodes[target - 1]["inputs"]
            place = [one["name"] for one in sockets].index(name)
            kind = sockets[place]["type"]
            origin = {"origin_id": ENTRANCE, "origin_slot": slot}
            numbers.append(link(**origin, target_id=target, target_slot=place, type=kind))
            sockets[place]["link"] = numbers[-1]
        inputs.append({**_socket(name, kind), "linkIds": numbers, "pos": [-180, TOP + SLOT * slot]})
    for slot, (name, (origin, place)) in enumerate(given.items()):
        socket = canvas.nodes[origin - 1]["outputs"][place]
        ends_at = {"target_id": EXIT, "target_slot": slot, "type": socket["type"]}
        number = link(origin_id=origin, origin_slot=place, **ends_at)
        socket["links"].append(number)
        at = {"linkIds": [number], "pos": [1020, TOP + SLOT * slot]}
        outputs.append({**_socket(name, socket["type"]), **at})
    own = str(uuid.uuid5(IDS, NAME))
    subgraph = {
        "id": own,
        "version": 1,
        "state": {
            "lastGroupId": 0,
            "lastNodeId": len(canvas.nodes),
            "lastLinkId": len(links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": NAME,
        "inputNode": {
            "id": ENTRANCE,
            "bounding": [-300, TOP - SLOT, 140, SLOT * (len(inputs) + 2)],
        },
        "outputNode": {"id": EXIT, "bounding": [1000, TOP - SLOT, 140, SLOT * (len(outputs) + 2)]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": canvas.nodes,
        "groups": [],
        "links": links,
        "extra": {},
        "category": "unlearn",
        "description": ABOUT,
    }
    sockets = [
        {"name": one["name"], "type": one["type"], "link": None}
        | ({"widget": {"name": one["name"]}} if one["name"] in FACE else {})
        for one in inputs
    ]
    node = {
        "id": len(canvas.nodes) + 1,
        "type": own,
        "pos": [0, 0],
        "size": [320, 220],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": sockets,
        "outputs": [{"name": o["name"], "type": o["type"], "links": []} for o in outputs],
        "title": NAME,
        "properties": {"proxyWidgets": [[str(erase), name] for name in FACE]},
        "widgets_values": [],
    }
    return {
        "id": str(uuid.uuid5(IDS, f"{NAME}, the blueprint")),
        "revision": 0,
        "last_node_id": node["id"],
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {"BlueprintDescription": ABOUT, "BlueprintSearchAliases": WORDS},
    }


def _socket(name: str, kind: str) -> dict[str, Any]:
    return {"id": str(uuid.uuid5(IDS, f"{NAME}, {name}")), "name": name, "type": kind}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary, Server(Path(temporary)) as server:
        found = server.object_info()
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text(blueprint(found)), encoding="utf-8", newline="\n")
    print(FILE.relative_to(testbed.ROOT))
