"""An edit inside ComfyUI's modules: whoever uses an edited weight gets its changed value.

The host's weights are inference tensors, which all branches of a graph share. Nothing here writes
to them: the changed value is computed anew at every use, and everything is put back afterwards,
also after an error or a cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from comfy.model_patcher import ModelPatcher

from ...unlearn.core.edit import Edit


@contextmanager
def edited(patcher: ModelPatcher, root: torch.nn.Module, edit: Edit, prefix: str) -> Iterator[None]:
    """Pass every use of an edited weight under `root` through `edit.changed`.

    The edit's keys are weight names in the patcher's model; without `prefix` they are names under
    `root`. The host's own layers (comfy.ops) have lists `weight_function` and `bias_function`. The
    host rebuilds these lists from the patcher's wrappers whenever it loads the model, so the
    wrappers are set as well. Other modules, such as the norms of T5 and Llama, get the changed
    weight while they run.
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
            # A new list: the host's default list is shared by all layers of the class.
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
            # The host may have added a function of its own meanwhile, for a weight on the CPU.
            left = [f for f in now if f is not function]
            setattr(module, slot, theirs if left == theirs else left)


@contextmanager
def _changed_while_it_runs(
    parent: torch.nn.Module, module: torch.nn.Module, name: str, edit: Edit, key: str
) -> Iterator[None]:
    """Give a module the changed weight while it runs.

    Also while a sibling runs that gets this module as an argument: in newer hosts a feed-forward
    layer reads the weight of the norm before it.
    """
    table, own = module._parameters, []

    def change(running: torch.nn.Module, inputs: tuple, named: dict) -> None:
        if running is module or _is_argument(module, inputs, named):
            own.append(table[name])
            if len(own) == 1:  # otherwise it is changed already
                table[name] = edit.changed(key, own[0])

    def restore(running: torch.nn.Module, inputs: tuple, named: dict, output) -> None:
        if own and (running is module or _is_argument(module, inputs, named)):
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


def _is_argument(module: torch.nn.Module, inputs: tuple, named: dict) -> bool:
    return any(value is module for value in (*inputs, *named.values()))
