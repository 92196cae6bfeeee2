"""Which token of a prompt with the anchor stands for which of the same prompt with the concept."""

from __future__ import annotations

import torch


def counterparts(named: torch.Tensor, neutral: torch.Tensor) -> torch.Tensor | None:
    """Of each token of `named` the number of its counterpart in `neutral`. None: its own number.

    named, neutral: (tokens, width), the vectors of two prompts' tokens, which differ in a name. The
    tokens before the name belong together, those behind it counted from the end, and the names'
    own in their order, the last one repeated where one has fewer. Where both are padded to one
    length, each position has its own: encoders that pad count positions, so words stand apart.
    """
    if len(named) == len(neutral):
        return None
    both = min(len(named), len(neutral))
    before = _equal_rows(named[:both], neutral[:both])
    # One token at least is the name's.
    room = max(0, both - before - 1)
    behind = _equal_rows(named[len(named) - room :].flip(0), neutral[len(neutral) - room :].flip(0))
    found = torch.arange(len(named))
    last = max(0, len(neutral) - behind - 1)
    found[before : len(named) - behind].clamp_(max=last)
    found[len(named) - behind :] += len(neutral) - len(named)
    return found


def _equal_rows(one: torch.Tensor, other: torch.Tensor) -> int:
    """How many rows at the start of both are equal."""
    apart = (one - other).abs().amax(1) > 1e-5 * one.abs().amax(1).clamp(min=1e-6)
    return int((apart.cumsum(0) == 0).sum())
