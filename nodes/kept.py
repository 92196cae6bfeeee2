"""How much memory a prompt's way through the text encoder takes while the encoder is trained.

It is measured on one prompt instead of being reckoned from the architecture, of which there are
dozens: autograd tells of every tensor that it keeps for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch


class Touched:
    """An edit, to `frozen.edited`, that trains weights without holding a delta of their size."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.deltas = dict.fromkeys(keys)
        self.nothing = torch.zeros((), requires_grad=True)
        self.copies: set[int] = set()
        """Where the changed weights lie: they are one for all prompts."""

    def changed(self, key: str, weight: torch.Tensor) -> torch.Tensor:
        changed = weight + self.nothing.to(weight)
        self.copies.add(_place(changed))
        return changed


def kept_bytes(
    forward: Callable[[], object], weights: Iterable[torch.Tensor], touched: Touched
) -> int:
    """Bytes that autograd keeps of a forward pass, without the weights and their changed copies.

    forward: makes what is differentiated; its graph is held until it has been counted.
    """
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = forward()
    del made
    apart = touched.copies | {_place(weight) for weight in weights}
    return sum(size for place, size in kept.items() if place not in apart)


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
