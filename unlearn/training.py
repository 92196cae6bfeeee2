"""From an Edit to an Erasure: the frame that every method's loop runs in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import date

from .erasure import VERSION, Erasure
from .model import DiffusionModel, Diverged, Edit


def trained(
    model: DiffusionModel,
    edit: Edit,
    method: str,
    concepts: list[str],
    settings,
    loop: Callable[[], object],
    **record,
) -> Erasure:
    """Run a method's loop on the edit; the erasure says where it came from.

    settings: the method's dataclass. record: what else the erasure is to say. When the loop raises
    Diverged, the error is given the erasure of the last good deltas.
    """
    base = model.base(edit.deltas)

    def erasure(deltas: dict, history: list[float]) -> Erasure:
        return Erasure(
            deltas,
            {
                "method": method,
                "concepts": list(concepts),
                **record,
                "settings": asdict(settings),
                "steps": len(history),
                "base": {key: base[key] for key in deltas},
                "loss": [round(value, 6) for value in history],
                "version": VERSION,
                "date": date.today().isoformat(),
            },
        )

    try:
        loop()
    except Diverged as error:
        error.erasure = erasure(error.deltas, error.history)
        raise
    return erasure(edit.tensors(), edit.history)
