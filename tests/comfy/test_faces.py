"""How the nodes look: what is on their faces, in which menu they lie, which words find them."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import before_registry
import pytest

FACES = {
    "FewShotEncoderUnlearn": ["concept", "kind", "protect", "anchor"],
    "KeyStepUNetUnlearn": ["concept", "task", "anchor", "protect"],
    "DomainCorrectionUNetUnlearn": ["concept", "kind", "anchor", "protect"],
    "ClosedFormEncoderUnlearn": ["concept", "kind", "anchor", "protect"],
    "CompareErasure": ["concept", "kind", "prompts", "neighbours", "width", "height"],
    "ProbeErasure": ["concept", "kind", "level", "width", "height"],
    "IdentifyConcept": ["candidates", "kind"],
}
TRAINING = list(FACES)[:4]
SOCKETS = {"MODEL", "CLIP", "VAE", "IMAGE", "ERASURE", "CLIP_VISION"}
MENUS = {
    "unlearn/train": {*TRAINING},
    "unlearn/load": {"LoadErasedCLIP", "LoadErasedModel", "LoadErased", "CombineErasedCLIP"},
    "unlearn/save": {"SaveErasedCLIP", "SaveErasedModel"},
    "unlearn/check": {
        "CompareErasure",
        "ProbeErasure",
        "IdentifyConcept",
        "ShowErasure",
        "CopyrightMetric",
    },
}
WORDS = {
    "forget": TRAINING,
    # The browser puts short names first: a Load node is seen where a training node is not.
    "remove": [*TRAINING, "LoadErased", "LoadErasedCLIP", "LoadErasedModel"],
    "remove concept": TRAINING,
    "erase": TRAINING,
    "censor": TRAINING,
    "delete object": TRAINING,
    "sanitise": TRAINING,
    "sanitize": TRAINING,
    "safety": [*TRAINING, "ProbeErasure"],
    "nsfw": ["KeyStepUNetUnlearn"],
    "before after": ["CompareErasure", "ShowErasure"],
    "LoRA": [
        "LoadErasedCLIP",
        "LoadErasedModel",
        "LoadErased",
        "SaveErasedCLIP",
        "SaveErasedModel",
    ],
}


@pytest.fixture(scope="module")
def schemas(pack: ModuleType) -> dict[str, Any]:
    """As the browser gets them."""
    return json.loads(json.dumps(before_registry.schemas(pack.nodes)))


def inputs(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}


def shown(schema: dict[str, Any]) -> dict[str, str]:
    """From the name that a user sees to the input's own."""
    return {spec[1].get("display_name", name): name for name, spec in inputs(schema).items()}


@pytest.mark.parametrize("name", FACES)
def test_few_widgets_are_on_the_face(schemas: dict[str, Any], name: str) -> None:
    widgets = {k: v for k, v in inputs(schemas[name]).items() if v[0] not in SOCKETS}
    face = [one for one, spec in widgets.items() if not spec[1].get("advanced")]
    assert sorted(face) == sorted(FACES[name])


def test_a_socket_is_never_among_the_advanced(schemas: dict[str, Any]) -> None:
    """Browsers hide widgets alone."""
    for schema in schemas.values():
        for spec in inputs(schema).values():
            assert not (spec[0] in SOCKETS and spec[1].get("advanced"))


def test_each_node_lies_where_one_would_look(schemas: dict[str, Any]) -> None:
    for menu, names in MENUS.items():
        for name in names:
            assert schemas[name]["category"] == menu, name
    assert all(schema["category"] in MENUS for schema in schemas.values())


@pytest.mark.parametrize("word", WORDS)
def test_a_word_finds_its_nodes(schemas: dict[str, Any], word: str) -> None:
    for name in WORDS[word]:
        assert word in schemas[name]["search_aliases"], name


def test_every_node_is_found_by_unlearn(schemas: dict[str, Any]) -> None:
    for name, schema in schemas.items():
        assert "unlearn" in schema["search_aliases"] or "Unlearn" in schema["display_name"], name


def test_siblings_call_the_same_thing_by_one_name(schemas: dict[str, Any]) -> None:
    """An input keeps its own name, by which saved prompts of the API know it."""
    few, key, domain, closed = (shown(schemas[name]) for name in TRAINING)
    assert [names["kind"] for names in (few, key, domain, closed)] == [
        "kind",
        "task",
        "kind",
        "kind",
    ]
    assert few["max_steps"] == "max_steps"
    assert key["max_steps"] == domain["max_steps"] == "iterations"
    assert few["shots"] == "shots"
    assert domain["shots"] == "pictures"
    for name in TRAINING:
        assert "vae" in schemas[name]["input"]["optional"], name
