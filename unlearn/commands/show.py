"""show: what an erasure is, where it came from, and whether a model is its base."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from ..erasure import NETWORK, Erasure
from . import options
from .output import Failure

HELP = "print what an erasure is, how it was made and what was measured"
EXAMPLES = """
examples:
  python -m unlearn show cat.safetensors
  python -m unlearn show cat.safetensors --json
      all of the record, for another program
  python -m unlearn show cat.safetensors --base sd15/
      compares fingerprints: ends with 1 where this is not the model that it was made with
"""
SHOWN_APART = ("method", "concepts", "kind", "date", "version", "base", "loss", "settings", "key")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="an erasure")
    parser.add_argument(
        "--base", type=Path, metavar="MODEL", help="a model to compare with the one it was made on"
    )
    options.add_reading(parser)
    parser.add_argument("--json", action="store_true", help="the record as JSON, and nothing else")


def run(given: argparse.Namespace) -> None:
    erasure = Erasure.load(given.file)
    if given.json:
        print(json.dumps(erasure.record, indent=1, sort_keys=True))
    else:
        print("\n".join(lines(erasure, given.file)))
    if given.base is not None:
        print_base(given, erasure)


def lines(erasure: Erasure, file: Path) -> Iterator[str]:
    """The record in words, one fact a line."""
    record = erasure.record
    kind = f" ({record['kind']})" if "kind" in record else ""
    yield f"{', '.join(erasure.concepts) or 'An unnamed concept'}{kind}"
    made = f"{record.get('method', 'unknown method')}, {record.get('date', 'undated')}"
    yield _line("made by", f"{made}, Concept Unlearn {record.get('version', 'of unknown version')}")
    yield _line("changes", _changes(erasure))
    yield _line("file", f"{file.name}, {file.stat().st_size / 1e6:.1f} MB")
    loss = record.get("loss")
    if loss:
        yield _line("loss", f"{loss[0]:.4g} at first, {loss[-1]:.4g} at last")
    for name, value in record.items():
        if name not in SHOWN_APART:
            yield _line(name.replace("_", " "), _text(value))
    for name, value in record.get("settings", {}).items():
        yield _line(f"  {name}", _text(value))


def _changes(erasure: Erasure) -> str:
    network = sum(key.startswith(NETWORK) for key in erasure.deltas)
    encoder = len(erasure.deltas) - network
    parts = [(encoder, "the text encoder"), (network, "the image network")]
    where = " and ".join(f"{count} weights of {part}" for count, part in parts if count)
    ranks = {d["lora_up"].shape[1] for d in erasure.deltas.values() if "lora_up" in d}
    rank = f", rank {'/'.join(map(str, sorted(ranks)))}" if ranks else ", full"
    return f"{where or 'nothing'}{rank}, norm {erasure.norm():.4g}"


def _line(name: str, text: str) -> str:
    return f"  {name:<16} {text}"


def _text(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def print_base(given: argparse.Namespace, erasure: Erasure) -> None:
    """Say whether the model is the one that the erasure was trained on; raises Failure if not."""
    from ..diffusers_apply import check_fit, differing
    from .models import load_model

    model = load_model(given.base, given.config)
    check_fit(model, erasure)
    wrong, recorded = differing(model, erasure)
    if not recorded:
        raise Failure(f"{given.file.name} has no fingerprints, so its base cannot be told.")
    if wrong:
        raise Failure(
            f"{given.base} is not the model that {given.file.name} was made with: {wrong} of "
            f"{recorded} weights differ, so what was measured may not hold for it."
        )
    if not given.json:
        print(f"\n{given.base} is its base: all {recorded} recorded weights are the same.")
