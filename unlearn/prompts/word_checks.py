"""What a text encoder reads of the words that a user typed, and which words it cannot work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..core.kind import ANCHORS, Kind
from ..core.token_reading import Read
from .typed import check_word, cleaned, short

AROUND = 16  # tokens of the longest sentence that a method puts a word into


def words_read(words: Sequence[str], read: Read) -> list[str]:
    """Words as they are worked on and recorded: cleaned, and of those that are read alike the first
    alone. CLIP reads no capitals."""
    first: dict[tuple, str] = {}
    for word in map(cleaned, words):
        first.setdefault(_tokens(word, read), word)
    return list(first.values())


def as_read(concepts: Sequence[str], settings, read: Read) -> tuple[list[str], object]:
    """(concepts, a method's settings) as they are trained with and recorded."""
    protect = tuple(words_read(settings.protect, read))
    settings = replace(settings, anchor=cleaned(settings.anchor), protect=protect)
    return words_read(concepts, read), settings


def _tokens(word: str, read: Read) -> tuple:
    """What tells words apart: their letters, where no tokenizer can be asked."""
    return tuple(one.tokens for one in read(word)) or (word,)


def check_words(words: Sequence[str], what: str = "concept", read: Read | None = None) -> None:
    """Raises ValueError with one sentence for a word that cannot be used.

    what: how one of them is called. read: the model's; None where there is none yet, and then only
    the letters count.
    """
    for word in words:
        check_word(word, what)
        if read is not None:
            check_reading(word, read, what)


def check_typed(
    concepts: Sequence[str],
    anchor: str = "",
    protect: Sequence[str] = (),
    kind: Kind | None = None,
    read: Read | None = None,
) -> None:
    """Raises ValueError with one sentence where words cannot be used, each or together.

    kind: whose neutral word is the anchor where none is named; None where there is then none. read:
    see `check_words`.
    """
    check_words(concepts, "concept", read)
    check_words([anchor] if anchor.strip() else [], "anchor", read)
    check_words(protect, "protected word", read)

    def is_concept(word: str) -> bool:
        return any(_alike(word, concept, read) for concept in concepts)

    if anchor.strip():
        if is_concept(anchor):
            raise ValueError(
                f"The anchor {anchor!r} is the concept itself, so nothing would change; name what "
                "should be drawn in its place, or leave it empty."
            )
    elif kind and is_concept(ANCHORS[kind]):
        raise ValueError(
            f"{ANCHORS[kind]!r} is the word that is drawn in a concept's place, so nothing would "
            "change; name another as the anchor."
        )
    for word in protect:
        if is_concept(word):
            raise ValueError(
                f"{short(word)} is to be unlearnt and named in protect, too, so one would work "
                "against the other; leave it out of one of them."
            )


def _alike(word: str, other: str, read: Read | None) -> bool:
    word, other = cleaned(word), cleaned(other)
    return word.casefold() == other.casefold() or (
        read is not None and _tokens(word, read) == _tokens(other, read)
    )


def check_reading(word: str, read: Read, what: str = "concept") -> None:
    """Raises ValueError with one sentence where no text encoder knows a word, or it is too long."""
    readings = read(cleaned(word))
    if readings and not any(one.known for one in readings):
        raise ValueError(
            f"The text encoder reads nothing of the {what} {short(word)}, for it has no token for "
            "any part of it: type another word for it, for example in English."
        )
    for one in readings:
        if len(one.tokens) + AROUND > one.room:
            raise ValueError(
                f"The {what} {short(word)} is {len(one.tokens)} tokens long, but a prompt of this "
                f"text encoder has {one.room}, and {AROUND} of them are for the sentence around "
                "it: type a shorter name."
            )
