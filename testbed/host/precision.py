"""bfloat16 where it saves time.

Processors with instructions for it, and graphics cards, take half the time for it and less.
Others have to emulate it, at ten to sixty times the time: most of those in desktop computers.
"""

from __future__ import annotations

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether convolutions and products in bfloat16 take a device less time than in float32."""
    if device.type != "cpu":
        return True
    # oneDNN, by which PyTorch computes on most CPUs, tells for which it has such kernels.
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def fast(device: torch.device) -> torch.autocast:
    """A context of bfloat16 on a device that computes faster in it; elsewhere nothing changes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device))
