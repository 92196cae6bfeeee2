"""A whole prompt where words are wanted: at its commas it would become several concepts."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Asks for a picture of something. "The Picture of Dorian Gray" does not.
OPENING = re.compile(
    r"(?:[Aa]n? )?(?:[\w-]+ ){0,3}(?:[Pp]hoto|[Pp]hotograph|picture|[Ii]mage|painting|drawing"
    r"|illustration|portrait|rendering|render|sketch|shot|[Cc]lose-?up)"
    r" of (?:an?|the|my|one|two) "
)
# What somebody or something does, and where.
DOING = re.compile(
    r".*[a-z] [a-z]+ing (?:an?|the|in|into|on|at|with|through|by|under|over|down|along)\b"
)
# Nobody unlearns these beside a thing.
QUALITY = re.compile(
    r"masterpiece|(?:best|high|highest|top|amazing|very high) quality"
    r"|(?:ultra|highly|very|extremely|insanely|super)[- ]?(?:detailed|realistic|high res)"
    r"|absurdres|high ?res|(?:ultra )?[48]k(?: (?:uhd|hdr))?|uhd|hdr|raw photo"
    r"|trending on artstation|award[- ]winning.*|intricate details?|score_\d.*"
    r"|\d+(?:girl|boy)s?|looking at (?:the )?(?:viewer|camera)",
    re.IGNORECASE,
)
# How a picture is taken. One of them may be a concept beside others, two are a prompt's end.
LOOK = re.compile(
    r"bokeh|(?:shallow )?depth of field|(?:sharp|soft) focus|film grain|golden hour|cinematic"
    r"|\d+ ?mm(?: lens| film)?|[\w-]+ (?:light|lighting|background|composition|shot|angle)"
    r"|(?:full|upper) body|detailed(?: [\w-]+)?",
    re.IGNORECASE,
)
# Words that begin small, so that a title in capitals may be long.
SENTENCE = 4  # behind an "a"...
LONG = 6  # ... or in any item, where there are others beside it
LONGEST = 10  # of one by itself


def is_prompt(items: Sequence[str], count: int) -> bool:
    """Whether items typed as concepts are a prompt's parts. Lists of names are not, long ones too.

    items: those that did not stand in quotation marks. count: all of them.
    """
    if any(OPENING.match(item) or _small(item) > LONGEST for item in items):
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
    return _small(item) >= LONG or (article.lower() in ("a", "an") and _small(rest) >= SENTENCE)


def _small(item: str) -> int:
    return sum(word[0].islower() for word in item.split())
