"""Putting an erasure on a diffusers pipeline, for as long as it is needed there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from ..core.erasure import Erasure, ErasureError, check_range, check_strength, matrix_shape, name_of
from ..core.model import Open
from ..core.record import name_of as printed
from .model import DiffusersModel


@contextmanager
def applied(model: DiffusersModel, erasure: Erasure, strength: float = 1.0) -> Iterator[None]:
    """The pipeline's weights with the erasure at a strength; afterwards what they were, exactly.

    0 is the original, -1 undoes an erasure that is in the weights already, linear between. Raises
    ErasureError, before any weight is touched, when the erasure is for another model.
    """
    check_strength(strength)
    check_fit(model, erasure)
    before = {key: model.weights[key].detach().clone() for key in erasure.deltas}
    try:
        for key in erasure.deltas:
            weight = model.weights[key].detach()
            change = erasure.delta(key).view(weight.shape).to(weight.device)
            weight.copy_(weight.float() + strength * change)
        yield
    finally:
        for key, value in before.items():
            model.weights[key].detach().copy_(value)


def ways(model: DiffusersModel, erasure: Erasure) -> tuple[Open, Open]:
    """Into the original and into the erased model, as a probe takes them."""

    @contextmanager
    def edited() -> Iterator[DiffusersModel]:
        with applied(model, erasure):
            yield model

    return lambda: nullcontext(model), edited


def check_fit(model: DiffusersModel, erasure: Erasure) -> None:
    """Raises ErasureError unless every delta has its weight here, in the same shape."""
    for key, delta in erasure.deltas.items():
        if key not in model.weights:
            raise ErasureError(
                f"{name_of(erasure)} is for another model: this one has no {printed(key)}. Name "
                "the model that it was made with."
            )
        size = matrix_shape({"diff": model.weights[key]})
        if matrix_shape(delta) != size:
            raise ErasureError(
                f"{name_of(erasure)} is for a model of another size: {key} is {size} here and "
                f"{matrix_shape(delta)} in the file."
            )
        check_range(delta, model.weights[key], f"{name_of(erasure)}: its change of {key}")


@torch.no_grad()
def differing(model: DiffusersModel, erasure: Erasure) -> tuple[int, int]:
    """(how many weights differ from those the erasure was trained on, how many are recorded)."""
    recorded = {
        key: value
        for key, value in erasure.record.get("base", {}).items()
        if key in model.weights and key in erasure.deltas
    }
    found = model.fingerprints(recorded)
    return sum(found[key] != value for key, value in recorded.items()), len(recorded)


def base_warning(model: DiffusersModel, erasure: Erasure) -> str:
    """A sentence when this is not the base that the erasure was trained on, else nothing."""
    wrong, recorded = differing(model, erasure)
    if not wrong:
        return ""
    return (
        f"Warning: {wrong} of {recorded} weights differ from those this erasure was trained on, so "
        "what was measured may not hold for this model; probe it again."
    )
