"""Frozen weights that autograd can keep: aliases of the host's tensors on the same memory.

The host's weights are inference tensors, which all branches of a graph share, and autograd cannot
keep an inference tensor for a backward pass. Inside a `with` block each of them is replaced by an
ordinary tensor on the same memory. Nothing is copied and nothing is written to. Everything is put
back afterwards, also after an error or a cancel.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def aliased(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Replace each parameter, buffer and cached tensor by a normal one on the same storage.

    Autograd cannot save an inference tensor, nor a tensor that was created as one and moved later.
    It can save the alias, which costs no memory and takes no gradient. The original is put back if
    it still exists. Only a weak reference to it is kept here: when the host is short of memory and
    moves the model, the old memory must become free. Quantised tensors are the exception. They are
    kept, because the host can do less with a quantised tensor made outside inference mode.
    """
    replaced: list[tuple[dict, str, Callable[[], torch.Tensor | None], torch.Tensor]] = []
    aliases: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # id: the tensor and its alias
    try:
        for root in modules:
            for module in root.modules():
                # Plain attributes too: Jina CLIP caches its rotary embeddings in one.
                for table in (module._parameters, module._buffers, vars(module)):
                    for name, tensor in table.items():
                        if not isinstance(tensor, torch.Tensor) or _can_be_saved(tensor):
                            continue
                        if id(tensor) not in aliases:
                            alias = _alias(tensor)
                            if isinstance(tensor, torch.nn.Parameter):
                                alias = torch.nn.Parameter(alias, requires_grad=False)
                            aliases[id(tensor)] = tensor, alias
                        alias = aliases[id(tensor)][1]
                        hold = _strong_reference if is_quantised(tensor) else weakref.ref
                        replaced.append((table, name, hold(tensor), alias))
                        table[name] = alias
        tensor = None  # this name would keep the last tensor alive as well
        aliases.clear()
        yield
    finally:
        for table, name, original, alias in reversed(replaced):
            tensor = original()
            # If the host was short of memory, it may have moved the model with its aliases, or put
            # another tensor here. Then its tensor must stay.
            if tensor is not None and table[name] is alias and _same_memory(alias, tensor):
                table[name] = tensor


def _can_be_saved(tensor: torch.Tensor) -> bool:
    """Whether autograd can save a tensor: it needs a version counter, which it checks later."""
    try:
        return not tensor.is_inference() and tensor._version >= 0
    except RuntimeError:
        return False


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    if is_quantised(tensor):
        names, context = tensor.__tensor_flatten__()
        parts = {name: _alias(getattr(tensor, name)) for name in names}
        shape, stride = tensor.size(), tensor.stride()
        return type(tensor).__tensor_unflatten__(parts, context, shape, stride)
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def _strong_reference(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    names, _ = tensor.__tensor_flatten__()  # this call also creates the attributes it names
    return [getattr(tensor, name) for name in names]


def _same_memory(alias: torch.Tensor, tensor: torch.Tensor) -> bool:
    if is_quantised(tensor):
        # The scales may be copies. One part in the same place is enough, since a quantised tensor
        # is only ever moved as a whole.
        return any(map(_same_memory, _parts(alias), _parts(tensor)))
    places = {(t.device, t.untyped_storage().data_ptr()) for t in (alias, tensor)}
    return len(places) == 1


def is_quantised(weight: torch.Tensor) -> bool:
    """Whether a weight is a tensor subclass made of several tensors, as the host stores scaled fp8
    and fp4."""
    return hasattr(weight, "__tensor_flatten__")
