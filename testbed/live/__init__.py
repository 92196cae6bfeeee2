"""Figures on this process's memory. As a host extension it also serves them at GET /live.

A leak may lie outside of Python: autograd's graphs are C++ objects, and Python's garbage collector
cannot see a cycle through one. `tensors` counts all tensors with a Python object, reachable or not,
since the collector lists every object that it tracks. `allocated` asks the allocator, so it also
counts what only C++ holds.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import ClassVar

import psutil
import torch


class _MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_: ClassVar = [
        ("arena", ctypes.c_size_t),
        ("ordblks", ctypes.c_size_t),
        ("smblks", ctypes.c_size_t),
        ("hblks", ctypes.c_size_t),
        ("hblkhd", ctypes.c_size_t),
        ("usmblks", ctypes.c_size_t),
        ("fsmblks", ctypes.c_size_t),
        ("uordblks", ctypes.c_size_t),
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    ]


def tensors() -> tuple[int, int]:
    """(number of tensors, bytes of their storages, each counted once), after garbage collection."""
    gc.collect()
    found = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    # Sparse tensors have no storage.
    dense = [one.untyped_storage() for one in found if one.layout is torch.strided]
    storages = {storage.data_ptr(): storage.nbytes() for storage in dense}
    return len(found), sum(storages.values())


def allocated() -> int | None:
    """Bytes that were allocated and not freed: on the card if there is one, otherwise by glibc.

    None if neither can tell.
    """
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    info = _malloc()
    return None if info is None else info.uordblks + info.hblkhd


def kept_free() -> int | None:
    """Free bytes that glibc keeps for later requests; None without glibc."""
    info = _malloc()
    return None if info is None else info.fordblks


def _malloc() -> _MallInfo | None:
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None
    if ask is None:
        return None
    ask.restype = _MallInfo
    return ask()


def told() -> dict[str, int | None]:
    count, size = tensors()
    return {
        "resident": psutil.Process().memory_info().rss,
        "allocated": allocated(),
        "kept_free": kept_free(),
        "tensors": count,
        "tensor_bytes": size,
    }


NODE_CLASS_MAPPINGS = {}

if "server" in sys.modules:  # the host's module: this runs as its extension
    from aiohttp import web
    from server import PromptServer

    if getattr(PromptServer, "instance", None) is not None:

        @PromptServer.instance.routes.get("/live")
        async def live(request: web.Request) -> web.Response:
            return web.json_response(told())
