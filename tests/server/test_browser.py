"""What the pack brings for the browser beside nodes: scripts, and a subgraph blueprint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from testbed.host.server import Server
from testbed.host.workflow import api_prompt
from testbed.showcase import blueprint
from testbed.showcase.templates import text

WEB = Path(__file__).resolve().parents[2] / "nodes" / "web"


@pytest.fixture
def shipped() -> dict[str, Any]:
    return json.loads(blueprint.FILE.read_text("utf-8"))


def test_the_host_hands_out_the_scripts(server: Server) -> None:
    """A host lists all scripts, and the browser imports each by the listed address."""
    listed = json.loads(server.get("/extensions"))
    for script in ("socket_colour.js", "template_order.js"):
        (address,) = [one for one in listed if one.endswith(f"/{script}")]
        assert server.get(address) == (WEB / script).read_bytes()


def test_the_host_lists_the_blueprint(server: Server, shipped: dict[str, Any]) -> None:
    listed = json.loads(server.get("/global_subgraphs"))
    (key,) = [key for key, one in listed.items() if one["name"] == blueprint.NAME]
    assert listed[key]["source"] == "custom_node"
    assert json.loads(json.loads(server.get(f"/global_subgraphs/{key}"))["data"]) == shipped


def test_the_blueprint_is_what_the_command_makes(server: Server) -> None:
    made = text(blueprint.blueprint(server.object_info()))
    assert blueprint.FILE.read_text("utf-8") == made


def test_its_face_is_concept_kind_and_anchor(shipped: dict[str, Any]) -> None:
    (node,) = shipped["nodes"]
    (inside,) = shipped["definitions"]["subgraphs"]
    assert node["type"] == inside["id"]
    face = [socket["name"] for socket in node["inputs"] if "widget" in socket]
    assert face == ["concept", "kind", "anchor"]
    assert [name for _, name in node["properties"]["proxyWidgets"]] == face
    sockets = [socket["name"] for socket in node["inputs"] if "widget" not in socket]
    assert sockets == ["model", "clip", "vae"]
    for link in inside["links"]:
        if link["origin_id"] == blueprint.ENTRANCE:
            assert link["id"] in inside["inputs"][link["origin_slot"]]["linkIds"]
        if link["target_id"] == blueprint.EXIT:
            assert link["id"] in inside["outputs"][link["target_slot"]]["linkIds"]


def test_the_host_accepts_what_is_in_it(
    server: Server, shipped: dict[str, Any], checkpoint: Path
) -> None:
    """On the host: a checkpoint in place of its sockets, values in place of its widgets."""
    (inside,) = shipped["definitions"]["subgraphs"]
    named = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    own = [[link[name] for name in named] for link in inside["links"] if link["target_id"] > 0]
    kept = [link for link in own if link[1] > 0]
    numbers = {link[0] for link in kept}
    for node in inside["nodes"]:
        for socket in node["inputs"]:
            socket["link"] = socket["link"] if socket["link"] in numbers else None
    workflow = {"nodes": inside["nodes"], "links": kept}
    prompt = api_prompt(workflow, server.object_info())
    prompt["base"] = {
        "class_type": "CheckpointLoaderSimple",
        "inputs": {"ckpt_name": checkpoint.name},
    }
    values = {"concept": "mushroom", "kind": "object", "anchor": "pineapple"}
    given = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], **values}
    for _, origin, slot, target, place, _ in own:
        if origin == blueprint.ENTRANCE:
            name = inside["nodes"][target - 1]["inputs"][place]["name"]
            assert name == inside["inputs"][slot]["name"]
            prompt[str(target)]["inputs"][name] = given[name]
    server.queue(prompt)  # raises where the host refuses it
    server.forget_queue()
