"""Which token of a prompt with the anchor stands for which of the same prompt with the concept."""

from __future__ import annotations

import torch


def counterparts(named: torch.Tensor, neutral: torch.Tensor) -> torch.Tensor | None:
    """Of each token of `named` the number of its counterpart in `neutral`. None: its own number.

    named, neutral: (tokens, width), the vectors of two prompts' tokens, which differ in a name. The
    tokens before the name belong together, and those behind it, counted from the end. Of the names'
    own, each has the one of its number, and the last one where there are too few; where there are
    too many, the last ones count, which in a language model have read the others. Where both
    prompts are padded to one length, each position has its own; where that is done in front, only
    what comes behind the padding is compared.
    """
    if len(named) == len(neutral):
        padding, its_padding = _padding(named), _padding(neutral)
        if padding == its_padding:
            return None
        words = counterparts(named[padding:], neutral[its_padding:])
        assert words is not None  # they are not equally long
        return torch.cat([torch.arange(padding).clamp(max=its_padding - 1), words + its_padding])
    both = min(len(named), len(neutral))
    before = common_start(named, neutral)
    room = max(0, both - before - 1)  # one token at least is the name's
    behind = common_start(*(x[len(x) - room :].flip(0) for x in (named, neutral)))
    own, its = (len(x) - behind - before for x in (named, neutral))
    names = torch.arange(own).clamp(max=its - 1) + max(0, its - own) + before
    ends = torch.arange(behind) + len(neutral) - behind
    return torch.cat([torch.arange(before), names, ends])


def _padding(rows: torch.Tensor) -> int:
    """How many tokens at the start are the same."""
    return common_start(rows, rows[:1].expand_as(rows))


def common_start(one: torch.Tensor, other: torch.Tensor) -> int:
    """How many tokens at the start of two prompts, (tokens, width) each, are the same."""
    both = min(len(one), len(other))
    one, other = one[:both].float(), other[:both].float()
    apart = (one - other).abs().amax(1) > 1e-5 * one.abs().amax(1).clamp(min=1e-6)
    return int((apart.cumsum(0) == 0).sum())
