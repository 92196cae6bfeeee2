"""What a worker does for one cell: erase, measure, write the result."""

from __future__ import annotations

import socket
from typing import Any

from ...core.erasure import Erasure
from .. import erase, show
from ..output import Failure, rewrite
from .cell import Cell

LEFT_OUT = ("base", "loss")
"""Long entries of the record, which are in the erasure's file."""
_open: dict[tuple, Any] = {}


def work(cell: Cell) -> str:
    """Make a cell's erasure and its receipt, and write its result. Returns a line that tells it.

    What is done already is not done again. Raises what `erase` raises.
    """
    if not cell.folder.is_dir():
        raise Failure(
            f"{socket.gethostname()} does not see {cell.folder}; put the output on a disk that all "
            "machines share, and name it by the same path."
        )
    found = cell.result()
    if found is None:
        file, args = cell.args.output, cell.args
        try:
            erase.erased(args, model_of)
            erasure = Erasure.load(file)
            receipt = show.receipt_of(model_of(args), erasure)
        except BaseException:
            _open.clear()  # it may be half edited
            raise
        rewrite(file, lambda one: one.with_measured(receipt=receipt))
        record = Erasure.load(file).record
        found = {
            **cell.about,
            "file": f"{cell.folder.name}/{file.name}",
            "bytes": file.stat().st_size,
            "device": str(model_of(args).device),
            "record": {name: value for name, value in record.items() if name not in LEFT_OUT},
        }
        cell.write(found)
    return told(found)


def model_of(args: Any) -> Any:
    """The model that the arguments name. It stays open for the next cell: an erasure leaves the
    model as it was."""
    from ..models import given_model

    asked = ("model", "config", "size", "clip_skip", "save_memory", "device", "half")
    key = tuple(getattr(args, name) for name in asked)
    if key not in _open:
        _open.clear()
        _open[key] = given_model(args)
    return _open[key]


def verdict_of(record: dict[str, Any]) -> str:
    """The verdict in a record, in a word for each concept; "" without one."""
    concepts = record.get("measured", {}).get("verdict", {}).get("concepts", {})
    words = [one.get("verdict", "") for one in concepts.values()]
    if len(words) < 2:
        return "".join(words)
    return ", ".join(f"{name} {word}" for name, word in zip(concepts, words))


def told(result: dict[str, Any]) -> str:
    """A result in a line."""
    measured = result["record"].get("measured", {})
    return f"{verdict_of(result['record']) or 'not measured'}, {measured.get('seconds', 0):.1f} s"
