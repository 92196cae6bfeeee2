"""A graph still runs where a node of this pack is bypassed or muted: it draws with the original.

The browser leaves such a node out of the prompt. Of a bypassed node it passes MODEL and CLIP on,
and for another output whatever input has its type or place; of a muted one nothing. Whoever needs
what is missing then gets an error before anything runs. So each prompt that comes from the browser
is put right before the host looks at it: MODEL and CLIP go through, a text says that the node is
off, and what needs any other output of it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from comfy_api.latest import io

MUTED, BYPASSED = 2, 4  # a node's "mode" in the browser's workflow
PASSED = ("MODEL", "CLIP")


def put_right(
    request: dict[str, Any], own: Mapping[str, str], required: Callable[[str], set[str]]
) -> dict[str, Any]:
    """The request to the queue, put right; the very same where none of our nodes is off.

    own: the titles of our nodes by their ids. required: the names of the inputs that a node of the
    host needs. Nodes inside of subgraphs stay as the browser sent them.
    """
    workflow = request.get("extra_data", {}).get("extra_pnginfo", {}).get("workflow")
    if not isinstance(workflow, dict):
        return request  # it does not come from the browser
    graph = Graph(workflow, own)
    if not any(map(graph.is_off, graph.nodes.values())):
        return request
    prompt = {
        key: {**node, "inputs": {**node["inputs"]}} for key, node in request["prompt"].items()
    }
    lacking = set()
    for name, socket, kind, found in graph.behind():
        if name not in prompt:
            continue
        inputs = prompt[name]["inputs"]
        is_linked = isinstance(inputs.get(socket), list)
        if kind in PASSED and is_linked:
            continue  # the browser has passed it on
        if isinstance(found, str) or (found and found[0] in prompt):
            inputs[socket] = found
        elif is_linked or socket not in inputs:  # not the own value of a widget
            inputs.pop(socket, None)
            needs = required(prompt[name]["class_type"])
            if socket in needs and prompt[name]["class_type"] in own:
                inputs[socket] = None  # ours say it themselves
            elif socket in needs:
                lacking.add(name)
    while lacking:
        name = lacking.pop()
        prompt.pop(name, None)
        for other, node in prompt.items():
            cut = [k for k, v in node["inputs"].items() if isinstance(v, list) and v[:1] == [name]]
            for socket in cut:
                del node["inputs"][socket]
            if required(node["class_type"]) & set(cut):
                lacking.add(other)
    return {**request, "prompt": prompt}


@dataclass
class Graph:
    """A workflow as the browser saves it (version 0.4)."""

    workflow: dict[str, Any]
    own: Mapping[str, str]
    nodes: dict[Any, dict] = field(init=False)
    links: dict[int, list] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = {node["id"]: node for node in self.workflow["nodes"]}
        self.links = {link[0]: link for link in self.workflow["links"]}

    def is_off(self, node: dict) -> bool:
        return node["type"] in self.own and node.get("mode") in (MUTED, BYPASSED)

    def behind(self) -> Iterator[tuple[str, str, str, Any]]:
        """(node, input, type, what feeds it) of each input that a node of ours that is off would
        feed with this type.

        What feeds it is [node, output], a text, or None for nothing.
        """
        for node in self.nodes.values():
            for socket in node.get("inputs", []):
                kind, found = self.source(socket.get("link"))
                if kind:
                    yield str(node["id"]), socket["name"], kind, found

    def source(self, link: int | None) -> tuple[str, Any]:
        """(the type of the output of a node of ours that is off on the way, what feeds an input).

        The type is "" where there is no such node.
        """
        off = ""
        while link in self.links:
            _, origin, slot = self.links[link][:3]
            node = self.nodes.get(origin)
            if node is None:
                break
            inputs, kind = node.get("inputs", []), node["outputs"][slot]["type"]
            if self.is_off(node):
                off = kind
                if kind == "STRING":
                    return off, self.told(node)
                if kind not in PASSED:
                    break
                link = passed(inputs, kind)
            elif node["type"] == "Reroute":
                link = inputs[0].get("link")
            elif node.get("mode") == BYPASSED:
                link = passed(inputs[slot : slot + 1] + inputs, kind)
            elif node.get("mode") == MUTED or node["type"] == "PrimitiveNode":
                break
            else:
                return off, [str(origin), slot]
        return off, None

    def told(self, node: dict) -> str:
        """What stands in the place of a text of a node that is off."""
        how = "muted" if node["mode"] == MUTED else "bypassed"
        goes = any(one["type"] in PASSED for one in node["outputs"])
        what = "nothing is erased by it" if goes else "it did nothing"
        return f"{self.own[node['type']]} is {how}, so {what}."


def passed(inputs: list[dict], kind: str) -> int | None:
    """The link of the first input of a type."""
    return next((one.get("link") for one in inputs if one["type"] == kind), None)


def needed_inputs(class_type: str) -> set[str]:
    """The names of the inputs that a node of the host needs; none for a node that it lacks."""
    from nodes import NODE_CLASS_MAPPINGS  # ComfyUI's, which other extensions go on filling

    node = NODE_CLASS_MAPPINGS.get(class_type)
    return set(node.INPUT_TYPES().get("required", ())) if node else set()


def titles(nodes: list[type[io.ComfyNode]]) -> dict[str, str]:
    """The display names of nodes by their ids."""
    schemas = [node.define_schema() for node in nodes]
    return {schema.node_id: schema.display_name or schema.node_id for schema in schemas}
