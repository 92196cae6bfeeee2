"""How far apart prompts lie in a text encoder: the unit in which a change is measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .conditioning import Conditioning
from .model import DiffusionModel


@torch.no_grad()
def prompt_spread(model: DiffusionModel, prompts: Sequence[str]) -> float:
    """The mean distance of prompts from the empty prompt.

    Where an encoder does not pad, it is the mean distance from one another. There the empty prompt
    has hardly a token, and a causal encoder gives the first token the same vector in every prompt.
    """
    encoded, empty = model.encode(prompts), model.encode([""])
    if is_padded(encoded, empty):
        return encoded.distance(empty).mean().item()
    others = encoded[torch.arange(len(encoded)).roll(1)]
    return encoded.distance(others).mean().item()


def is_padded(one: Conditioning, other: Conditioning) -> bool:
    """Whether all prompts of both have the same number of tokens, as from a padding encoder."""
    return (
        one.tokens is None and other.tokens is None and one.cross.shape[1] == other.cross.shape[1]
    )
