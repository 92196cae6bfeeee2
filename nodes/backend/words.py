"""Words that a user typed, as the host's tokenizers read them. They take parentheses as weights."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...unlearn.core.token_reading import Read, Reading, reading
from ...unlearn.prompts.pairs import split_pairs
from ...unlearn.prompts.typed import split_concepts
from ...unlearn.prompts.word_checks import check_words, words_read
from .checks import check_clip


def part_named(parts, name: str):
    """A tokenizer or an encoder by the name of its tokens; None if it is not there.

    The host names CLIP-L's tokens l, and its tokenizer and encoder clip_l.
    """
    found = getattr(parts, f"clip_{name}", None)
    return getattr(parts, name, None) if found is None else found


def encoder_names(clip, tokens: dict) -> list[str]:
    """The names of the tokens whose encoder is loaded.

    For Stable Diffusion 3 the host makes tokens for three encoders, whether loaded or not.
    """
    named = tokens if isinstance(tokens, dict) else ()  # a list: one encoder without a name
    return [name for name in named if part_named(clip.cond_stage_model, name) is not None]


def reader(clip) -> Read:
    """How a CLIP's text encoders read words."""
    return lambda words: readings(clip, words)


def readings(clip, words: str) -> list[Reading]:
    """How each of a CLIP's text encoders reads words within a prompt."""
    names = encoder_names(clip, clip.tokenize(""))
    parts = (part_named(clip.tokenizer, name) for name in names)
    # Another extension's tokenizer may lack these attributes.
    tokenizers = [one for one in parts if hasattr(one, "inv_vocab") and hasattr(one, "tokenizer")]
    return [
        reading(
            words,
            lambda text, own=one: own.tokenizer(text)["input_ids"],
            lambda token, own=one: own.inv_vocab.get(token, "?"),
            one.max_length,
        )
        for one in tokenizers
    ]


def plain(clip, prompt: str) -> str:
    """A prompt with its parentheses escaped, so that the host's tokenizer reads no weights.

    Unchanged for tokenizers that know no weights, since some of these would keep the backslashes.
    """
    if not re.search(r"[()]", prompt) or not _reads_weights(clip):
        return prompt
    return re.sub(r"([()])", r"\\\1", prompt)


def _reads_weights(clip) -> bool:
    tokens = clip.tokenize("(cat)")
    encoders = tokens.values() if isinstance(tokens, dict) else [tokens]
    return any(token[1] != 1.0 for sections in encoders for part in sections for token in part)


def tokenized(clip, prompt: str) -> dict:
    """The host's tokens of a prompt in plain words."""
    return clip.tokenize(plain(clip, prompt))


def typed_pairs(clip, text: str) -> tuple[list[str], dict[str, str]]:
    """`typed_concepts`, and the anchors of those that name one: fox -> koala."""
    check_clip(clip)
    concepts, anchors = split_pairs(text)
    return usable(clip, concepts), anchors


def typed_concepts(clip, text: str) -> list[str]:
    """The concepts that a user typed. Of several that the encoder reads alike, only the first.

    Raises ValueError with one sentence if one of them cannot be used.
    """
    check_clip(clip)
    return usable(clip, split_concepts(text))


def usable(clip, words: Sequence[str], what: str = "concept") -> list[str]:
    """`typed_concepts` for words that are already split. what: what they are, for messages."""
    check_words(words, what, reader(clip))
    return words_read(words, reader(clip))
