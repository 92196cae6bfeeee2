"""The peak memory of a case: of the process, or of a GPU by its driver's counter."""

from __future__ import annotations

import threading

import psutil
import torch

from unlearn.core.peak_memory import PeakMemory


class DriverMemory:
    """`peak_mb` inside the block: of the process on a CPU, and of PyTorch's tensors on a GPU.

    polls: on a GPU also `driver_mb`, all that the driver counts as taken, looked up every
    hundredth of a second: with what the allocator keeps and with what kernels take for themselves.
    """

    EVERY = 0.01  # seconds

    def __init__(self, device: torch.device, polls: bool = True) -> None:
        self.device = device
        self.polls = polls and device.type == "cuda"
        self._memory = PeakMemory(device)
        self._over = threading.Event()
        self._driver = 0

    def _poll(self) -> None:
        while not self._over.is_set():
            free, total = torch.cuda.mem_get_info(self.device)
            self._driver = max(self._driver, total - free)
            self._over.wait(self.EVERY)

    def __enter__(self) -> DriverMemory:
        self._memory.__enter__()
        if self.polls:
            self._thread = threading.Thread(target=self._poll, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._memory.__exit__(*error)
        if self.polls:
            self._over.set()
            self._thread.join()

    def row(self) -> dict[str, int]:
        found = {"peak_mb": self._memory.peak >> 20, "base_mb": self._memory.base >> 20}
        return found | ({"driver_mb": self._driver >> 20} if self.polls else {})


def free_gib() -> float:
    """GiB of memory that a new process can take: of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] / 2**30
    return psutil.virtual_memory().available / 2**30
