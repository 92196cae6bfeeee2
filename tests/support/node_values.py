"""Widget values of the training nodes for small runs of a step or two."""

from __future__ import annotations

import torch

PICTURES = torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(0))
FEW_SHOT = {
    "concept": "fox",
    "kind": "object",
    "images": PICTURES[:1],
    "shots": 1,
    "size": 64,
    "mode": "balanced",
    "trainable": "mlp-final-attn",
    "rank": 0,
    "max_steps": 1,
    "epochs": 1,
    "seed": 0,
}
KEY_STEP = {
    "concept": "fox",
    "task": "object",
    "size": 64,
    "mode": "paper",
    "steps": 10,
    "key_steps": "by task",
    "start": 7,
    "iterations": 1,
    "trainable": "cross-attention-kv",
    "rank": 2,
    "seed": 0,
}
DOMAIN_CORRECTION = {
    "concept": "fox",
    "kind": "object",
    "pictures": 1,
    "size": 64,
    "mode": "paper",
    "iterations": 1,
    "rank": 0,
    "seed": 0,
}
