"""Less memory for a backward pass: blocks that keep their inputs alone and are computed again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten


@contextmanager
def checkpointed(modules: Iterable[torch.nn.Module], on: bool = True) -> Iterator[None]:
    """Keep only the inputs of each block; the backward pass computes the rest again."""
    patched: list[tuple[torch.nn.Module, object]] = []
    try:
        for root in modules if on else ():
            for block in blocks(root):
                patched.append((block, vars(block).get("forward")))
                block.forward = _recomputed(block, block.forward)
        yield
    finally:
        for block, before in reversed(patched):
            del block.forward  # uncovers the method of the class
            if before is not None:  # another extension had set one
                block.forward = before


def _recomputed(block: torch.nn.Module, forward):
    # Every block of UMT5 computes its own position bias and ignores the one it is given. Dropping
    # that argument saves 33 MB for each prompt and block.
    makes_bias = any(
        getattr(module, "relative_attention_bias", None) is not None for module in block.modules()
    )

    def run(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if makes_bias and len(args) > 2:
            args = (*args[:2], None, *args[3:])
        # Dicts are passed on as they are: the host's options are one dict shared by all blocks.
        leaves, structure = tree_flatten(
            (args, kwargs), is_leaf=lambda x: x is not kwargs and isinstance(x, dict)
        )
        # Tensors are leaves, or fields of dataclasses (Flux 2 passes its modulation that way).
        places = [(i, None) for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        places += [
            (i, field.name)
            for i, leaf in enumerate(leaves)
            if is_dataclass(leaf)
            for field in fields(leaf)
            if isinstance(getattr(leaf, field.name), torch.Tensor)
        ]

        def again(tensors: Sequence[torch.Tensor]):
            values = list(leaves)
            for (i, name), tensor in zip(places, tensors):
                # Some blocks write into their input, and it is needed again for the second pass.
                tensor = tensor.clone() if tensor.is_floating_point() else tensor
                values[i] = tensor if name is None else replace(values[i], **{name: tensor})
            args, kwargs = tree_unflatten(values, structure)
            return forward(*args, **kwargs)

        # Autograd calls backward only if an input needs a gradient. A block's trained weights are
        # not among its inputs, so an empty tensor stands for them.
        trained = any(getattr(m, "weight_function", None) for m in block.modules())
        trigger = torch.empty(0, requires_grad=True) if trained else None
        tensors = (leaves[i] if name is None else getattr(leaves[i], name) for i, name in places)
        return _Recompute.apply(again, trigger, *tensors)

    return run


class _Recompute(torch.autograd.Function):
    """A block whose inputs alone are kept; the backward pass computes the rest again.

    torch.utils.checkpoint does not work here. It keeps recomputed tensors without a copy, and the
    host's blocks write into them (x += attention(x)), so the gradients would be silently wrong.
    This function recomputes an ordinary graph, under the caller's allow_mutation_on_saved_tensors.
    """

    @staticmethod
    def forward(ctx, again, trigger, *tensors):
        ctx.again = again
        ctx.save_for_backward(*tensors)
        return again(tensors)

    @staticmethod
    def backward(ctx, *gradients):
        inputs = [
            tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[2:])
        ]
        with torch.enable_grad():
            outputs = ctx.again(inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [
            (o, g)
            for o, g in zip(outputs, gradients)
            if isinstance(o, torch.Tensor) and o.requires_grad
        ]
        if pairs:
            torch.autograd.backward(*zip(*pairs))
        return None, None, *(tensor.grad for tensor in inputs)


def blocks(root: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """A network's residual and attention blocks: the largest modules inside its module lists."""
    containers = (torch.nn.ModuleList, torch.nn.Sequential)
    for child in root.children():
        if isinstance(root, containers) and not isinstance(child, containers):
            if next(child.parameters(), None) is not None:
                yield child
        else:
            yield from blocks(child)
