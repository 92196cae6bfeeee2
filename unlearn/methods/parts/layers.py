"""What prompts put into the feed-forward layers of a text encoder, layer by layer, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from ...core.lockstep import Lockstep
from ...core.model import TextModel
from ...core.trainable import feed_forward_end

NOT_ADDED = (
    "This text encoder's layers do not end in a linear layer that adds to what passes through, so "
    "they cannot be changed in closed form; use Few-Shot Encoder Unlearn."
)


@dataclass(frozen=True)
class Place:
    """A layer of the text encoder, where all batches of prompts wait."""

    key: str
    """The name of the weight of the linear layer that ends its feed-forward part."""
    linear: torch.nn.Module


@dataclass
class Waiting:
    """What one batch of prompts has at a place."""

    inputs: torch.Tensor
    """(N, tokens, width in): what goes into the linear layer."""
    after: torch.Tensor
    """(N, tokens, width): the hidden states after the layer, to which its output was added."""


Solve = Callable[[Place, list[Waiting]], Sequence[torch.Tensor]]
"""From the batches at a place to what is added to the hidden states of each."""


def walk(model: TextModel, batches: Sequence[Sequence[str]], solve: Solve) -> None:
    """Encode all batches, each layer of all of them before the next.

    Raises ValueError where a layer does not end in a linear layer, or the encoder reads prompts one
    by one, and what `solve` raises.
    """
    lockstep, solved = Lockstep(), set()

    def once(place: Place, waiting: list[Waiting]) -> Sequence[torch.Tensor]:
        if place in solved:
            raise ValueError(
                "This model's text encoder reads prompts one by one, which the closed form cannot "
                "do yet; use Few-Shot Encoder Unlearn."
            )
        solved.add(place)
        return solve(place, waiting)

    with torch.no_grad():
        model.encode(batches[0][:2])  # what it finds out once about its encoder, it does now
    with ExitStack() as stack:
        for name, layer in model.encoder_layers():
            end = feed_forward_end(layer)
            if end is None:
                raise ValueError(NOT_ADDED)
            place = Place(f"{name}.{end}.weight", layer.get_submodule(end))
            stack.enter_context(_waiting(lockstep, place, layer))

        lockstep.run([partial(model.encode, some) for some in batches], once)


@contextmanager
def _waiting(lockstep: Lockstep, place: Place, layer: torch.nn.Module) -> Iterator[None]:
    passed: dict[int, torch.Tensor] = {}

    def note(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        # The host may write into its activations later.
        passed[lockstep.number] = inputs[0].clone()

    def refuse(module: torch.nn.Module, inputs: tuple) -> None:
        if lockstep.number in passed:
            raise ValueError(NOT_ADDED)

    def wait(module: torch.nn.Module, inputs: tuple, output):
        after = output[0] if isinstance(output, tuple) else output
        added = lockstep.stop(place, Waiting(passed.pop(lockstep.number), after))
        changed = after + added.to(after)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    hooks = [place.linear.register_forward_hook(note), layer.register_forward_hook(wait)]
    # Gemma's layers have a norm between the linear layer and what its output is added to.
    weighty = (one for one in layer.modules() if getattr(one, "weight", None) is not None)
    hooks += [one.register_forward_pre_hook(refuse) for one in weighty if one is not place.linear]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
