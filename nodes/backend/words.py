"""Words that a user typed, and the host's tokenizers: they read parentheses as weights."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...unlearn.core.token_reading import Read, Reading, reading
from ...unlearn.prompts.typed import split_concepts
from ...unlearn.prompts.word_checks import check_words, words_read
from .checks import check_clip


def part_named(parts, name: str):
    """A tokenizer or an encoder by the name under which its tokens go: the host calls CLIP-L's
    tokens l and its parts clip_l. None where it is not there."""
    found = getattr(parts, f"clip_{name}", None)
    return getattr(parts, name, None) if found is None else found


def encoder_names(clip, tokens: dict) -> list[str]:
    """Under which tokens go whose encoder is there: of Stable Diffusion 3's three the host makes
    tokens for all, loaded or not."""
    named = tokens if isinstance(tokens, dict) else ()  # an encoder without a name has a list
    return [name for name in named if part_named(clip.cond_stage_model, name) is not None]


def reader(clip) -> Read:
    """How a CLIP's text encoders read words."""
    return lambda words: readings(clip, words)


def readings(clip, words: str) -> list[Reading]:
    """What each of a CLIP's text encoders reads of words within a prompt."""
    names = encoder_names(clip, clip.tokenize(""))
    parts = (part_named(clip.tokenizer, name) for name in names)
    # Other extensions' may be of another kind.
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
    """A prompt as the host's tokenizer is to be given it to read parentheses as themselves.

    Some tokenizers know no weights, and of those some would keep the backslashes.
    """
    if not re.search(r"[()]", prompt) or not _reads_weights(clip):
        return prompt
    return re.sub(r"([()])", r"\\\1", prompt)


def _reads_weights(clip) -> bool:
    tokens = clip.tokenize("(cat)")
    encoders = tokens.values() if isinstance(tokens, dict) else [tokens]
    return any(token[1] != 1.0 for sections in encoders for part in sections for token in part)


def tokenized(clip, prompt: str) -> dict:
    """The host's tokens of a prompt that is plain words."""
    return clip.tokenize(plain(clip, prompt))


def typed_concepts(clip, text: str) -> list[str]:
    """Concepts that a user typed, of those that the text encoder reads alike the first.

    Raises ValueError with one sentence where one cannot be used.
    """
    check_clip(clip)
    return usable(clip, split_concepts(text))


def usable(clip, words: Sequence[str], what: str = "concept") -> list[str]:
    """The same of words that are split already, or of others than concepts."""
    check_words(words, what, reader(clip))
    return words_read(words, reader(clip))
