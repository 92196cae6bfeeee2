"""No training through the first token, as in DoCo (arXiv 2405.15304)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def first_token_detached(root: torch.nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Inside the block no gradient flows through the named layers' output for the first token.

    Every prompt begins with that token, so what is learnt through it would change all prompts.
    """

    def detached(module, inputs, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], 1)

    hooks = [root.get_submodule(name).register_forward_hook(detached) for name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
