"""An erasure's record as text: what `show` prints and Show Erasure shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import zip_longest

from ..core.erasure import NETWORK, Erasure
from ..render.text_table import columns
from .receipt import FIGURES
from .verdict import told

SHOWN = 20  # the most unreadable entries that are told
SHOWN_APART = (
    *("concepts", "kind", "method", "date", "version", "base", "loss", "settings", "key"),
    *("measured", "parts", "strengths", "architecture"),
)


def lines(erasure: Erasure, file: str = "", size: int = 0) -> Iterator[str]:
    """The record as text, one fact per line: what was erased, how, when, from which base, and what
    was measured.

    file, size: the name and the bytes of its file; "" where it lies in none.
    """
    record = erasure.record
    kind = f" ({record['kind']})" if "kind" in record else ""
    yield f"{', '.join(erasure.concepts) or 'An unnamed concept'}{kind}"
    made = f"{record.get('method', 'unknown method')}, {record.get('date', 'undated')}"
    yield _line("made by", f"{made}, Concept Unlearn {record.get('version', 'of unknown version')}")
    for part, strength in zip_longest(record.get("parts", []), record.get("strengths", [])):
        part = part or {}
        at = "unknown strength" if strength is None else f"strength {strength:g}"
        concepts = ", ".join(part.get("concepts", [])) or "an unnamed concept"
        made = f"{part.get('method', 'unknown method')}, {part.get('date', 'undated')}"
        yield _line("  of", f"{concepts} at {at}: {made}")
    yield _line("changes", _changes(erasure))
    if file:
        yield _line("file", f"{file}, {size / 1e6:.1f} MB")
    yield _line("base", base(record))
    yield from measured_lines(record.get("measured", {}))
    loss = record.get("loss")
    if loss:
        yield _line("loss", f"{loss[0]:.4g} at first, {loss[-1]:.4g} at last")
    for name, value in record.items():
        if name not in SHOWN_APART:
            yield _line(name.replace("_", " "), _text(value))
    settings = record.get("settings", {})
    if settings:
        yield "settings"
    for name, value in settings.items():
        yield _line(f"  {name}", _text(value))
    if erasure.unread:
        yield "cannot be read and is ignored"
        yield from (f"  {entry}" for entry in erasure.unread[:SHOWN])
    if len(erasure.unread) > SHOWN:
        yield f"  and {len(erasure.unread) - SHOWN} more"


def base(record: Mapping) -> str:
    """The model that the erasure was made with, in a few words: its kind, and one fingerprint of
    all the weights that were changed."""
    known = record.get("base", {})
    if not known:
        return "unknown: the file has no fingerprints"
    whole = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]
    kind = f"{record['architecture']}, " if "architecture" in record else ""
    return f"{kind}fingerprints of {len(known)} weights, together {whole}"


def measured_lines(measured: Mapping) -> Iterator[str]:
    """What a record says under "measured"."""
    if measured:
        yield "measured"
    for name, value in measured.items():
        if name == "probe":
            for probe in value:
                level = probe.get("settings", {}).get("level", "unknown")
                by = counted_by(probe)
                yield _line("  probe", f"{probe.get('concept', '')}, {level}{by}")
                yield from (f"      {sentence}" for sentence in probe.get("sentences", []))
        elif name == "verdict":
            yield _line("  verdict", told({"measured": measured}) or _text(value))
        elif name == "receipt":
            count = len(value.get("own", []))
            rows = [
                [f"      {what}", figure_text(value[key], count if tolerance is None else 0)]
                for key, (what, tolerance) in FIGURES.items()
                if key in value
            ]
            others = f"{len(value.get('near', []))} others{counted_by(value)}"
            yield _line("  receipt", f"{count} pictures of it, {others}")
            yield from columns(rows).splitlines() if rows else ()
        elif isinstance(value, list):
            yield _line(f"  {name.replace('_', ' ')}", "")
            yield from (f"      {_text(item)}" for item in value)
        else:
            yield _line(f"  {name.replace('_', ' ')}", _text(value))


def counted_by(entry: Mapping) -> str:
    """Who counted for a receipt or a probe, and by which settings, behind a comma.

    "" where the entry does not say so: then the original model did.
    """
    if "judge" not in entry:
        return ""
    judge = entry["judge"]
    name = " ".join(filter(None, (judge["name"], judge.get("version", ""))))
    said = [f"{key} {_listed(value)}" for key, value in judge.get("settings", {}).items()]
    settings = f" ({'; '.join(said)})" if said else ""
    return f", counted by {name}{settings}"


def _listed(value) -> str:
    return ", ".join(map(_text, value)) if isinstance(value, list) else _text(value)


def _changes(erasure: Erasure) -> str:
    network = sum(key.startswith(NETWORK) for key in erasure.deltas)
    encoder = len(erasure.deltas) - network
    parts = [(encoder, "the text encoder"), (network, "the denoiser")]
    where = " and ".join(f"{count} weights of {part}" for count, part in parts if count)
    ranks = {d["lora_up"].shape[1] for d in erasure.deltas.values() if "lora_up" in d}
    rank = f", rank {'/'.join(map(str, sorted(ranks)))}" if ranks else ", full"
    return f"{where or 'nothing'}{rank}, norm {erasure.norm():.4g}"


def _line(name: str, text: str) -> str:
    return f"  {name:<16} {text}".rstrip()


def _text(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def figure_text(value: float, count: int) -> str:
    """A figure as text. count: the number of pictures if it counts pictures, 0 if it is a share."""
    return f"{value:g} of {count}" if count else f"{value:.1%}"
