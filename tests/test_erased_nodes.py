"""What Load, Save and Combine say of what does not arrive."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

import testbed.pack

CROSS = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="module")
def parts(pack: ModuleType) -> tuple:
    """(MODEL, CLIP, VAE)"""
    return testbed.pack.checkpoint()


@pytest.fixture(autouse=True)
def node_body() -> Iterator[None]:
    with torch.inference_mode():
        yield


def of_the_network(pack: ModuleType, model: Any) -> Any:
    """An erasure of one weight of the image network."""
    weight = model.model.state_dict()[CROSS]
    deltas = {CROSS: {"diff": torch.full_like(weight, 0.01, dtype=torch.float32)}}
    base = pack.nodes.host.fingerprints(model, [CROSS])
    return pack.unlearn.erasure.Erasure(deltas, {"concepts": ["fox"], "base": base})


def run(node: Any, *args: Any, **inputs: Any) -> tuple:
    return node.PREPARE_CLASS_CLONE(None).execute(*args, **inputs).result


@pytest.mark.parametrize("name", ["SaveErasedClip", "SaveErasedModel"])
def test_nothing_to_save_gets_a_sentence(pack: ModuleType, name: str) -> None:
    """Probe Erasure hands on none where none is connected to it."""
    with pytest.raises(ValueError, match="ERASURE that is connected is empty"):
        run(getattr(pack.nodes.erased, name), None, "loras/x", "float16")


def test_combining_says_which_model_is_wanted(pack: ModuleType, parts: tuple) -> None:
    model, clip, _ = parts
    erasure = of_the_network(pack, model)
    node = pack.nodes.erased.CombineErasedClip
    *_, text, drawing = run(node, clip, erasure_1=erasure, erasure_2=erasure)
    assert drawing is None
    assert "connect the original model to model" in text
    *_, text, drawing = run(node, clip, model, erasure_1=erasure, erasure_2=erasure)
    assert "connect" not in text
    (patch,) = drawing.patches.values()
    assert len(patch) >= 1


def test_a_name_that_another_node_hands_on_is_no_reason_to_run_again(pack: ModuleType) -> None:
    """The host asks before it knows the name."""
    for node in (pack.nodes.erased.LoadErasedClip, pack.nodes.erased.LoadErasedModel):
        assert node.fingerprint_inputs(None, strength=1.0) == ""
    assert pack.nodes.cpdm.CopyrightMetric.fingerprint_inputs(None) == ""
