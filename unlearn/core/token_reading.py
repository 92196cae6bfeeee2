"""What a tokenizer makes of words within a prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .token_slots import FILLERS

BEFORE = FILLERS[0]  # that typed ones stand behind, as they do in a sentence


# What a tokenizer has beside pieces of text.
MARK = re.compile(r"<unk>|</?s>|<pad>|<bos>|<eos>|<extra_id_\d+>|<\|.*\|>|\[(UNK|CLS|SEP|PAD)\]")
SPACES = "\u2581\u0120\u010a \t\n"  # as tokenizers write them


@dataclass(frozen=True)
class Reading:
    """Words as one text encoder reads them within a prompt."""

    tokens: tuple[int, ...]
    known: bool
    """Whether one of the tokens stands for a part of a word, or for a sign such as an emoji."""
    room: int
    """How many tokens of a prompt it reads at once."""


Read = Callable[[str], Sequence[Reading]]
"""A reading of each of a model's text encoders; none where their tokenizers are unknown."""


def reading(
    words: str, tokens: Callable[[str], Sequence[int]], piece: Callable[[int], str], window: int
) -> Reading:
    """By a tokenizer. piece: what a token stands for. window: its tokens, start and end with them.

    What a tokenizer does not know it leaves out, or has a token for that says no more than that.
    """
    alone, both = tokens(BEFORE), tokens(f"{BEFORE} {words}")
    start = next((i for i, pair in enumerate(zip(alone, both)) if pair[0] != pair[1]), len(alone))
    found = both[start : len(both) - len(alone) + start]
    return Reading(
        tuple(found),
        any(_is_known(piece(token)) for token in found),
        window - len(tokens("")),
    )


def _is_known(piece: str) -> bool:
    text = piece.removesuffix("</w>").strip(SPACES)
    # A byte of a longer sign is written as a letter beyond ASCII.
    return not MARK.fullmatch(piece) and any(c.isalnum() or not c.isascii() for c in text)
