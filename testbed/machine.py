"""The machine that figures were measured on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine() -> str:
    """The machine in words: processor, cores, GPU, versions."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        name = platform.processor() or platform.machine()
        info = Path("/proc/cpuinfo")
        if info.exists():
            line = next(
                (x for x in info.read_text().splitlines() if x.startswith("model name")), ""
            )
            name = line.partition(":")[2].strip() or name
    return (
        f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}"
    )
