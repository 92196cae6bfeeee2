"""Recognises a whole prompt typed where concepts are expected: its commas would split it into
several concepts."""

from __future__ import annotations

import re
from collections.abc import Sequence

# "a photo of a ..." and the like. "The Picture of Dorian Gray" does not match.
OPENING = re.compile(
    r"(?:[Aa]n? )?(?:[\w-]+ ){0,3}(?:[Pp]hoto|[Pp]hotograph|picture|[Ii]mage|painting|drawing"
    r"|illustration|portrait|rendering|render|sketch|shot|[Cc]lose-?up)"
    r" of (?:an?|the|my|one|two) "
)
# A verb with its place: "... sitting on a ...".
DOING = re.compile(
    r".*[a-z] [a-z]+ing (?:an?|the|in|into|on|at|with|through|by|under|over|down|along)\b"
)
# Words for quality. Nobody unlearns them together with an object.
QUALITY = re.compile(
    r"masterpiece|(?:best|high|highest|top|amazing|very high) quality"
    r"|(?:ultra|highly|very|extremely|insanely|super)[- ]?(?:detailed|realistic|high res)"
    r"|absurdres|high ?res|(?:ultra )?[48]k(?: (?:uhd|hdr))?|uhd|hdr|raw photo"
    r"|trending on artstation|award[- ]winning.*|intricate details?|score_\d.*"
    r"|\d+(?:girl|boy)s?|looking at (?:the )?(?:viewer|camera)",
    re.IGNORECASE,
)
# Words for how a picture is taken. One may be a concept among others; two are a prompt's end.
LOOK = re.compile(
    r"bokeh|(?:shallow )?depth of field|(?:sharp|soft) focus|film grain|golden hour|cinematic"
    r"|\d+ ?mm(?: lens| film)?|[\w-]+ (?:light|lighting|background|composition|shot|angle)"
    r"|(?:full|upper) body|detailed(?: [\w-]+)?",
    re.IGNORECASE,
)
# Limits count only lower-case words, so a title in capitals may be long.
SENTENCE = 4  # words after "a" or "an" that make a sentence of an item
LONG = 6  # words that make a sentence of any item among several
LONGEST = 10  # words that make a prompt of a single item


def is_prompt(items: Sequence[str], count: int) -> bool:
    """Whether items typed as concepts are the parts of a prompt. A list of names is not, however
    long.

    items: those without quotation marks. count: the number of all items.
    """
    if any(OPENING.match(item) or _lower_case_words(item) > LONGEST for item in items):
        return True
    if count < 2:
        return False
    quality = sum(QUALITY.fullmatch(item) is not None for item in items)
    looks = sum(LOOK.fullmatch(item) is not None for item in items)
    return (
        0 < quality < count
        or 2 <= quality + looks < count
        or any(DOING.match(item) or _is_sentence(item) for item in items)
    )


def _is_sentence(item: str) -> bool:
    article, _, rest = item.partition(" ")
    return _lower_case_words(item) >= LONG or (
        article.lower() in ("a", "an") and _lower_case_words(rest) >= SENTENCE
    )


def _lower_case_words(item: str) -> int:
    return sum(word[0].islower() for word in item.split())
