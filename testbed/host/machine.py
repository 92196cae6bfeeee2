"""Describes the machines that figures were measured on."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterable
from pathlib import Path


def machine() -> str:
    """This machine as text: processor or GPU, cores, versions."""
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


def measured_on(rows: Iterable[dict], how: str = "") -> str:
    """The last line of a page: the machines in its rows, with the number of rows of each."""
    counts = Counter(row["machine"] for row in rows)
    if len(counts) == 1:
        return f"Measured on {next(iter(counts))}{how}."
    told = (f"{name} ({count} of {counts.total()} rows)" for name, count in counts.most_common())
    return f"Measured on {'; '.join(told)}{how}."
