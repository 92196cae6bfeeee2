"""Training through ComfyUI's modules without touching a weight of them.

The host's weights are inference tensors, shared by every branch of the graph. Nothing here writes to
them: for the duration of a `with` block frozen weights are read through aliases that autograd may
keep, edited ones through the host's own weight functions, and everything is put back afterwards, also
after an error or a cancel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.checkpoint import checkpoint

from ..unlearn.model import Edit


@contextmanager
def aliased(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Replace each parameter and buffer by a normal tensor on the same storage.

    An inference tensor cannot be saved for a backward pass. Its alias can, costs no memory, and takes
    no gradient.
    """
    replaced: list[tuple[dict, str, torch.Tensor]] = []
    aliases: dict[int, torch.Tensor] = {}
    try:
        for root in modules:
            for module in root.modules():
                for table in (module._parameters, module._buffers):
                    for name, tensor in table.items():
                        if tensor is None or not tensor.is_inference():
                            continue
                        if id(tensor) not in aliases:
                            alias = _alias(tensor)
                            if isinstance(tensor, torch.nn.Parameter):
                                alias = torch.nn.Parameter(alias, requires_grad=False)
                            aliases[id(tensor)] = alias
                        replaced.append((table, name, tensor))
                        table[name] = aliases[id(tensor)]
        yield
    finally:
        for table, name, tensor in reversed(replaced):
            table[name] = tensor


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


@contextmanager
def edited(root: torch.nn.Module, edit: Edit, prefix: str) -> Iterator[None]:
    """Let every use of a weight under `root` that `edit` changes go through `edit.changed`.

    The edit's keys are the weights' names under `root` behind `prefix`. They must belong to the
    host's own layers (comfy.ops), whose `weight_function` and `bias_function` lists are used.
    """
    added: list[tuple[torch.nn.Module, str, list]] = []
    try:
        for key in edit.deltas:
            path, _, name = key.removeprefix(prefix).rpartition(".")
            module = root.get_submodule(path)
            slot = f"{name}_function"
            before = getattr(module, slot)
            added.append((module, slot, before))
            # A list of its own: the host's default is one list for the whole class.
            setattr(module, slot, [*before, lambda weight, key=key: edit.changed(key, weight)])
        yield
    finally:
        for module, slot, before in reversed(added):
            setattr(module, slot, before)


@contextmanager
def checkpointed(modules: Iterable[torch.nn.Module], on: bool = True) -> Iterator[None]:
    """Keep only the inputs of each block for the backward pass and compute the rest again there."""
    patched: list[torch.nn.Module] = []
    try:
        for root in modules if on else ():
            for block in blocks(root):
                block.forward = _recomputed(block.forward)
                patched.append(block)
        yield
    finally:
        for block in patched:
            del block.forward  # the class's own shows through again


def _recomputed(forward):
    def run(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)

        def block(*args):
            # Some blocks write into their input; the second time it must still be what it was.
            args = [a.clone() if torch.is_tensor(a) and a.is_floating_point() else a for a in args]
            return forward(*args, **kwargs)

        return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)

    return run


def blocks(root: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The largest members of the lists that a network is built of: its residual and attention blocks."""
    containers = (torch.nn.ModuleList, torch.nn.Sequential)
    for child in root.children():
        if isinstance(root, containers) and not isinstance(child, containers):
            if next(child.parameters(), None) is not None:
                yield child
        else:
            yield from blocks(child)
