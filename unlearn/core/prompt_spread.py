"""How far prompts lie apart in a text encoder: the measure of what a change of one means."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .conditioning import Conditioning
from .model import DiffusionModel


@torch.no_grad()
def prompt_spread(model: DiffusionModel, prompts: Sequence[str]) -> float:
    """The mean distance of prompts from the empty one; of an encoder that does not pad, from one
    another.

    There the empty prompt has hardly a token, and the first one, where an encoder reads from left
    to right, is the same whatever follows.
    """
    several, empty = model.encode(prompts), model.encode([""])
    if is_padded(several, empty):
        return several.distance(empty).mean().item()
    others = several[torch.arange(len(several)).roll(1)]
    return several.distance(others).mean().item()


def is_padded(one: Conditioning, other: Conditioning) -> bool:
    """Whether all of their prompts have the same number of tokens."""
    return (
        one.tokens is None and other.tokens is None and one.cross.shape[1] == other.cross.shape[1]
    )
