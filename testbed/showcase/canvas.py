"""Builds a workflow as the browser saves it (version 0.4), from the host's own node schemas."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..host.workflow import widget_names

PACK = "concept-unlearn"
NOTE = {"color": "#432", "bgcolor": "#653"}
MAIN = {"color": "#322", "bgcolor": "#533"}
"""The colours of notes, and of the node that a workflow is about."""
MARGIN, TITLES = 20, 84
"""Pixels of a group around its nodes, and above them for the titles."""
IDS = uuid.UUID("6f0b6c0e-3b56-5d0e-9d6a-0f0f6a5b7c11")


@dataclass
class Canvas:
    name: str
    """The workflow's file, without its ending. Its id follows from it."""
    info: Mapping[str, Any]
    """What the host tells of each node: /object_info."""
    version: str
    """Of ComfyUI, for its own nodes."""
    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)

    def note(self, text: str, at: Sequence[int], size: Sequence[int]) -> None:
        more = {"title": "Read me first", "properties": {}, "widgets_values": [text], **NOTE}
        self._add("MarkdownNote", at, size, [], [], more)

    def node(
        self,
        kind: str,
        at: Sequence[int],
        size: Sequence[int],
        /,
        title: str = "",
        models: Sequence[Mapping[str, str]] = (),
        main: bool = False,
        **values: Any,
    ) -> int:
        """A node and its number.

        values: of widgets by name, the others have their defaults; or (node, output) to link, with
        the output's place or name. main: whether the workflow is about this node.
        """
        schema = self.info[kind]["input"]
        links = {name: value for name, value in values.items() if isinstance(value, tuple)}
        # Beside a link the browser keeps what it feeds, for when it is cut.
        held = {k: v for k, v in values.items() if k not in links}
        for name, (origin, _) in links.items():
            if fed := self.nodes[origin - 1]["widgets_values"]:
                held[name] = fed[0]
        saved = [_saved(schema, name, held) for name in widget_names(schema)]
        if unknown := values.keys() - {name for group in schema.values() for name in group}:
            raise ValueError(f"{kind} has no {', '.join(unknown)}.")
        inputs = []
        for group in ("required", "optional"):
            for name, spec in schema.get(group, {}).items():
                one: dict[str, Any] = {"name": name, "type": _type(spec), "link": None}
                if name in widget_names(schema):
                    one["widget"] = {"name": name}
                elif group == "optional":
                    one["shape"] = 7
                inputs.append(one)
        outputs = [
            {"name": name, "type": type_, "links": []}
            for name, type_ in zip(self.info[kind]["output_name"], self.info[kind]["output"])
        ]
        own = self.info[kind]["python_module"].startswith("custom_nodes.")
        properties: dict[str, Any] = {
            "Node name for S&R": kind,
            "cnr_id": PACK if own else "comfy-core",
        }
        if not own:
            properties["ver"] = self.version
        if models:
            properties["models"] = [dict(one) for one in models]
        more = {"title": title} if title else {}
        more |= {"properties": properties, "widgets_values": saved, **(MAIN if main else {})}
        number = self._add(kind, at, size, inputs, outputs, more)
        for one in inputs:
            if one["name"] in links:
                self._link(*links[one["name"]], number, one["name"])
        return number

    def group(self, title: str, colour: str, *numbers: int) -> None:
        """A frame around these nodes."""
        held = [node for node in self.nodes if node["id"] in numbers]
        left, top = (min(node["pos"][i] for node in held) for i in (0, 1))
        right, bottom = (max(n["pos"][i] + n["size"][i] for n in held) for i in (0, 1))
        sides = [left - MARGIN, top - TITLES, right - left + 2 * MARGIN, bottom - top + TITLES]
        sides[3] += MARGIN
        self.groups.append(
            {
                "id": len(self.groups) + 1,
                "title": title,
                "bounding": sides,
                "color": colour,
                "font_size": 24,
                "flags": {},
            }
        )

    def workflow(self) -> dict[str, Any]:
        return {
            "id": str(uuid.uuid5(IDS, self.name)),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {"ds": {"scale": 0.6, "offset": [80, 160]}},
            "version": 0.4,
        }

    def _add(self, kind: str, at, size, inputs: list, outputs: list, more: dict) -> int:
        place = {"pos": [*at], "size": [*size], "flags": {}, "order": len(self.nodes), "mode": 0}
        number = len(self.nodes) + 1
        sockets = {"inputs": inputs, "outputs": outputs}
        self.nodes.append({"id": number, "type": kind, **place, **sockets, **more})
        return number

    def _link(self, origin: int, output: int | str, target: int, name: str) -> None:
        sockets, places = self.nodes[origin - 1]["outputs"], self.nodes[target - 1]["inputs"]
        names = [one["name"] for one in sockets]
        slot = names.index(output) if isinstance(output, str) else output
        place = [one["name"] for one in places].index(name)
        number = len(self.links) + 1
        self.links.append([number, origin, slot, target, place, sockets[slot]["type"]])
        sockets[slot]["links"].append(number)
        places[place]["link"] = number


def _type(spec: Sequence[Any]) -> str:
    return "COMBO" if isinstance(spec[0], list) else spec[0]


def _saved(schema: Mapping[str, Any], name: str, values: Mapping[str, Any]) -> Any:
    """What the browser saves for a widget. name: "" for one that only the browser has."""
    if not name:  # what happens to a number after a run, or the button that uploads a picture
        return "image" if "image" in values else "fixed"
    if name in values:
        return values[name]
    spec = {**schema.get("required", {}), **schema.get("optional", {})}[name]
    options = spec[1] if len(spec) > 1 else {}
    offered = spec[0] if isinstance(spec[0], list) else options.get("options", [""])
    return options["default"] if "default" in options else offered[0]
