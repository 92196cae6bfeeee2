"""Attention that gradients pass through, whatever kernel the host was told to use."""

from __future__ import annotations

import torch
from comfy.ldm.modules.attention import attention_pytorch

HAVE_BACKWARD = (
    "attention_basic",
    "attention_pytorch",
    "attention_split",
    "attention_sub_quad",
    "attention_xformers",
)


def differentiable(function, q: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """The host's `function` where it has a backward pass, else PyTorch's own attention.

    SageAttention and FlashAttention, as the host calls them, have none: the gradient would end
    there without a word. Sub-quadratic attention, the host's choice on a CPU, takes one and a half
    to three times as long there as PyTorch's, which in half precision is less exact on a CPU. In
    the host's form of an override (`optimized_attention_override`).
    """
    slow = q.device.type == "cpu" and q.dtype == torch.float32
    slow = slow and function.__name__ == "attention_sub_quad"
    if function.__name__ in HAVE_BACKWARD and not slow:
        try:
            return function(q, *args, **kwargs)
        except RuntimeError as error:
            # Sub-quadratic attention works in pieces where memory is short, and these have none.
            if "automatic differentiation" not in str(error):
                raise
    return attention_pytorch(q, *args, **kwargs)
