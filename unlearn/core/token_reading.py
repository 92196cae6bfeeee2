"""How a tokenizer splits words inside a prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .token_slots import FILLERS

BEFORE = FILLERS[0]  # a word before the typed ones, as in a sentence


# Special tokens, which stand for no text.
MARK = re.compile(r"<unk>|</?s>|<pad>|<bos>|<eos>|<extra_id_\d+>|<\|.*\|>|\[(UNK|CLS|SEP|PAD)\]")
SPACES = "\u2581\u0120\u010a \t\n"  # the marks that tokenizers use for spaces and line breaks


@dataclass(frozen=True)
class Reading:
    """How one text encoder reads words inside a prompt."""

    tokens: tuple[int, ...]
    known: bool
    """Whether at least one of the tokens stands for a part of a word or a sign such as an emoji."""
    room: int
    """The most tokens of a prompt that the encoder reads at once, without start and end."""


Read = Callable[[str], Sequence[Reading]]
"""Returns one Reading per text encoder of the model; none if their tokenizers are unknown."""


def reading(
    words: str, tokens: Callable[[str], Sequence[int]], piece: Callable[[int], str], window: int
) -> Reading:
    """The Reading of words by one tokenizer.

    tokens: the tokenizer, which adds start and end. piece: the text of a token. window: the length
    of a whole prompt, with start and end. A tokenizer drops text that it does not know, or replaces
    it by an "unknown" token.
    """
    before, both = tokens(BEFORE), tokens(f"{BEFORE} {words}")
    pairs = enumerate(zip(before, both))
    start = next((i for i, pair in pairs if pair[0] != pair[1]), len(before))
    own = both[start : len(both) - len(before) + start]
    return Reading(
        tuple(own),
        any(_is_known(piece(token)) for token in own),
        window - len(tokens("")),
    )


def _is_known(piece: str) -> bool:
    text = piece.removesuffix("</w>").strip(SPACES)
    # A byte of a multi-byte sign is written as a letter outside ASCII.
    return not MARK.fullmatch(piece) and any(c.isalnum() or not c.isascii() for c in text)
