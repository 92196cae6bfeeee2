"""The first token left out of training, as DoCo does (arXiv 2405.15304)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def first_token_detached(root: torch.nn.Module, names: Iterable[str]) -> Iterator[None]:
    """No gradient through what the named layers under `root` make of the first token.

    Every prompt has that token, so what is learnt through it reaches all of them.
    """

    def detached(module, inputs, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], 1)

    hooks = [root.get_submodule(name).register_forward_hook(detached) for name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
