"""CONTRIBUTING.md's recipes on the real host: the example method has a node that works."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import recipes
from small_erasures import run

pytestmark = pytest.mark.usefixtures("node_body")


@pytest.fixture(scope="module")
def extended(host: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """A copy of the pack with the recipes' two files more, as ComfyUI loads it."""
    folder = tmp_path_factory.mktemp("pack")
    recipes.pack(folder)
    # Its nodes take the place of the pack's own, which other tests queue.
    kept = dict(host.NODE_CLASS_MAPPINGS), dict(host.NODE_DISPLAY_NAME_MAPPINGS)
    assert asyncio.run(host.load_custom_node(str(folder)))
    assert "AnchorPullUnlearn" in host.NODE_CLASS_MAPPINGS
    yield sys.modules[str(folder).replace(".", "_x_")]
    for now, before in zip((host.NODE_CLASS_MAPPINGS, host.NODE_DISPLAY_NAME_MAPPINGS), kept):
        now.clear()
        now.update(before)


def test_the_node_has_the_methods_widgets(extended: ModuleType) -> None:
    (node,) = (n for n in extended.nodes.TRAINING if n.__name__ == "AnchorPullUnlearn")
    info = node.GET_NODE_INFO_V1()
    assert info["display_name"] == "Anchor Pull Unlearn"
    inputs = info["input"]["required"] | info["input"]["optional"]
    assert inputs["steps"][1]["tooltip"] == "How many steps."
    limits = {name: inputs["steps"][1][name] for name in ("default", "min", "max")}
    assert limits == {"default": 40, "min": 1, "max": 1000}
    assert inputs["kind"][1]["options"] == ["object", "style", "character", "action"]
    assert "rate" not in inputs, "a constant has no widget"
    assert info["output"][:2] == ["CLIP", "ERASURE"]


def test_the_node_trains_and_hands_on_an_erasure(
    extended: ModuleType, parts: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    (node,) = (n for n in extended.nodes.TRAINING if n.__name__ == "AnchorPullUnlearn")
    values = {"concept": "fox", "anchor": "dog", "steps": 3, "size": 64, "verdict": False}
    clip, erasure, curve, losses, summary = run(node, *parts[:2], **values)
    assert erasure.record["method"] == "anchor_pull"
    assert erasure.record["settings"]["steps"] == len(losses["loss"]) == 3
    assert curve.shape[-1] == 3
    assert summary.startswith("The text encoder was changed for: fox (object).")
    own, now = (c.encode_from_tokens(c.tokenize("a photo of a fox")) for c in (parts[1], clip))
    assert (own - now).abs().max() > 0
    (file,) = tmp_path.rglob("*.safetensors")
    assert file.name == "fox.anchor_pull.safetensors"
    *_, again = run(node, *parts[:2], **values)
    assert again.startswith("Trained before with these inputs; read from the file.")
