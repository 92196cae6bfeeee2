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


def differentiable(function, *args, **kwargs) -> torch.Tensor:
    """The host's `function` where it has a backward pass, else PyTorch's own attention.

    SageAttention and FlashAttention, as the host calls them, have none: the gradient would end
    there without a word. In the host's form of an override (`optimized_attention_override`).
    """
    if function.__name__ in HAVE_BACKWARD:
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            # Sub-quadratic attention works in pieces where memory is short, and these have none.
            if "automatic differentiation" not in str(error):
                raise
    return attention_pytorch(*args, **kwargs)
