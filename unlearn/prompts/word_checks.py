"""Checks of a user's words against the text encoder: which it reads, and which cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Protocol, TypeVar

from ..core.kind import ANCHORS, CLOSEST, NEUTRAL, Kind
from ..core.token_reading import Read
from .typed import check_word, cleaned, short


class WordSettings(Protocol):
    """A method's settings: a dataclass with an anchor, or one of each concept, and more."""

    __dataclass_fields__: ClassVar[dict]

    @property
    def anchor(self) -> str | Mapping[str, str]: ...

    @property
    def protect(self) -> Sequence[str]: ...

    @property
    def named_as(self) -> Kind:
        """The kind whose sentences name the concepts."""

    @property
    def uses_anchor(self) -> bool:
        """Whether concepts are drawn to the anchor."""

    @property
    def empty_anchor(self) -> str:
        """What an empty anchor stands for: CLOSEST, or "" for what is the method's own."""


Settings = TypeVar("Settings", bound=WordSettings)
AROUND = 16  # tokens of the longest template, without the word in it


def words_read(words: Sequence[str], read: Read) -> list[str]:
    """The words in the form in which they are trained and recorded: cleaned, without words that the
    encoder reads the same. CLIP, for example, ignores capitals."""
    first: dict[tuple, str] = {}
    for word in map(cleaned, words):
        first.setdefault(_tokens(word, read), word)
    return list(first.values())


def as_read(concepts: Sequence[str], settings: Settings, read: Read) -> tuple[list[str], Settings]:
    """(concepts, settings) of a method in the form in which they are trained and recorded.

    For the anchor NEUTRAL that is the neutral word of the kind. CLOSEST stays, in small letters.
    """
    protect = tuple(words_read(settings.protect, read))

    def used(typed: str) -> str:
        word = asked_anchor(typed)
        return ANCHORS[settings.named_as] if word == NEUTRAL else word

    anchor: str | dict[str, str]
    if isinstance(settings.anchor, str):
        anchor = used(settings.anchor)
    else:
        anchor = {cleaned(concept): used(typed) for concept, typed in settings.anchor.items()}
    settings = replace(settings, anchor=anchor, protect=protect)
    return words_read(concepts, read), settings


def asked_anchor(typed: str) -> str:
    """An anchor as it was typed: a word, cleaned, or one of NEUTRAL, CLOSEST and ""."""
    word = cleaned(typed)
    return word.casefold() if word.casefold() in (NEUTRAL, CLOSEST) else word


def _tokens(word: str, read: Read) -> tuple:
    """The word's tokens in each encoder; the word itself where no tokenizer is known."""
    return tuple(reading.tokens for reading in read(word)) or (word,)


def check_words(words: Sequence[str], what: str = "concept", read: Read | None = None) -> None:
    """Raises ValueError for a word that cannot be used.

    what: the name of the input, for the message. read: the model's `readings`; None if there is no
    model yet, and then only the spelling is checked.
    """
    for word in words:
        check_word(word, what)
        if read is not None:
            check_reading(word, read, what)


def check_typed(
    concepts: Sequence[str],
    anchor: str | Mapping[str, str] = "",
    protect: Sequence[str] = (),
    kind: Kind | None = None,
    read: Read | None = None,
) -> None:
    """Raises ValueError where words cannot be used, alone or together.

    anchor: one for all concepts, or by the name of each what takes its place. kind: its neutral
    word is used where no anchor is named; None if the method then has no anchor, or chooses one.
    read: see `check_words`.
    """
    typed = [anchor] if isinstance(anchor, str) else [anchor.get(one, "") for one in concepts]
    asked = [asked_anchor(one) for one in typed]
    named = [one for one, is_asked in zip(typed, asked) if is_asked not in ("", NEUTRAL, CLOSEST)]
    check_words(concepts, "concept", read)
    check_words(named, "anchor", read)
    check_words(protect, "protected word", read)

    def is_concept(word: str) -> bool:
        return any(_alike(word, concept, read) for concept in concepts)

    for one in named:
        if is_concept(one):
            raise ValueError(
                f"The anchor {one!r} is the concept itself, so nothing would change; type what "
                "the model should draw in its place, or leave it empty."
            )
    if kind and is_concept(ANCHORS[kind]) and not {"", NEUTRAL}.isdisjoint(asked):
        raise ValueError(
            f"{ANCHORS[kind]!r} is the default anchor, which takes the concept's place, so nothing "
            "would change; type another word as the anchor."
        )
    for word in protect:
        if is_concept(word):
            raise ValueError(
                f"{short(word)} is both a concept to unlearn and a protected word; remove it from "
                "one of the two."
            )


def _alike(word: str, other: str, read: Read | None) -> bool:
    word, other = cleaned(word), cleaned(other)
    return word.casefold() == other.casefold() or (
        read is not None and _tokens(word, read) == _tokens(other, read)
    )


def check_reading(word: str, read: Read, what: str = "concept") -> None:
    """Raises ValueError where no text encoder knows the word, or it is too long for a prompt."""
    readings = read(cleaned(word))
    if readings and not any(reading.known for reading in readings):
        raise ValueError(
            f"The text encoder has no token for any part of the {what} {short(word)}, so it cannot "
            "read it; type another word for it, for example in English."
        )
    for reading in readings:
        if len(reading.tokens) + AROUND > reading.room:
            raise ValueError(
                f"The {what} {short(word)} is {len(reading.tokens)} tokens long, but a prompt of "
                f"this text encoder has {reading.room}, and the sentence around it takes up to "
                f"{AROUND}; type a shorter name."
            )
