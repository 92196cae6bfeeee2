"""Turns a workflow, as the browser saves it, into a prompt for the server's queue."""

from __future__ import annotations

from typing import Any

# The numbers of a node's "mode" in a saved workflow.
MUTED = 2
BYPASSED = 4

NOT_EXECUTED = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
# The last is a choice with settings of its own; saved workflows choose what has none.
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "COMFY_DYNAMICCOMBO_V3"}
UPLOADS = ("image_upload", "animated_image_upload", "video_upload")


def api_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """The API prompt of a workflow in the browser's format (version 0.4).

    Follows the browser: muted nodes are left out, bypassed ones and reroutes are stepped over, a
    primitive gives its value. ValueError when a node is unknown to the host (also: a subgraph) or
    its saved values are fewer than its widgets.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}
    prompt: dict[str, Any] = {}
    for node in workflow["nodes"]:
        if node["type"] in NOT_EXECUTED or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if node["type"] not in object_info:
            raise ValueError(f"Node {node['id']}: the host has no node {node['type']!r}.")
        inputs = _widget_values(node, object_info[node["type"]])
        for socket_ in node.get("inputs", []):
            source = _source(socket_.get("link"), links, nodes)
            if source is not None:
                inputs[socket_["name"]] = source
        title = node.get("title", object_info[node["type"]]["display_name"])
        prompt[str(node["id"])] = {
            "inputs": inputs,
            "class_type": node["type"],
            "_meta": {"title": title},
        }
    return prompt


def _widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """Name the values of a saved node, which are a bare list in the order of its widgets.

    Values beyond the last widget belong to widgets that the browser adds for display. Optional
    widgets at the end may have none: a file saved before there were any is as good.
    """
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return dict(values)
    names = _widget_names(info["input"])
    needed = _widget_names({"required": info["input"].get("required", {})})
    if len(values) < len([name for name in needed if name]):
        raise ValueError(
            f"Node {node['id']} ({node['type']}) has {len(values)} saved values for the widgets "
            f"{', '.join(name or '(browser only)' for name in names)}."
        )
    return {name: value for name, value in zip(names, values, strict=False) if name}


def _widget_names(schema: dict[str, Any]) -> list[str]:
    """The widgets of a node in saved order; "" where the browser alone has one."""
    names = []
    for group in ("required", "optional"):
        uploads = False
        for name, spec in schema.get(group, {}).items():
            kind, options = spec[0], spec[1] if len(spec) > 1 else {}
            is_widget = isinstance(kind, list) or kind in WIDGET_TYPES or "widgetType" in options
            if options.get("forceInput") or not is_widget:
                continue
            names.append(name)
            # The browser gives a seed this companion unless the schema says no in so many words.
            is_seed = kind == "INT" and name in ("seed", "noise_seed")
            if options.get("control_after_generate", is_seed):
                names.append("")
            uploads = uploads or any(options.get(upload) for upload in UPLOADS)
        if uploads:
            names.append("")
    return names


def _source(link_id: int | None, links: dict[int, list], nodes: dict[int, dict]) -> Any:
    """What feeds an input: [node id, output], a primitive's value, or None for nothing."""
    while link_id is not None:
        _, origin, slot = links[link_id][:3]
        node = nodes[origin]
        if node["type"] == "PrimitiveNode":
            return node["widgets_values"][0]
        if node["type"] == "Reroute":
            link_id = node["inputs"][0].get("link")
        elif node.get("mode", 0) == BYPASSED:
            link_id = _bypass(node, slot)
        elif node.get("mode", 0) == MUTED:
            return None
        else:
            return [str(origin), slot]
    return None


def _bypass(node: dict[str, Any], slot: int) -> int | None:
    """The link that a bypassed node hands on: the input at the output's place, else any alike."""
    kind = node["outputs"][slot]["type"]
    inputs = node.get("inputs", [])
    for socket_ in inputs[slot : slot + 1] + inputs:
        if socket_["type"] == kind:
            return socket_.get("link")
    return None
