"""The nodes' sockets and widgets: what saved workflows and prompts of the API count on."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import before_registry
import pytest

BEFORE = json.loads((Path(__file__).parents[1] / "data" / "node_schemas.json").read_text("utf-8"))
ADDED = {
    "KeyStepUNetUnlearn": ("precision", "recipe"),
    "DomainCorrectionUNetUnlearn": ("as_released",),
    "CompareErasure": ("judge",),
    "ProbeErasure": ("judge",),
}
"""Inputs that a node got since, the last one first."""
TEXTS = ("tooltip", "description", "output_tooltips")
FACES = ("python_module", "category", "search_aliases", "advanced", "display_name")
"""What may become another: the clone's own folder, and how a node looks (see test_faces.py)."""


@pytest.fixture(scope="module")
def schemas(pack: ModuleType) -> dict[str, Any]:
    return json.loads(json.dumps(before_registry.schemas(pack.nodes)))


def without_texts(part: Any) -> Any:
    """Tooltips may become better English; whether there is one is compared. So may a face."""
    if isinstance(part, list):
        return [without_texts(one) for one in part]
    if isinstance(part, dict):
        kept = {k: v for k, v in part.items() if k not in FACES}
        return {k: bool(v) if k in TEXTS else without_texts(v) for k, v in kept.items()}
    return part


def test_there_are_the_same_nodes_in_the_same_order(schemas: dict[str, Any]) -> None:
    assert [name for name in schemas if name in BEFORE] == list(BEFORE)


@pytest.mark.parametrize("name", BEFORE)
def test_a_node_has_the_inputs_that_it_had(schemas: dict[str, Any], name: str) -> None:
    """In their order, since saved workflows hold the values of widgets by position."""
    now, before = without_texts(schemas[name]), without_texts(BEFORE[name])
    if name == "FewShotEncoderUnlearn":  # without pictures it needs no VAE
        for described in (now["input"], now["input_order"]):
            assert "vae" not in described["required"]
        before["input"]["optional"]["vae"] = before["input"]["required"].pop("vae")
        before["input"]["optional"] = {"vae": None, **before["input"]["optional"]}
        before["input_order"]["required"].remove("vae")
        before["input_order"]["optional"].insert(0, "vae")
    if name == "KeyStepUNetUnlearn":  # its task has the names of kinds
        kind = now["input"]["required"]["task"][1]
        assert kind["options"] == ["object", "style", "character", "nudity"]
        kind["options"] = before["input"]["required"]["task"][1]["options"]
    orders = now.pop("input_order"), before.pop("input_order")
    if "prompt" not in before["input"]["hidden"] and now["input"]["hidden"].pop("prompt", None):
        orders[0]["hidden"].remove("prompt")  # the host's own, which no file holds
    for added in ADDED.get(name, ()):
        # Behind all others, so that a saved workflow's values keep their places.
        assert orders[0]["optional"].pop() == added
        assert now["input"]["optional"].pop(added)
    assert orders[0] == orders[1]
    for group, inputs in before["input"].items():
        assert list(now["input"][group]) == list(inputs)
        for one, described in inputs.items():
            if one == "erasure_name":  # the files that there are
                now["input"][group][one][1]["options"] = described[1]["options"]
            if one == "kind":  # has one more than it had
                assert now["input"][group][one][1]["options"].pop() == "action"
            assert now["input"][group][one] == described, one
    assert now == before
