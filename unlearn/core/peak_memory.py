"""The peak memory of a run, what an out-of-memory error is, and how to give memory back."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch

TOO_LITTLE = ("out of memory", "allocate memory", "not enough memory")


def is_too_little(error: BaseException) -> bool:
    """Whether an error means out of memory. torch raises a plain RuntimeError for it on the CPU
    and on Apple's devices, so the text decides."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in TOO_LITTLE)
    )


class PeakMemory:
    """The peak memory inside the block, in bytes: that of the GPU if `device` is a CUDA device,
    else that of the process. `base` is the memory in use at the start, `peak` the result.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def __enter__(self) -> PeakMemory:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self.base = torch.cuda.memory_allocated()
        else:
            self.base = psutil.Process().memory_info().rss
            if sys.platform == "linux":
                # Resets the peak. Where that is not allowed, the peak is that of the whole process.
                with suppress(OSError):
                    Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, *error) -> None:
        self.peak = self.now()

    def now(self) -> int:
        """The peak so far, in bytes."""
        if self._cuda:
            return torch.cuda.max_memory_allocated()
        if sys.platform == "linux":
            lines = Path("/proc/self/status").read_text().splitlines()
            line = next(line for line in lines if line.startswith("VmHWM"))
            return int(line.split()[1]) * 1024
        info = psutil.Process().memory_info()
        return getattr(info, "peak_wset", info.rss)


def is_scarce() -> bool:
    """Whether less than a quarter of the machine's memory is left."""
    memory = psutil.virtual_memory()
    return memory.available < memory.total / 4


def give_back() -> None:
    """Return to the system what glibc holds free: without this a process keeps what one run took,
    in pieces of tens of megabytes, until it ends. Other allocators are left alone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
