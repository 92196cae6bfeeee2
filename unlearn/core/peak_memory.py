"""The peak memory of a run, measured, and errors that say that there was too little."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch

TOO_LITTLE = ("out of memory", "allocate memory", "not enough memory")


def is_too_little(error: BaseException) -> bool:
    """Whether an error says that the memory was not enough. Neither the CPU, which has two
    sentences for it, nor Apple's devices have an error of their own."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in TOO_LITTLE)
    )


class PeakMemory:
    """Peak memory while it is open, in bytes: of the card where `device` is one, else of the
    process. `base` is what was in use when it opened.
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
                # Sets the peak back to what is in use now; where that is not allowed, the peak is
                # that of the process's life.
                with suppress(OSError):
                    Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, *error) -> None:
        self.peak = self.now()

    def now(self) -> int:
        if self._cuda:
            return torch.cuda.max_memory_allocated()
        if sys.platform == "linux":
            lines = Path("/proc/self/status").read_text().splitlines()
            line = next(line for line in lines if line.startswith("VmHWM"))
            return int(line.split()[1]) * 1024
        info = psutil.Process().memory_info()
        return getattr(info, "peak_wset", info.rss)
