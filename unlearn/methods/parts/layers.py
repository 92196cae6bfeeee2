"""What prompts put into the feed-forward layers of a text encoder, layer by layer, side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...core.lockstep import Lockstep
from ...core.model import TextModel
from .layer_ends import Place, entered, hidden, with_hidden

Change = tuple[torch.Tensor, torch.Tensor]
"""(up, down): what is added to a weight is up @ down."""

CHANNELS = 16


@dataclass
class Waiting:
    """What one batch of prompts has at a place. All of it has one row or more for each prompt."""

    after: torch.Tensor
    """(N, tokens, width): the hidden states after the layer; at an inner place behind its
    attention."""
    inputs: torch.Tensor | None
    """(N, tokens, width in): what goes into the linear layer. None where no change is carried."""
    normed: torch.Tensor | None
    """(N, tokens, width): what goes into the norm behind it. None: no norm, or as `inputs`."""
    entering: torch.Tensor | None
    """(N, tokens, CHANNELS): of the hidden states before the layer so much as tells tokens apart,
    at the first layer of a stack."""

    def changed(self, place: Place, change: Change) -> torch.Tensor:
        """The hidden states after the layer with the change in its linear layer."""
        return self.after + self.gain(place, change).to(self.after)

    def gain(self, place: Place, change: Change) -> torch.Tensor:
        """What the change adds to the hidden states, float32."""
        up, down = change
        assert self.inputs is not None  # a batch that carries changes has them
        gain = self.inputs.float() @ down.float().T @ up.float().T
        if place.norm is not None:
            # Through the norm itself. Where the layer ends with it, its old output cancels out.
            old, new = self.normed, self.normed + gain.to(self.normed)
            gain = place.norm.forward(new).float() - place.norm.forward(old).float()
        return gain


Solve = Callable[[Place, list[Waiting]], Sequence[Change | None]]
"""From the batches at a place to the change of the linear layer with which each goes on."""


def walk(
    model: TextModel,
    batches: Sequence[Sequence[str]],
    places: Sequence[Place],
    solve: Solve,
    still: Collection[int] = (),
) -> None:
    """Read all batches, each layer of all of them before the next.

    places: of `layer_ends.places`. still: the numbers of batches that go on without any change, so
    that less of them is kept. Raises what `solve` raises.
    """
    lockstep = Lockstep()
    with ExitStack() as stack:
        for place in places:
            stack.enter_context(_waiting(lockstep, place, still))
        lockstep.run([partial(model.read, some) for some in batches], solve)


@contextmanager
def changed(
    places: Sequence[Place], deltas: Mapping[str, Mapping[str, torch.Tensor]]
) -> Iterator[None]:
    """The text encoder with changes that were solved for. deltas: an erasure's, by place.key."""

    def adds(up: torch.Tensor, down: torch.Tensor) -> Callable[..., torch.Tensor]:
        def add(linear: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            x = args[0].float()
            return output + (x @ down.to(x.device).T @ up.to(x.device).T).to(output)

        return add

    with ExitStack() as stack:
        for place in places:
            own = deltas[place.key]
            hook = adds(own["lora_up"], own["lora_down"])
            stack.callback(place.linear.register_forward_hook(hook).remove)
        yield


@contextmanager
def _waiting(lockstep: Lockstep, place: Place, still: Collection[int]) -> Iterator[None]:
    noted: dict[tuple[int, str], torch.Tensor] = {}

    def note(what: str, x: torch.Tensor) -> None:
        noted[lockstep.number, what] = x.clone()  # the host may write into its activations later

    def enter(layer: torch.nn.Module, args: tuple, named: dict) -> None:
        states = entered(args, named)
        if place.first:
            note("entering", states[..., :CHANNELS])
        if place.inner:
            note("states", states)

    def read(linear: torch.nn.Module, args: tuple) -> None:
        if lockstep.number not in still:
            note("inputs", args[0])

    def norm(norm: torch.nn.Module, args: tuple) -> None:
        if lockstep.number not in still:
            note("normed", args[0])

    def stop(after: torch.Tensor) -> tuple[Waiting, Change | None]:
        names = ("inputs", "normed", "entering")
        own = Waiting(after, *(noted.pop((lockstep.number, what), None) for what in names))
        return own, lockstep.stop(place, own)

    def wait(layer: torch.nn.Module, args: tuple, output: Any) -> Any:
        own, change = stop(hidden(output))
        return None if change is None else with_hidden(output, own.changed(place, change))

    def wait_inside(linear: torch.nn.Module, args: tuple, output: torch.Tensor) -> Any:
        own, change = stop(noted.pop((lockstep.number, "states")) + output)
        return None if change is None else output + own.gain(place, change).to(output)

    hooks = [place.linear.register_forward_pre_hook(read)]
    if place.inner:
        hooks.append(place.linear.register_forward_hook(wait_inside))
    else:
        hooks.append(place.layer.register_forward_hook(wait))
    if place.norm is not None:
        hooks.append(place.norm.register_forward_pre_hook(norm))
    if place.first or place.inner:
        hooks.append(place.layer.register_forward_pre_hook(enter, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
