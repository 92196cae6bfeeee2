r"""What a user types as concept, anchor and protect: words and names, and never prompt syntax.

One rule for nodes, commands and library. guitar_(music) is a word with parentheses, and so is
guitar_\(music\), as a prompt has it. What can only be meant as prompt syntax, a weight or an
embedding, is refused: as a word it would be another one than it looks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from .whole_prompt import is_prompt

# Commas, of Chinese, Japanese and Arabic too.
COMMAS = ",\uff0c\u3001\uff64\u060c"
# One item in quotation marks, which may hold commas, or anything up to the next comma.
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
BLANKS = "\u115f\u1160\u2800\u3164\uffa0"  # letters by name that look like a space
# Joiners, and signs that choose the look of the one before: scripts and emoji need them.
JOINING = re.compile("[\u200c\u200d\ufe00-\ufe0f\U000e0020-\U000e007f\U000e0100-\U000e01ef]")
SHOWN = 4  # items in a sentence...
LONG = 60  # ... and letters of one
LONGEST = 500  # letters of a word that an encoder without end could read
JOINED = 0x590  # the first letter of the scripts that have them


def cleaned(text: str) -> str:
    r"""A word as it is read and recorded.

    Without backslashes before parentheses and without what nobody sees; every space one space;
    letters in one of the ways to write them (Unicode's NFKC: letters of another width, too). Marks
    of another width stay what they are.
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
    """A text as a sentence shows it, in quotation marks."""
    text = text.strip()
    return repr(text if len(text) <= LONG else text[:LONG] + "...")


def check_word(text: str, what: str = "concept") -> None:
    """Raises ValueError with one sentence where a text cannot be a word.

    what: the input that it was typed into.
    """
    check_no_syntax(text, what)
    word = cleaned(text)
    if not any(_is_read(sign) for sign in word):
        raise ValueError(
            f"The {what} {short(text)} holds no letter or number, so there is nothing to read: "
            "type a word or name, for example: Zorvik"
        )
    if len(word) > LONGEST:
        raise ValueError(
            f"The {what} {short(text)} is {len(word)} letters long, which is no word or name; type "
            f"one of at most {LONGEST}."
        )


def check_no_syntax(text: str, what: str) -> None:
    """Raises ValueError with one sentence where a text holds what only prompts can hold."""
    for name, pattern in SYNTAX.items():
        if found := re.search(pattern, text, re.IGNORECASE):
            raise ValueError(
                f"The {what} holds {name}, {short(found[0])}, but it is read as plain words and "
                "not as prompt syntax: type the words alone."
            )
    if _in_parentheses(cleaned(text)):
        raise ValueError(
            f"The {what} {short(text)} stands in parentheses, which is a weight in a prompt, "
            "but it is read as plain words: leave the parentheses out."
        )


def split_words(text: str, what: str = "protected word") -> list[str]:
    """Words that a user typed, cleaned: separated by commas or lines, or in quotation marks, which
    keep commas. Raises ValueError."""
    return [word for word, _ in _items(text, what)]


def split_concepts(text: str, what: str = "concept") -> list[str]:
    """The same without doubles. Raises ValueError when nothing is left, and for a whole prompt."""
    items = _items(text, what)
    if not items:
        raise ValueError(
            "No concept is named: type the word or name to unlearn, for example: Zorvik"
        )
    if is_prompt([word for word, quoted in items if not quoted], len(items)):
        parts = ", ".join(short(word) for word, _ in items[:SHOWN])
        raise ValueError(
            f"The concept looks like a whole prompt, and it would be read as {len(items)} "
            f"concept{'s' * (len(items) > 1)}, {parts}{', ...' * (len(items) > SHOWN)}: type only "
            "the word or name to unlearn, for example: fox (a name that is so long goes into "
            "quotation marks)."
        )
    return list(dict.fromkeys(word for word, _ in items))


def joined(words: Sequence[str]) -> str:
    """Words as a user would type them."""
    return ", ".join(f'"{word}"' if re.search(f"[{COMMAS}]", word) else word for word in words)


def one_word(text: str, what: str = "anchor") -> str:
    """The only word that a user typed, "" for none. Raises ValueError for several."""
    words = split_words(text, what)
    if len(words) > 1:
        raise ValueError(
            f"The {what} is one word or name, but {len(words)} are typed ({', '.join(words)}): "
            "type one, in quotation marks if it holds a comma."
        )
    return "".join(words)


def _items(text: str, what: str) -> list[tuple[str, bool]]:
    """(word, whether it stood in quotation marks)."""
    check_no_syntax(text, what)  # a weight may be of several words, with commas between
    found = []
    for line in text.splitlines():
        for item in ITEM.finditer(line):
            typed = next(part for part in item.groups() if part is not None)
            if word := cleaned(typed):
                check_word(typed, what)
                found.append((word, item[3] is None))
    return found


def _is_read(sign: str) -> bool:
    """Whether it may be more than punctuation: a letter, a number, or a picture such as an
    emoji."""
    kind = unicodedata.category(sign)
    return kind[0] in "LN" or (kind in ("So", "Sc", "Sm") and not sign.isascii())


def _in_parentheses(text: str) -> bool:
    """Whether one pair of them holds all of it, and something."""
    depth = 0
    if not text.startswith("("):
        return False
    for i, sign in enumerate(text):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if depth == 0:
            return i == len(text) - 1 and any(map(_is_read, text))
    return False
