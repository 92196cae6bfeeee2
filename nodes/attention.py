"""Attention that gradients pass through, whatever kernel the host was told to use."""

from __future__ import annotations

import torch
from comfy.ldm.modules.attention import attention_pytorch

HAVE_BACKWARD = ("attention_basic", "attention_pytorch", "attention_split", "attention_xformers")


def differentiable(function, *args, **kwargs) -> torch.Tensor:
    """The host's `function` where it has a backward pass, else PyTorch's own attention.

    SageAttention and FlashAttention, as the host calls them, have none: the gradient would end
    there without a word. Sub-quadratic attention, the host's choice on a CPU, has none where memory
    is short, and elsewhere takes one and a half to three times as long. In the host's form of an
    override (`optimized_attention_override`).
    """
    chosen = function if function.__name__ in HAVE_BACKWARD else attention_pytorch
    return chosen(*args, **kwargs)
