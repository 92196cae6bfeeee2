"""bfloat16 on machines where it saves time.

Graphics cards, and processors with instructions for bfloat16, take half the time or less. Other
processors, such as most in desktop computers, emulate it and take ten to sixty times as long.
"""

from __future__ import annotations

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether convolutions and products in bfloat16 take a device less time than in float32."""
    if device.type != "cpu":
        return True
    # oneDNN, which PyTorch uses on most CPUs, knows if it has bfloat16 kernels for this one.
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def fast(device: torch.device) -> torch.autocast:
    """A context that computes in bfloat16 if that is faster on the device; otherwise no change."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device))
