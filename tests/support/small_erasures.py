"""Erasures of a single weight, and a way to call nodes as the host does, without a queue."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import torch

ENCODER = "clip_l.transformer.text_model.encoder.layers.{}.mlp.fc1.weight"
NETWORK = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"


def run(node: Any, *args: Any, **inputs: Any) -> tuple:
    """The outputs of a node."""
    return node.PREPARE_CLASS_CLONE(None).execute(*args, **inputs).result


def of_the_encoder(
    pack: ModuleType, clip: Any, concept: str = "fox", layer: int = 0, **record: Any
) -> Any:
    return _erasure(pack, clip.patcher, ENCODER.format(layer), concept, record)


def of_the_network(pack: ModuleType, model: Any, concept: str = "fox", **record: Any) -> Any:
    return _erasure(pack, model, NETWORK, concept, record)


def few_shot_that(pack: ModuleType, train: Any) -> Any:
    """The method few_shot with another function in place of its training."""
    return replace(pack.unlearn.methods.few_shot.METHOD, train=train)


def _erasure(pack: ModuleType, patcher: Any, key: str, concept: str, record: dict) -> Any:
    """An erasure with a random change, as large as the weight itself."""
    weight = patcher.model.state_dict()[key].float()
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(concept)))
    deltas = {key: {"diff": weight.std() * noise}}
    base = pack.nodes.backend.identity.fingerprints(patcher, [key])
    own = {"concepts": [concept], "kind": "object", "base": base}
    return pack.unlearn.core.erasure.Erasure(deltas, {**own, **record})
