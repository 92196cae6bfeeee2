"""Attention that gradients pass through, whatever kernel the host was told to use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def differentiable_rotations() -> Iterator[None]:
    """The host's rotary embeddings by PyTorch, not by comfy_kitchen's kernels, which have no
    backward pass.

    Most of the host's networks go around these by themselves `in_training`; those of Cosmos Predict
    2, Ernie and JoyImage do not.
    """
    try:
        import comfy_kitchen as kernels
        from comfy_kitchen.backends import eager
    except ImportError:  # the host does without, and older versions do not have it
        yield
        return
    # Those with an underscore behind write into their input, which the host does not in training.
    before = {
        name: function
        for name, function in vars(kernels).items()
        if "_rope" in name and not name.endswith("_") and callable(getattr(eager, name, None))
    }
    try:
        for name in before:
            setattr(kernels, name, getattr(eager, name))
        yield
    finally:
        for name, function in before.items():
            setattr(kernels, name, function)
