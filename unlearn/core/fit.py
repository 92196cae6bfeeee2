"""Whether an erasure fits a model, and whether the model is the base that it was trained on.

Both backends use these checks. Each brings its own way to find a weight and its fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from .erasure import Erasure, ErasureError, check_range, matrix_shape, name_of
from .record import name_of as printed

Fingerprints = Callable[[Iterable[str]], Mapping[str, str]]
"""Hashes of a model's original weights, by key. Keys that it does not know may be left out."""


def check_delta(
    erasure: Erasure, key: str, weight: torch.Tensor | None, part: str, remedy: str
) -> None:
    """Raises ErasureError unless the erasure's delta of `key` can be added to the model's weight.

    weight: None if the model has none under this key. part: the message's word for what was given,
    such as "text encoder". remedy: a sentence on what to do if it is another model's erasure.
    """
    if weight is None:
        raise ErasureError(
            f"{name_of(erasure)} is for another {part}: this one has no {printed(key)}. {remedy}"
        )
    delta, shape = erasure.deltas[key], matrix_shape({"diff": weight})
    if matrix_shape(delta) != shape:
        raise ErasureError(
            f"{name_of(erasure)} is for a {part} of another size: {key} is {shape} here and "
            f"{matrix_shape(delta)} in the file. {remedy}"
        )
    check_range(delta, weight, f"{name_of(erasure)}: its delta of {key}")


def differing(erasure: Erasure, keys: Iterable[str], fingerprints: Fingerprints) -> tuple[int, int]:
    """(how many weights differ from those that the erasure was trained on, how many are recorded).

    keys: the weights to compare, as far as the record has them.
    """
    base = erasure.record.get("base", {})
    recorded = {key: base[key] for key in keys if key in base}
    found = fingerprints(recorded)
    return sum(found.get(key) != value for key, value in recorded.items()), len(recorded)


def base_warning(erasure: Erasure, keys: Iterable[str], fingerprints: Fingerprints) -> str:
    """A warning if the weights are not those that the erasure was trained on, else ""."""
    wrong, recorded = differing(erasure, keys, fingerprints)
    if not wrong:
        return ""
    return (
        f"Warning: {wrong} of {recorded} weights differ from those this erasure was trained on, so "
        "what was measured may not hold for this model; probe it again."
    )
