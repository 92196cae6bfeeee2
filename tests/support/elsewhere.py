"""A pretended device, for tests on machines without a GPU.

Its tensors are computed on the CPU, but say that they are on LAZY, a device of which PyTorch knows
only the name. It refuses what a GPU refuses: an operation on tensors of both devices, a CPU tensor
indexed by one of the device, a CPU generator for numbers on the device, and NumPy. It is slow, so
use small models. Dtypes, streams and memory are the CPU's, so it does not test those.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

LAZY, CPU = torch.device("lazy"), torch.device("cpu")
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}


class Away(torch.Tensor):
    """A tensor that says it is on LAZY. `payload` is the real one, on the CPU."""

    payload: torch.Tensor

    @staticmethod
    def __new__(cls, payload: torch.Tensor) -> Away:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            payload.shape,
            strides=payload.stride(),
            storage_offset=payload.storage_offset(),
            dtype=payload.dtype,
            device=LAZY,
        )
        made.payload = payload
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    def __repr__(self, **options: Any) -> str:
        return f"Away({self.payload!r})"

    def __deepcopy__(self, memo: dict) -> torch.Tensor:
        copy = Away(self.payload.detach().clone())
        is_parameter = isinstance(self, torch.nn.Parameter)
        return torch.nn.Parameter(copy, self.requires_grad) if is_parameter else copy

    def __reduce_ex__(self, protocol: Any) -> Any:  # loading a file gives CPU tensors
        return self.payload.__reduce_ex__(protocol)

    def data_ptr(self) -> int:
        return self.payload.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.payload.untyped_storage()

    def set_(self, *source: Any) -> Away:
        return Away(self.payload.set_(*source))  # a wrapper cannot change its own shape

    def tolist(self) -> list:
        return self.payload.tolist()

    def numpy(self, **options: Any) -> Any:
        raise TypeError(f"NumPy cannot read a tensor on {LAZY}.")


def away(x: Any) -> Any:
    return Away(x) if isinstance(x, torch.Tensor) and not isinstance(x, Away) else x


def here(x: Any) -> Any:
    return x.payload if isinstance(x, Away) else x


def computed(func: Any, args: tuple, kwargs: dict) -> Any:
    """Do an operation, or refuse it as a real device would."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    theirs = [x for x in tensors if isinstance(x, Away)]
    ours = [x for x in tensors if not isinstance(x, Away)]
    if func is aten._has_compatible_shallow_copy_type.default:  # called by Module.to
        return not (theirs and ours)
    if func in (aten.to.other, aten.to.device, aten.to.dtype_layout):
        return moved(func, args, kwargs)
    given = {a.name: x for a, x in zip(func._schema.arguments, args)} | kwargs
    device = given.get("device")
    there = bool(theirs) if device is None else torch.device(device).type == LAZY.type
    if func in INDEXED:  # indices may be on the CPU
        ours = [x for x in ours if x is given.get("values")]
    if theirs and any(x.ndim for x in ours) and func not in COPIES:
        raise RuntimeError(f"{func}: some tensors are on {LAZY} and some on {CPU}.")
    if theirs and func in INDEXED and not isinstance(args[0], Away):
        raise RuntimeError(f"{func}: a tensor on {CPU} is indexed by one on {LAZY}.")
    if there and isinstance(given.get("generator"), torch.Generator):
        raise RuntimeError(f"{func}: the generator is on {CPU}, the numbers shall be on {LAZY}.")
    if device is not None:
        args, kwargs = (), {**given, "device": CPU} if there else given
    out = func(*tree_map(here, args), **tree_map(here, kwargs))
    if func is aten._local_scalar_dense.default or not isinstance(out, (torch.Tensor, tuple, list)):
        return out
    written = [
        x
        for a, x in zip(func._schema.arguments, args)
        if a.alias_info is not None and a.alias_info.is_write
    ]
    if written and isinstance(out, torch.Tensor):
        return written[0]
    if not there:
        return out
    # A view of a normal tensor is a normal tensor, even in the host's inference mode.
    is_view = any(a.alias_info is not None for a in func._schema.returns)
    normal = is_view and not theirs[0].is_inference()
    with torch.inference_mode(False) if normal else nullcontext():
        return tree_map(away, out)


def moved(func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
    """`Tensor.to`, which inference mode does not decompose into other operations."""
    given = {a.name: x for a, x in zip(func._schema.arguments, args)} | kwargs
    tensor, like = args[0], given.get("other")
    device, dtype = (
        getattr(like, name) if like is not None else given.get(name) for name in ("device", "dtype")
    )
    device = tensor.device if device is None else torch.device(device)
    dtype = dtype or tensor.dtype
    if (device.type, dtype) == (tensor.device.type, tensor.dtype) and not given.get("copy"):
        return tensor
    return computed(aten._to_copy.default, (tensor,), {"dtype": dtype, "device": device})


class Operations(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        return computed(func, args, kwargs or {})


class Calls(TorchFunctionMode):
    """The few functions that use a device without being dispatched as an operation."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is torch.Tensor.__getitem__:
            args = (args[0], as_tensors(args[1]))
        if func is torch.Tensor.__setitem__:
            given = args[2]
            if isinstance(args[0], Away) and isinstance(given, (bool, int, float)):
                given = torch.tensor(given, dtype=args[0].dtype)
            args = (args[0], as_tensors(args[1]), given)
        return func(*args, **kwargs)


def as_tensors(index: Any) -> Any:
    """The index with its lists turned into tensors."""
    if isinstance(index, tuple):
        return tuple(map(as_tensors, index))
    return torch.tensor(index) if isinstance(index, list) else index


@contextmanager
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Make the host take LAZY for its GPU, with the CPU's memory and dtypes."""
    import comfy.model_management as management

    def of_cpu(name: str) -> Any:
        """The host's function, called for the CPU when it is asked about LAZY."""
        ask = getattr(management, name)

        def asked(*args: Any, **kwargs: Any) -> Any:
            return ask(*tree_map(cpu, args), **tree_map(cpu, kwargs))

        return asked

    def cpu(x: Any) -> Any:
        return CPU if x == LAZY else x

    with monkeypatch.context() as patch:
        for name in ("get_free_memory", "get_total_memory", "unet_dtype", "unet_manual_cast"):
            patch.setattr(management, name, of_cpu(name))
        for name in ("should_use_fp16", "should_use_bf16", "soft_empty_cache"):
            patch.setattr(management, name, lambda *args, **kwargs: False)
        for name in ("get_torch_device", "text_encoder_device", "vae_device"):
            patch.setattr(management, name, lambda: LAZY)
        for name in ("unet_inital_load_device", "unet_offload_device"):
            patch.setattr(management, name, lambda *args: CPU)
        patch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
        with Operations(), Calls():
            try:
                yield LAZY
            finally:
                management.unload_all_models()
