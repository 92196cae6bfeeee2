"""The schema of an erasure's record. It is checked once, when a file is read.

Files come from anybody. A record is a JSON object. The entries that programs use have types and
limits here; all other entries are for people and need only be printable. An entry that does not fit
is left out and named, since the weights beside it may be fine. So code that reads a record can rely
on every entry that it finds.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

from .kind import Kind

DEPTH = 64  # levels of nested lists and objects
PARTS_DEPTH = 24  # levels of erasures combined from combined ones
ITEMS = 1_000_000  # items of a list or an object, such as the losses of all steps
TEXT = 20_000  # characters of any text...
SHORT = 2_000  # ... and of a name, a concept or a prompt
LARGEST = 3e38  # the largest number; integers have up to 64 bits
# A receipt or a probe can be measured again, which takes time: the most prompts, and the most
# pixels that the denoiser processes. A full probe in 1024 x 1024 takes about a tenth of that.
PICTURES, EFFORT = 4_000, 5e11
# Control characters, which no terminal prints, and surrogates, which no UTF-8 file can hold.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")

Unread = list[str]
Check = Callable[[Any, Unread], Any]
"""Returns the usable part of a value. Adds every entry that it left out to the list, with its place
and the reason. Raises Unfit where the value as a whole cannot be used."""


class Unfit(ValueError):
    """A value that cannot be used; the message says why."""


def checked(record: Any) -> tuple[dict, Unread]:
    """(the usable part of a record, what was left out, such as "measured.receipt (own is [])").

    Raises ValueError where it is not a record at all.
    """
    _check_frame(record)
    unread: Unread = []
    return _record(0)(record, unread), unread


def checked_pictures(text_of_file: str) -> tuple[dict, Unread]:
    """(the pictures of a file by concept, what was left out). text_of_file: JSON."""
    unread: Unread = []
    try:
        return _PICTURES(json.loads(text_of_file), unread), [f"pictures.{one}" for one in unread]
    except (Unfit, ValueError, RecursionError):
        return {}, ["pictures (are not readable)"]


FRAME = {
    "concepts": list,
    "loss": list,
    "parts": list,
    "settings": dict,
    "measured": dict,
    "base": dict,
}
"""If one of these has another type, another program wrote the record."""


def _check_frame(record: Any, level: int = 0) -> None:
    if not isinstance(record, dict):
        raise ValueError
    if not all(isinstance(record.get(name, kind()), kind) for name, kind in FRAME.items()):
        raise ValueError
    if not all(isinstance(concept, str) for concept in record.get("concepts", ())):
        raise ValueError
    if not all(isinstance(value, int | float) for value in record.get("loss", ())):
        raise ValueError
    for part in record.get("parts", ()) if level < PARTS_DEPTH else ():
        _check_frame(part, level + 1)


# Checks of a value


def plain(value: Any, unread: Unread, level: int = 0) -> Any:
    """Any value that can be printed and written as JSON again."""
    if level > DEPTH:
        raise Unfit(f"is more than {DEPTH} levels deep")
    if isinstance(value, str):
        return text(TEXT)(value, unread)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number()(value, unread)
    if isinstance(value, list | dict):
        if len(value) > ITEMS:
            raise Unfit(f"has {len(value)} items")
        for item in value:  # an object's names
            plain(item, unread, level + 1)
        for item in value.values() if isinstance(value, dict) else ():
            plain(item, unread, level + 1)
    return value


def text(longest: int = SHORT) -> Check:
    """A text of at most `longest` characters, all of them printable."""

    def check(value: Any, unread: Unread) -> str:
        if not isinstance(value, str) or CONTROL.search(value):
            raise Unfit(f"is {brief(value)}")
        if len(value) > longest:
            raise Unfit(f"has {len(value)} characters")
        return value

    return check


def word(value: Any, unread: Unread) -> str:
    """A text that is not blank."""
    if not text()(value, unread).strip():
        raise Unfit("is empty")
    return value


def number(low: float = -LARGEST, high: float = LARGEST) -> Check:
    """A finite number in low..high; an integer if `low` is one."""
    types = int if isinstance(low, int) else (int, float)

    def check(value: Any, unread: Unread) -> float:
        fits = isinstance(value, types) and not isinstance(value, bool) and low <= value <= high
        if not fits or (isinstance(value, int) and abs(value) >= 2**64):
            raise Unfit(f"is {brief(value)}")
        return value

    return check


def one_of(*values: Any) -> Check:
    """One of these values."""

    def check(value: Any, unread: Unread) -> Any:
        if value not in values:
            raise Unfit(f"is {brief(value)}")
        return value

    return check


def list_of(check_one: Check, least: int = 0, most: int = ITEMS) -> Check:
    """A list of `least` to `most` items, all of which fit."""

    def check(value: Any, unread: Unread) -> list:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise Unfit(f"is {brief(value)}")
        return [check_one(item, unread) for item in value]

    return check


def each(check_one: Check) -> Check:
    """The items of a list that fit."""

    def check(value: Any, unread: Unread) -> list:
        if not isinstance(value, list) or len(value) > ITEMS:
            raise Unfit(f"is {brief(value)}")
        kept: list = []
        for i, item in enumerate(value, 1):
            _keep(kept.append, str(i), check_one, item, unread)
        return kept

    return check


def entries(known: Mapping[str, Check] = {}, others: Check = plain) -> Check:
    """The entries of an object that fit. known: the check of each known name."""

    def check(value: Any, unread: Unread) -> dict:
        if not isinstance(value, dict) or len(value) > ITEMS:
            raise Unfit(f"is {brief(value)}")
        kept: dict = {}
        for name, entry in value.items():
            if len(name) > SHORT or CONTROL.search(name):
                unread.append(f"{brief(name)} (as a name)")
                continue
            add = partial(kept.__setitem__, name)
            _keep(add, name, known.get(name, others), entry, unread)
        return kept

    return check


def fields(needed: Mapping[str, Check], known: Mapping[str, Check] = {}) -> Check:
    """An object that has all `needed` entries, and all of whose entries fit."""
    checks = {**known, **needed}

    def check(value: Any, unread: Unread) -> dict:
        if not isinstance(value, dict):
            raise Unfit(f"is {brief(value)}")
        plain(list(value), unread)
        for name in needed:
            if name not in value:
                raise Unfit(f"{name} is missing")
        kept = {}
        for name, entry in value.items():
            try:
                kept[name] = checks.get(name, plain)(entry, unread)
            except Unfit as error:
                raise Unfit(f"{name_of(name)} {error}") from None
        return kept

    return check


def _keep(add: Callable[[Any], None], name: str, check: Check, value: Any, unread: Unread) -> None:
    """Add the value if it fits; list what was left out of it under its name."""
    inner: Unread = []
    name = name_of(name)
    try:
        add(check(value, inner))
    except Unfit as error:
        unread.append(f"{name} ({error})")
    unread += [f"{name}.{place}" for place in inner]


def name_of(key: str) -> str:
    """A name from a file, as a message shows it: on one line, and not too long."""
    shown = CONTROL.sub("?", " ".join(key[:1000].split()))
    return shown if len(shown) <= 200 else f"{shown[:160]}..."


def brief(value: Any) -> str:
    """A value as a message shows it: on one line, and short."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = shown.maxlong = 40
    shown.maxlist = shown.maxdict = shown.maxlevel = 3
    return shown.repr(value)


# The record


def drawable(check: Check) -> Check:
    """A receipt or a probe that does not take too long to measure again."""

    def checked(value: Any, unread: Unread) -> dict:
        found = check(value, unread)
        lists = [found.get(name, ()) for name in ("own", "near")]
        lists += [row["prompts"] for row in found.get("asked", ())]
        pictures = 2 * sum(map(len, lists))  # before and after
        height, width = found.get("size", (512, 512))
        settings = found["settings"]
        # A guided step runs the denoiser twice; the classifier compares about a dozen words.
        rows = 2 * settings.get("steps", 20) + 12 * settings.get("draws", 10)
        if pictures * height * width * rows > EFFORT:
            raise Unfit(f"takes {pictures * rows:.1g} runs of the denoiser at {width} x {height}")
        return found

    return checked


def anchor(value: Any, unread: Unread) -> Any:
    """A word, or one by the name of each concept."""
    check = entries(others=text()) if isinstance(value, dict) else text()
    return check(value, unread)


CONCEPTS = list_of(word, 1, PICTURES)
PROMPTS = list_of(text(), 1, PICTURES)
COUNT = number(0, PICTURES)
ASKED = {
    "draws": number(1, 1_000),
    "rivals": number(1, 1_000),
    "steps": number(1, 1_000),
    "guidance": number(0.0, 1_000.0),
    "seed": number(0, 2**63),
}
DRAWN = {
    "size": list_of(one_of(*range(8, 4_097, 8)), 2, 2),
    "clip_skip": number(0, 100),
}
KIND = one_of(*get_args(Kind))
JUDGE = fields({"key": word, "name": word}, {"version": text(), "settings": entries()})
"""Who judged (Judge.record). Where it is missing, the original model did."""


def by_the_original(judge: Mapping | None) -> bool:
    """Whether the original model judged. judge: the entry of a receipt or a probe, or None."""
    return judge is None or judge["key"] == "original"


def explained(check: Check) -> Check:
    """A receipt that says how much the word explains, if the original model judged."""

    def checked(value: Any, unread: Unread) -> dict:
        found = check(value, unread)
        for name in ("explained_before", "explained_after"):
            if name not in found and by_the_original(found.get("judge")):
                raise Unfit(f"{name} is missing")
        return found

    return checked


RECEIPT = explained(
    drawable(
        fields(
            {
                "concepts": CONCEPTS,
                "own": PROMPTS,
                "near": PROMPTS,
                "settings": fields({"kind": KIND}, ASKED),
                "shown_before": COUNT,
                "shown_after": COUNT,
                "own_changed": number(),
                "near_changed": number(),
            },
            {
                **DRAWN,
                "judge": JUDGE,
                "explained_before": number(),
                "explained_after": number(),
            },
        )
    )
)
"""A receipt, as `show --record` writes it (receipt.py)."""

PROBE = drawable(
    fields(
        {
            "concept": word,
            "settings": fields({"kind": KIND, "level": text()}, ASKED),
            "asked": list_of(
                fields(
                    {
                        "name": text(),
                        "prompts": PROMPTS,
                        "shown_before": COUNT,
                        "shown_after": COUNT,
                    }
                ),
                1,
                PICTURES,
            ),
        },
        {**DRAWN, "judge": JUDGE, "sentences": list_of(text())},
    )
)
"""The result of a probe (Probe.record)."""

MEASURED = entries(
    {
        "receipt": RECEIPT,
        "probe": each(PROBE),
        "conflict": list_of(text()),
        "doubts": list_of(text()),
        "seconds": number(),
        "peak_mb": number(),
        "estimated_mb": number(),
    }
)


THUMBNAIL, THUMBNAILS = 40_000, 16  # most characters of a small picture, most pictures of a side
SIDE = list_of(text(THUMBNAIL), 1, THUMBNAILS)
_PICTURES = entries(others=fields({"before": SIDE, "after": SIDE}))

RECORD = {
    "concepts": list_of(text()),
    "kind": text(),
    "method": text(),
    "date": text(),
    "version": text(),
    "key": text(),
    "architecture": text(),
    "base": entries(others=text()),
    "loss": list_of(number()),
    "steps": number(0, 2**63),
    "start": number(0, 1_000_000),
    "moved": entries(others=number()),
    "key_steps": fields({"points": list_of(number(0.0, 1e6)), "left": list_of(number())}),
    "anchors": entries(others=text()),
    "other_names": entries(others=list_of(text())),
    "left": entries(others=number(0.0, 1e6)),
    "left_alone": entries(others=number(0.0, 1e6)),
    "settings": entries({"mode": text(), "anchor": anchor, "protect": list_of(text())}),
    "measured": MEASURED,
    "strengths": list_of(number()),
}


def _record(level: int) -> Check:
    """The check of an erasure's record, or of one that it was combined from."""

    def parts(value: Any, unread: Unread) -> list:
        if level == PARTS_DEPTH:
            raise Unfit(f"are more than {PARTS_DEPTH} levels deep")
        return each(_record(level + 1))(value, unread)

    return entries({**RECORD, "parts": parts})
