"""The host's kernels that have no backward pass, changed for ones that do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.ops


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


@contextmanager
def differentiable_products() -> Iterator[None]:
    """Products in the precision that activations have, not in fp8.

    Those in fp8 fail where a gradient is wanted, and the host then takes the others: the network
    would compute otherwise with an edit than without, by a good part of what an edit changes.
    """
    before = getattr(comfy.ops, "fp8_linear", None)
    if before is None:  # a version of the host that computes none this way
        yield
        return
    comfy.ops.fp8_linear = lambda *_: None  # as for weights that are none
    try:
        yield
    finally:
        comfy.ops.fp8_linear = before
