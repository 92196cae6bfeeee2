r"""Reading the words that a user types as concept, anchor or protected word.

Nodes, commands and library share these rules. The text is words and names, never prompt syntax.
guitar_(music) is a word with parentheses; guitar_\(music\), as a prompt escapes it, is the same
word. Text that can only be prompt syntax, such as a weight or an embedding, is refused: read as
plain words it would mean something else.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from .whole_prompt import is_prompt

# Commas, also the Chinese, Japanese and Arabic ones.
COMMAS = ",\uff0c\u3001\uff64\u060c"
# An item: in quotation marks, which may hold commas, or everything up to the next comma.
ITEM = re.compile(
    rf'[ \t]*(?:"([^"]*)"|[\u201c\u201e]([^\u201c\u201d]*)[\u201c\u201d])[ \t]*(?=[{COMMAS}]|$)'
    rf"|([^{COMMAS}]+)"
)
NUMBER = r"[-+]?(?:\d+(?:\.\d*)?(?:e[-+]?\d+)?|\.\d+|nan|inf(?:inity)?)"
SYNTAX = {
    "a textual inversion": r"(?<![^\s(\[{])embedding\s*:\s*[^\s,()]*",
    "a weight": rf"(?<![^\s(\[{{{COMMAS}])\([^()]*:\s*{NUMBER}\s*\)",
    "a LoRA or the like": r"<\w+:[^<>]*>",
    "a choice": r"\{[^{}|]*\|[^{}]*\}|\[[^\[\]|]*\|[^\[\]]*\]",
    "a change of words": rf"\[[^\[\]]*:\s*{NUMBER}\s*\]",
}
BLANKS = "\u115f\u1160\u2800\u3164\uffa0"  # Unicode calls them letters, but they look like a space
# Joiners and variation selectors, which some scripts and emoji need.
JOINING = re.compile("[\u200c\u200d\ufe00-\ufe0f\U000e0020-\U000e007f\U000e0100-\U000e01ef]")
SHOWN = 4  # items that a message shows...
LONG = 60  # ... and letters of each
LONGEST = 500  # letters of a word; some encoders have no limit of their own
JOINED = 0x590  # the first letter of the scripts that use joiners


def cleaned(text: str) -> str:
    r"""A word in the form in which it is trained and recorded.

    Backslashes before parentheses and invisible characters are removed. Every run of white space
    becomes one space. Letters are normalised (Unicode's NFKC, which also unifies letters of another
    width). Punctuation of another width stays.
    """
    text = " ".join(text.translate(dict.fromkeys(map(ord, BLANKS), " ")).split())
    seen = ""
    for sign in text:
        if JOINING.match(sign):
            is_seen = seen and ord(seen[-1]) >= JOINED
        else:
            is_seen = unicodedata.category(sign) not in ("Cc", "Cf", "Cs")
        seen += sign if is_seen else ""
    text = re.sub(r"\w+", lambda word: unicodedata.normalize("NFKC", word[0]), seen)
    text = unicodedata.normalize("NFC", text).rstrip("\u200c\u200d")
    return " ".join(re.sub(r"(?<!\\)\\+([()])", r"\1", text).split())


def short(text: str) -> str:
    """A text as a message shows it: in quotation marks, cut at LONG letters."""
    text = text.strip()
    return repr(text if len(text) <= LONG else text[:LONG] + "...")


def check_word(text: str, what: str = "concept") -> None:
    """Raises ValueError where a text cannot be a word.

    what: the name of the input, for the message.
    """
    check_no_syntax(text, what)
    word = cleaned(text)
    if not any(_is_read(sign) for sign in word):
        raise ValueError(
            f"The {what} {short(text)} has no letter or number; type a word or name, for example: "
            "Zorvik"
        )
    if len(word) > LONGEST:
        raise ValueError(
            f"The {what} {short(text)} is {len(word)} letters long; type a word or name of at most "
            f"{LONGEST} letters."
        )


def check_no_syntax(text: str, what: str) -> None:
    """Raises ValueError where a text holds prompt syntax. what: the input, for the message."""
    for name, pattern in SYNTAX.items():
        if found := re.search(pattern, text, re.IGNORECASE):
            raise ValueError(
                f"The {what} holds {name}, {short(found[0])}, but it is read as plain words, not "
                "as prompt syntax; type the words alone."
            )
    if _in_parentheses(cleaned(text)):
        raise ValueError(
            f"The {what} {short(text)} is in parentheses, which are a weight in a prompt, but it "
            "is read as plain words; leave the parentheses out."
        )


def split_words(text: str, what: str = "protected word") -> list[str]:
    """The cleaned words of a text. They are separated by commas or line breaks; quotation marks
    keep a comma inside a word. Raises ValueError for a word that cannot be used."""
    return [word for word, _ in _items(text, what)]


def split_concepts(text: str, what: str = "concept") -> list[str]:
    """Like `split_words`, without duplicates. Raises ValueError also for an empty text and for a
    whole prompt."""
    items = _items(text, what)
    if not items:
        raise ValueError(
            "No concept is named: type the word or name to unlearn, for example: Zorvik"
        )
    if is_prompt([word for word, quoted in items if not quoted], len(items)):
        parts = ", ".join(short(word) for word, _ in items[:SHOWN])
        raise ValueError(
            f"The concept looks like a whole prompt, and it would be read as {len(items)} "
            f"concept{'s' * (len(items) > 1)}, {parts}{', ...' * (len(items) > SHOWN)}; type only "
            "the word or name to unlearn, for example: fox. Put a long name into quotation marks."
        )
    return list(dict.fromkeys(word for word, _ in items))


def joined(words: Sequence[str]) -> str:
    """Words as a user would type them: the inverse of `split_words`."""
    return ", ".join(f'"{word}"' if re.search(f"[{COMMAS}]", word) else word for word in words)


def one_word(text: str, what: str = "anchor") -> str:
    """The one word of a text, "" for none. Raises ValueError for several words."""
    words = split_words(text, what)
    if len(words) > 1:
        raise ValueError(
            f"The {what} must be one word or name, but {len(words)} are typed "
            f"({', '.join(words)}); type one, in quotation marks if it holds a comma."
        )
    return "".join(words)


def _items(text: str, what: str) -> list[tuple[str, bool]]:
    """(word, whether it was in quotation marks) for each word."""
    check_no_syntax(text, what)  # on the whole text: a weight may span commas
    found = []
    for line in text.splitlines():
        for item in ITEM.finditer(line):
            typed = next(part for part in item.groups() if part is not None)
            if word := cleaned(typed):
                check_word(typed, what)
                found.append((word, item[3] is None))
    return found


def _is_read(sign: str) -> bool:
    """Whether a character is more than punctuation: a letter, a number or a symbol such as an
    emoji."""
    kind = unicodedata.category(sign)
    return kind[0] in "LN" or (kind in ("So", "Sc", "Sm") and not sign.isascii())


def _in_parentheses(text: str) -> bool:
    """Whether one pair of parentheses encloses the whole text, and the text is not empty."""
    depth = 0
    if not text.startswith("("):
        return False
    for i, sign in enumerate(text):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if depth == 0:
            return i == len(text) - 1 and any(map(_is_read, text))
    return False
