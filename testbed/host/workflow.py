"""Turns a workflow, as the browser saves it, into a prompt for the server's queue."""

from __future__ import annotations

from typing import Any

# The numbers of a node's "mode" in a saved workflow.
MUTED = 2
BYPASSED = 4

NOT_EXECUTED = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
# The last is a choice whose options may have settings of their own. The saved workflows choose
# options without any.
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "COMFY_DYNAMICCOMBO_V3"}
UPLOADS = ("image_upload", "animated_image_upload", "video_upload")


def api_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """The API prompt for a workflow in the browser's format (version 0.4).

    It does what the browser does: muted nodes are left out, bypassed nodes and reroutes are
    replaced by what feeds them, and a primitive gives its value. Raises ValueError if the host does
    not know a node (a subgraph, for example), or if a node has fewer saved values than widgets.
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
            source = _source(socket_, links, nodes)
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
    """The values of a saved node by name. The file has them as a list, in the order of the widgets.

    Values after the last widget belong to widgets that the browser adds for display. Optional
    widgets at the end may lack a value: the file may be older than the widget.
    """
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return dict(values)
    names = widget_names(info["input"])
    needed = widget_names({"required": info["input"].get("required", {})})
    if len(values) < len([name for name in needed if name]):
        raise ValueError(
            f"Node {node['id']} ({node['type']}) has {len(values)} saved values for the widgets "
            f"{', '.join(name or '(browser only)' for name in names)}."
        )
    return {name: value for name, value in zip(names, values, strict=False) if name}


def widget_names(schema: dict[str, Any]) -> list[str]:
    """The names of a node's widgets in saved order; "" for a widget that only the browser has."""
    names = []
    for group in ("required", "optional"):
        uploads = False
        for name, spec in schema.get(group, {}).items():
            kind, options = spec[0], spec[1] if len(spec) > 1 else {}
            is_widget = isinstance(kind, list) or kind in WIDGET_TYPES or "widgetType" in options
            if options.get("forceInput") or not is_widget:
                continue
            names.append(name)
            # The browser adds this widget to a seed unless the schema explicitly says no.
            is_seed = kind == "INT" and name in ("seed", "noise_seed")
            if options.get("control_after_generate", is_seed):
                names.append("")
            uploads = uploads or any(options.get(upload) for upload in UPLOADS)
        if uploads:
            names.append("")
    return names


def _source(socket_: dict[str, Any], links: dict[int, list], nodes: dict[int, dict]) -> Any:
    """What feeds an input: [node id, output], the value of a primitive, or None for nothing."""
    while socket_ is not None and socket_.get("link") is not None:
        _, origin, slot = links[socket_["link"]][:3]
        node = nodes[origin]
        if node["type"] == "PrimitiveNode":
            return node["widgets_values"][0]
        if node["type"] == "Reroute":
            socket_ = {**node["inputs"][0], "type": socket_["type"]}
        elif node.get("mode", 0) == BYPASSED:
            socket_ = _bypass(node, slot, socket_["type"])
        elif node.get("mode", 0) == MUTED:
            return None
        else:
            return [str(origin), slot]
    return None


def _bypass(node: dict[str, Any], slot: int, wanted: str) -> dict[str, Any] | None:
    """The input that a bypassed node passes on, as the browser chooses it.

    wanted: the type of what is fed. If that takes anything, it is the input at the output's place,
    or the first; otherwise the one at the place if it has the type, or the first that has.
    """
    inputs = node.get("inputs", [])
    if wanted in ("*", ""):
        return (inputs[slot : slot + 1] + inputs[:1] or [None])[0]
    kind = node["outputs"][slot]["type"]
    own = [one for one in inputs[slot : slot + 1] if one["type"] in (kind, "*")]
    same = [one for one in inputs if one["type"] == wanted]
    return (own + same or [None])[0]
