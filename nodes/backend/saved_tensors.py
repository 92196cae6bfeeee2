"""How much memory a prompt's way through the text encoder takes while the encoder is trained.

It is measured on one prompt instead of being reckoned from the architecture, of which there are
dozens: autograd tells of every tensor that it keeps for the backward pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

import torch
from torch.multiprocessing.reductions import StorageWeakRef


class Touched:
    """An edit, to `frozen.edited`, that trains weights without holding a delta of their size."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.deltas = dict.fromkeys(keys)
        self.nothing = torch.zeros((), requires_grad=True)
        self._copies: dict[int, weakref.ref[torch.Tensor]] = {}

    def changed(self, key: str, weight: torch.Tensor) -> torch.Tensor:
        changed = weight + self.nothing.to(weight)
        self._copies[_place(changed)] = weakref.ref(changed)
        return changed

    def is_copy(self, tensor: torch.Tensor) -> bool:
        """Whether it is a changed weight, which is one for all prompts. Where one lay that is gone,
        something else may lie now."""
        copy = self._copies.get(_place(tensor))
        return copy is not None and copy() is not None


def kept_bytes(
    forward: Callable[[], object], weights: Iterable[torch.Tensor], touched: Touched
) -> int:
    """Bytes that autograd keeps of a forward pass, without the weights and their changed copies.

    forward: makes what is differentiated. There is no backward pass through it, since nothing is
    kept for one.
    """
    own = {_place(weight) for weight in weights}
    kept: dict[StorageWeakRef, int] = {}

    def note(tensor: torch.Tensor) -> None:
        """Autograd would keep what this returns. An operation that saves its own output would then
        keep the tensor and the tensor the operation, for good: Python's collector sees no such
        cycle."""
        if _place(tensor) not in own and not touched.is_copy(tensor):
            # Not by its place, where another may lie once this one is gone.
            storage = tensor.untyped_storage()
            kept[StorageWeakRef(storage)] = storage.nbytes()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing):
        forward()
    return sum(kept.values())


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
