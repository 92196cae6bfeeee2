"""The shipped workflows, as tests take them apart."""

from __future__ import annotations

from typing import Any


def native(workflow: dict[str, Any]) -> dict[str, Any]:
    """Without the nodes of AnimateDiff-Evolved, which tests/server/test_evolved.py looks at."""
    kept = [node for node in workflow["nodes"] if not node["type"].startswith("ADE_")]
    ids = {node["id"] for node in kept}
    cut = {link[0] for link in workflow["links"] if not {link[1], link[3]} <= ids}
    nodes = [
        {
            **node,
            "inputs": [
                {**socket, "link": None if socket["link"] in cut else socket["link"]}
                for socket in node["inputs"]
            ],
        }
        for node in kept
    ]
    return {**workflow, "nodes": nodes}


def switched(workflow: dict[str, Any], node: int, mode: int) -> dict[str, Any]:
    """With one node muted or bypassed."""
    nodes = [{**one, "mode": mode} if one["id"] == node else one for one in workflow["nodes"]]
    return {**workflow, "nodes": nodes}
