"""Training through ComfyUI's modules without touching a weight of them.

The host's weights are inference tensors, shared by every branch of the graph. Nothing here writes
to them: for the duration of a `with` block frozen weights are read through aliases that autograd
may keep, edited ones through the host's own weight functions, and everything is put back
afterwards, also after an error or a cancel.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import partial

import torch
from comfy.model_patcher import ModelPatcher
from torch.utils._pytree import tree_flatten, tree_unflatten

from ...unlearn.core.edit import Edit


@contextmanager
def aliased(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Replace each parameter, buffer and cached tensor by a normal one on the same storage.

    An inference tensor cannot be saved for a backward pass, and neither can one that was made as
    such and moved since. Its alias can, costs no memory, and takes no gradient. What is replaced is
    put back if anybody else still holds it. It is not held here: where the host moves the model,
    short of memory, its old place must become free. Quantised tensors are, since the host can do
    less with those made outside of inference mode.
    """
    replaced: list[tuple[dict, str, Callable[[], torch.Tensor | None], torch.Tensor]] = []
    aliases: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # id: the tensor and its alias
    try:
        for root in modules:
            for module in root.modules():
                # Tensors that are neither are caches: Jina CLIP keeps its rotations.
                for table in (module._parameters, module._buffers, vars(module)):
                    for name, tensor in table.items():
                        if not isinstance(tensor, torch.Tensor) or _can_be_saved(tensor):
                            continue
                        if id(tensor) not in aliases:
                            alias = _alias(tensor)
                            if isinstance(tensor, torch.nn.Parameter):
                                alias = torch.nn.Parameter(alias, requires_grad=False)
                            aliases[id(tensor)] = tensor, alias
                        alias = aliases[id(tensor)][1]
                        hold = _held if is_quantised(tensor) else weakref.ref
                        replaced.append((table, name, hold(tensor), alias))
                        table[name] = alias
        tensor = None  # nor by this name
        aliases.clear()
        yield
    finally:
        for table, name, original, alias in reversed(replaced):
            tensor = original()
            # Short of memory, the host may have moved the model, alias and all, or put a tensor of
            # its own here: then what it has now is what it counts on.
            if tensor is not None and table[name] is alias and _same_memory(alias, tensor):
                table[name] = tensor


def _can_be_saved(tensor: torch.Tensor) -> bool:
    """Whether autograd can keep a tensor for a backward pass: it has a version to be checked."""
    try:
        return not tensor.is_inference() and tensor._version >= 0
    except RuntimeError:
        return False


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    if is_quantised(tensor):
        names, context = tensor.__tensor_flatten__()
        parts = {name: _alias(getattr(tensor, name)) for name in names}
        shape, stride = tensor.size(), tensor.stride()
        return type(tensor).__tensor_unflatten__(parts, context, shape, stride)
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def _held(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    names, _ = tensor.__tensor_flatten__()  # which also gives it the attributes that it names
    return [getattr(tensor, name) for name in names]


def _same_memory(alias: torch.Tensor, tensor: torch.Tensor) -> bool:
    if is_quantised(tensor):
        # Its scales may be copies; what is moved is moved with all its parts.
        return any(map(_same_memory, _parts(alias), _parts(tensor)))
    places = {(t.device, t.untyped_storage().data_ptr()) for t in (alias, tensor)}
    return len(places) == 1


def is_quantised(weight: torch.Tensor) -> bool:
    """Whether a weight is several tensors that pass as one, as the host keeps scaled fp8 and
    fp4."""
    return hasattr(weight, "__tensor_flatten__")


@contextmanager
def edited(patcher: ModelPatcher, root: torch.nn.Module, edit: Edit, prefix: str) -> Iterator[None]:
    """Let every use of a weight under `root` that `edit` changes go through `edit.changed`.

    The edit's keys are the weights' names in the patcher's model, and under `root` behind `prefix`.
    Of the host's own layers (comfy.ops) the `weight_function` and `bias_function` lists are used,
    which the host makes anew, from the patcher's wrappers, whenever it loads the model; other
    modules, such as the norms of T5 and Llama, are given the changed weight while they run.
    """
    added: list[tuple[torch.nn.Module, str, list, Callable]] = []
    wrappers, before = patcher.weight_wrapper_patches, dict(patcher.weight_wrapper_patches)
    hooks = ExitStack()
    try:
        for key in edit.deltas:
            path, _, name = key.removeprefix(prefix).rpartition(".")
            module = root.get_submodule(path)
            slot = f"{name}_function"
            if not hasattr(module, slot):
                parent = root.get_submodule(path.rpartition(".")[0])
                hooks.enter_context(_changed_while_it_runs(parent, module, name, edit, key))
                continue
            theirs, function = getattr(module, slot), partial(edit.changed, key)
            # A list of its own: the host's default is one list for the whole class.
            added.append((module, slot, theirs, function))
            setattr(module, slot, [*theirs, function])
            wrappers[key] = [*before.get(key, []), function]
        yield
    finally:
        hooks.close()
        wrappers.clear()
        wrappers.update(before)
        for module, slot, theirs, function in reversed(added):
            now = getattr(module, slot)
            # The host may have added to it what it does to a weight that it moved to the CPU.
            left = [f for f in now if f is not function]
            setattr(module, slot, theirs if left == theirs else left)


@contextmanager
def _changed_while_it_runs(
    parent: torch.nn.Module, module: torch.nn.Module, name: str, edit: Edit, key: str
) -> Iterator[None]:
    """Give a module the changed weight while it runs, or while one beside it does that is handed
    it: newer hosts' feed-forward layers read the weight of the norm before them themselves."""
    table, own = module._parameters, []

    def change(running: torch.nn.Module, inputs: tuple, named: dict) -> None:
        if running is module or _is_handed(module, inputs, named):
            own.append(table[name])
            if len(own) == 1:  # else it is changed already
                table[name] = edit.changed(key, own[0])

    def restore(running: torch.nn.Module, inputs: tuple, named: dict, output) -> None:
        if own and (running is module or _is_handed(module, inputs, named)):
            table[name] = own.pop()

    hooks = [
        hook
        for child in {module, *parent.children()}
        for hook in (
            child.register_forward_pre_hook(change, with_kwargs=True),
            child.register_forward_hook(restore, with_kwargs=True, always_call=True),
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _is_handed(module: torch.nn.Module, inputs: tuple, named: dict) -> bool:
    return any(value is module for value in (*inputs, *named.values()))


@contextmanager
def checkpointed(modules: Iterable[torch.nn.Module], on: bool = True) -> Iterator[None]:
    """Keep only the inputs of each block for the backward pass and compute the rest again there."""
    patched: list[tuple[torch.nn.Module, object]] = []
    try:
        for root in modules if on else ():
            for block in blocks(root):
                patched.append((block, vars(block).get("forward")))
                block.forward = _recomputed(block, block.forward)
        yield
    finally:
        for block, before in reversed(patched):
            del block.forward  # the class's own shows through again
            if before is not None:  # another extension's
                block.forward = before


def _recomputed(block: torch.nn.Module, forward):
    # Every block of UMT5 makes a position bias of its own and is handed the last one's for nothing:
    # 33 MB a prompt and block, which need not be kept.
    makes_bias = any(
        getattr(module, "relative_attention_bias", None) is not None for module in block.modules()
    )

    def run(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if makes_bias and len(args) > 2:
            args = (*args[:2], None, *args[3:])
        # The host's options are a dict that all blocks share: it goes through as it is.
        leaves, structure = tree_flatten(
            (args, kwargs), is_leaf=lambda x: x is not kwargs and isinstance(x, dict)
        )
        # Where tensors are: leaves, and fields of dataclasses (Flux 2 passes its modulation so).
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
                # Some blocks write into their input; the second time it must still be what it was.
                tensor = tensor.clone() if tensor.is_floating_point() else tensor
                values[i] = tensor if name is None else replace(values[i], **{name: tensor})
            args, kwargs = tree_unflatten(values, structure)
            return forward(*args, **kwargs)

        # Autograd asks for a gradient only where an input needs one; the trained weights of a block
        # are none of its inputs.
        trained = any(getattr(m, "weight_function", None) for m in block.modules())
        trigger = torch.empty(0, requires_grad=True) if trained else None
        tensors = (leaves[i] if name is None else getattr(leaves[i], name) for i, name in places)
        return _Recompute.apply(again, trigger, *tensors)

    return run


class _Recompute(torch.autograd.Function):
    """A block of which only the inputs are kept; the backward pass computes the rest again.

    torch.utils.checkpoint will not do: it keeps what it recomputes without a copy, the host's
    blocks write into it (x += attention(x)), and the gradients would be wrong without a word. Here
    the second computation is a graph as any other, under the same allow_mutation_on_saved_tensors.
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
    """The largest members of the lists that a network is built of: its residual and attention
    blocks."""
    containers = (torch.nn.ModuleList, torch.nn.Sequential)
    for child in root.children():
        if isinstance(root, containers) and not isinstance(child, containers):
            if next(child.parameters(), None) is not None:
                yield child
        else:
            yield from blocks(child)
