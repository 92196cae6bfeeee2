"""Applies an erasure to a diffusers pipeline, for the time of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..core import fit
from ..core.erasure import Erasure, check_strength
from ..core.model import DiffusionModel, Open
from .model import DiffusersModel


@contextmanager
def applied(model: DiffusersModel, erasure: Erasure, strength: float = 1.0) -> Iterator[None]:
    """Inside the block the pipeline's weights have the erasure. Afterwards they are exactly what
    they were.

    strength: the factor on the deltas; 0 is the original, and -1 undoes an erasure that is in the
    weights already. Raises ErasureError, before any weight is changed, when the erasure is for
    another model.
    """
    check_strength(strength)
    check_fit(model, erasure)
    before = {key: model.weights[key].detach().clone() for key in erasure.deltas}
    try:
        for key in erasure.deltas:
            weight = model.weights[key].detach()
            delta = erasure.delta(key).view(weight.shape).to(weight.device)
            weight.copy_(weight.float() + strength * delta)
        yield
    finally:
        for key, value in before.items():
            model.weights[key].detach().copy_(value)


def ways(model: DiffusersModel, erasure: Erasure) -> tuple[Open, Open]:
    """(open the original model, open the erased model), as a probe takes them."""

    @contextmanager
    def original() -> Iterator[DiffusionModel]:
        yield model

    @contextmanager
    def edited() -> Iterator[DiffusionModel]:
        with applied(model, erasure):
            yield model

    return original, edited


def check_fit(model: DiffusersModel, erasure: Erasure) -> None:
    """Raises ErasureError unless the model has a weight of the same shape for every delta."""
    for key in erasure.deltas:
        remedy = "Name the model that it was made with."
        fit.check_delta(erasure, key, model.weights.get(key), "model", remedy)


def differing(model: DiffusersModel, erasure: Erasure) -> tuple[int, int]:
    """(how many weights differ from those that the erasure was trained on, how many are recorded).

    Only weights that the model has count.
    """
    return fit.differing(erasure, _shared(model, erasure), model.fingerprints)


def base_warning(model: DiffusersModel, erasure: Erasure) -> str:
    """A warning if the model is not the base that the erasure was trained on, else ""."""
    return fit.base_warning(erasure, _shared(model, erasure), model.fingerprints)


def _shared(model: DiffusersModel, erasure: Erasure) -> list[str]:
    return [key for key in erasure.deltas if key in model.weights]
