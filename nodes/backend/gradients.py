"""Gradients through the host's modules, none of whose weights changes or is copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management as management
import torch

from .aliasing import aliased
from .differentiable import in_one_stream, trainable_kernels
from .packed import unpacked_for_products
from .recompute import checkpointed

Part = tuple[torch.nn.Module, torch.device]
"""A module and where it computes."""


@contextmanager
def in_training(
    parts: Sequence[Part],
    encoder: torch.nn.Module,
    gradients: bool = True,
    recomputed: bool = False,
    around: Sequence[torch.nn.Module] = (),
) -> Iterator[Any]:
    """Compute as in training, in modules that are loaded; yields what autograd keeps, or None.

    `in_training` makes the host choose kernels that have a backward pass. Encoders write into
    their activations, which autograd must be allowed to survive. gradients: whether there are any;
    without them all is computed alike, in less time. recomputed: whether the backward pass computes
    activations again. around: modules that have one of the parts in them.
    """
    was_training = management.in_training
    modules = [module for module, _ in parts]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        stack.enter_context(in_one_stream())
        stack.enter_context(trainable_kernels(encoder))
        stack.enter_context(aliased((*around, *modules)))
        stack.callback(setattr, management, "in_training", was_training)
        management.in_training = True
        stack.enter_context(unpacked_for_products(parts))
        stack.enter_context(checkpointed(modules, recomputed))
        saved = None
        if gradients:  # it looks at every single operation
            saved = stack.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
        try:
            yield saved
        except BaseException:
            # What is left of a backward pass that failed, its whole graph, PyTorch holds until the
            # next one in this thread.
            with torch.enable_grad():
                torch.zeros((), requires_grad=True).backward()
            raise
