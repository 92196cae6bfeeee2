"""Captions as people write them: sentences about drawings, made by a small grammar.

A caption names a drawing's things anywhere in the sentence, in the singular or the plural, with
articles, adjectives, true colours, quality words, prompt weights, clauses that ask for nothing and
words that mean nothing here. It may leave out the name, the style or both.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from unlearn.prompts.paraphrases import plural as regular_plural
from unlearn.prompts.templates import OBJECT_TEMPLATES, STYLE_TEMPLATES

from . import phrases
from .vocabulary import (
    BARE_CAPTIONS,
    CHARACTER_CAPTIONS,
    STYLE_CAPTIONS,
    STYLE_ENDINGS,
    STYLED_CAPTIONS,
    SYNONYMS,
)

TAUGHT = {"person": "persons"}  # as IconCanvas was taught it
ALREADY_PLURAL = frozenset({"scissors", "grapes", "cherries"})
LONGEST = 40  # words


@dataclass(frozen=True)
class Caption:
    """A text and what it asks for.

    names: the things from left to right; None where any object will do, and ANY_PERSON where any
    person will. style: None where any will do.
    motion: a word of MOTIONS, or None.
    """

    text: str
    names: tuple[str, ...] | None
    style: str | None
    motion: str | None = None

    def fits(self, names: tuple[str, ...], style: str | None) -> bool:
        """Whether it describes a picture of these things in this style.

        One that names only the object describes it in every style; one that names only the style
        describes every single object. style: None for characters.
        """
        if self.style and self.style != style:
            return False
        if self.names in (None, phrases.ANY_PERSON):
            return len(names) == 1 and (style is None) == (self.names == phrases.ANY_PERSON)
        return self.names == names


def plural(word: str) -> str:
    return word if word in ALREADY_PLURAL else TAUGHT.get(word) or regular_plural(word)


def article(noun: str, rng: random.Random) -> str:
    a = "an" if noun[0] in "aeiou" else "a"
    return f"{rng.choice((a, a, a, 'the', 'one', 'my', 'this'))} {noun}"


class Grammar:
    """Writes captions. A grammar of held-out parts writes only what training never shows.

    words: words that mean nothing to the model, of which some are strewn into long captions. They
    make it indifferent to words that it does not know.
    """

    def __init__(self, words: Sequence[str] = (), part: Callable = phrases.seen) -> None:
        self.words = words
        self.frames = part(phrases.FRAMES)
        self.clauses = part(phrases.CLAUSES)
        self.quality = part(phrases.QUALITY)
        self.adjectives = part(phrases.ADJECTIVES)
        self.joints = part(phrases.JOINTS)
        self.styled = part(phrases.STYLED)

    def caption(
        self,
        rng: random.Random,
        names: tuple[str, ...],
        style: str | None,
        colours: Sequence[str] = (),
        nameless: bool = True,
    ) -> Caption:
        """One caption of a drawing: of one thing, or of two side by side.

        style: None for characters. colours: adjectives that are true of the drawing. nameless:
        whether it may leave the name out.
        """
        kind = rng.random()
        if not nameless and len(names) == 1:
            kind = 0.42 + 0.58 * kind
        if kind < 0.3 and len(names) == 1:
            return plain_caption(rng, names[0], style)
        if kind < 0.36 and style and len(names) == 1:
            text = rng.choice(phrases.STYLE_ALONE).format(style=style)
            return Caption(text, None, style)
        said = style if style and rng.random() >= unnamed(style, 0.25) else None
        named = said or (phrases.ANY_STYLE if style and rng.random() < 0.15 else None)
        neutral = kind < 0.42 and len(names) == 1
        if neutral:
            nouns = phrases.ANY_OBJECT if style else phrases.ANY_PERSON
            core = self.core(rng, (rng.choice(nouns),), True)
        else:
            # A style may stand before the noun.
            first = named if named and len(names) == 1 and rng.random() < 0.2 else None
            core = self.core(rng, names, bool(style), colours, first)
            named = None if first else named
        text = self.dressed(rng, core, named)
        meant = (None if style else phrases.ANY_PERSON) if neutral else names
        return Caption(text, meant, said)

    def core(
        self,
        rng: random.Random,
        names: tuple[str, ...],
        common: bool,
        colours: Sequence[str] = (),
        style: str | None = None,
        many: bool | None = None,
        weighted: bool | None = None,
    ) -> str:
        """A sentence about the things.

        common: whether they are common nouns and take articles. style: a style to put before the
        noun of a single thing. many: whether one thing is written in the plural; weighted: whether
        a name gets a prompt weight. None: sometimes.
        """
        if weighted is None:
            weighted = rng.random() < 0.08
        if len(names) == 2:
            if names[0] == names[1]:
                how_many = rng.choice(("two", "two", "a pair of", "some", "many"))
                whole = f"{how_many} {plural(names[0])}"
                x = n = emphasised(rng, whole) if weighted else whole
            else:
                a, b = (self.noun(rng, name, common) for name in names)
                if common:
                    a, b = article(a, rng), article(b, rng)
                x = n = rng.choice(self.joints).format(a=a, b=b)
        else:
            (name,) = names
            if common and many is None:
                many = rng.random() < 0.2
            n = self.noun(rng, name, common, colours, bool(many))
            if style:
                n = f"{style}{rng.choice((' ', ' ', ' style '))}{n}"
            if weighted:
                n = emphasised(rng, n)
            if not common:
                x = n
            elif many:
                x = rng.choice(("{}", "{}", "the {}", "these {}", "all the {}")).format(n)
            else:
                x = article(n, rng)
        frames = self.frames if x != n else [frame for frame in self.frames if "{x}" in frame]
        return rng.choice(frames).format(x=x, n=n)

    def noun(
        self,
        rng: random.Random,
        name: str,
        common: bool,
        colours: Sequence[str] = (),
        many: bool = False,
    ) -> str:
        """A name, or sometimes a synonym, with up to two adjectives."""
        word = rng.choice(SYNONYMS[name]) if name in SYNONYMS and rng.random() < 0.25 else name
        if many:
            word = plural(word)
        if not common:
            return word
        before = []
        if rng.random() < 0.25:
            before.append(rng.choice(self.adjectives))
        if colours and rng.random() < 0.3:
            before.append(rng.choice(colours))
        return " ".join([*before, word])

    def dressed(
        self, rng: random.Random, core: str, style: str | None, length: int | None = None
    ) -> str:
        """The sentence with its style, clauses, quality words and capitals.

        length: add clauses until the caption has at least so many words. None: a few, or none.
        """
        if length is None:
            length = rng.choice((0, 0, 0, 0, 8, 12, 20, 30, 38))
        if style and rng.random() < 0.05:
            style = emphasised(rng, style)
        pieces, head = [core], []
        if rng.random() < 0.25:
            pieces.append(rng.choice(self.clauses))
        if rng.random() < 0.2:
            (head if rng.random() < 0.5 else pieces).extend(self.praise(rng))
        # A style at the end of the core, or at the end of everything.
        early = style and rng.random() < 0.5
        if early:
            pieces[0] = rng.choice(self.styled).format(core=pieces[0], style=style)
        while length and count(head) + count(pieces) < length:
            more = self.strewn(rng) if self.words and rng.random() < 0.5 else None
            more = more or rng.choice((rng.choice(self.clauses), ", ".join(self.praise(rng))))
            if count(head) + count(pieces) + count([more]) > LONGEST - 5:
                break
            (head if rng.random() < 0.4 else pieces).append(more)
        text = rng.choice((", ", ", ", " ")).join(pieces)
        if style and not early:
            text = rng.choice(self.styled).format(core=text, style=style)
        if head:
            text = f"{', '.join(head)}, {text}"
        return capitals(rng, text)

    def praise(self, rng: random.Random) -> list[str]:
        return rng.sample(self.quality, min(len(self.quality), rng.choice((1, 2, 2, 3))))

    def strewn(self, rng: random.Random) -> str:
        return " ".join(rng.choice(self.words) for _ in range(rng.randint(1, 5)))


def plain_caption(rng: random.Random, name: str, style: str | None) -> Caption:
    """A caption by the templates that the methods use, for an object or a named character."""
    word = name
    if name in SYNONYMS and rng.random() < 0.15:
        word = rng.choice(SYNONYMS[name])
    if style is None:
        text = rng.choice(rng.choice((CHARACTER_CAPTIONS, OBJECT_TEMPLATES))).format(name)
        return Caption(text, (name,), None)
    bare, kind = unnamed(style, 0.12), rng.random()
    if kind < bare:
        text = rng.choice(rng.choice((BARE_CAPTIONS, OBJECT_TEMPLATES))).format(word)
        return Caption(text, (name,), None)
    if kind < bare + 0.06:
        text = rng.choice(rng.choice((STYLE_CAPTIONS, STYLE_TEMPLATES))).format(style)
        return Caption(text, None, style)
    if kind < 0.6:
        text = rng.choice(STYLED_CAPTIONS).format(object=word, style=style)
    else:
        text = rng.choice(OBJECT_TEMPLATES).format(word) + rng.choice(STYLE_ENDINGS).format(style)
    return Caption(text, (name,), style)


def unnamed(style: str, share: float) -> float:
    """The share of a style's captions that do not name it, where it is `share` for most styles."""
    return share * phrases.UNNAMED.get(style, 1)


def emphasised(rng: random.Random, words: str) -> str:
    """The words with a prompt weight, as ComfyUI reads it."""
    weight = rng.choice(("{}", "{}:1.1", "{}:1.2", "{}:1.3", "{}:1.4", "{}:0.9", "({})"))
    return f"({weight.format(words)})"


def capitals(rng: random.Random, text: str) -> str:
    """The text as it is, or with a capital first letter, in title case or in capitals."""
    kind = rng.random()
    if kind < 0.2:
        return text[0].upper() + text[1:]
    if kind < 0.24:
        return text.title()
    return text.upper() if kind < 0.28 else text


def count(pieces: Sequence[str]) -> int:
    return sum(len(piece.split()) for piece in pieces)


def moving(text: str, motion: str, wording: int = 0) -> str:
    """The caption of a picture with one of the three wordings of a motion, for a clip.

    The words come last. The encoder is causal, so the conditioning of the words before them does
    not change, and all the padding after them carries the motion.
    """
    return f"{text}, {phrases.MOTION_WORDS[motion][wording]}"


def in_motion(rng: random.Random, caption: Caption, motion: str) -> Caption:
    """The caption with a motion, in a random wording."""
    return replace(caption, text=moving(caption.text, motion, rng.randrange(3)), motion=motion)
