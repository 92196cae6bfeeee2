"""How the feed-forward part of each layer of a text encoder gets into its hidden states.

The closed form changes the linear layer that ends it. So it must know what a change of that layer's
output does to the hidden states: it is added to them, or it passes a norm first, alone (Gemma) or
with them (Jina CLIP). It is found out by trying: one prompt is read twice, the second time with
something added to each of these outputs.

Where experts do the feed-forward part (GPT-OSS) the linear layer that ends the attention is changed
in its place: what two prompts have alike behind the attention, the experts keep alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from ...core.model import TextModel
from ...core.trainable import attention_end, feed_forward_end
from .norm_gain import NormGain

NOT_ADDED = (
    "This text encoder's layers do not end in a linear layer that adds to what passes through, so "
    "they cannot be changed in closed form; use Few-Shot Encoder Unlearn."
)
TWICE = (
    "This text encoder passes a layer more than once for each prompt, so it cannot be changed in "
    "closed form; use Few-Shot Encoder Unlearn."
)


@dataclass(frozen=True, eq=False)
class Place:
    """A layer of the text encoder, where all batches of prompts wait."""

    key: str
    """The name of the weight of the linear layer that ends its feed-forward part."""
    layer: torch.nn.Module
    linear: torch.nn.Module
    norm: torch.nn.Module | None
    """The norm that this layer's output passes, alone or with the hidden states. None: it is added
    to them as it is."""
    gain: NormGain | None
    """What that norm does."""
    inner: bool
    """Whether it is the attention's linear layer. Prompts wait there, not behind the layer."""
    stack: str
    """The name of its stack of layers."""
    first: bool
    """Whether it is the first of its stack."""
    left: int
    """How many layers of its stack come after it, of those that are read."""
    floats: int
    """How many numbers a prompt of as many tokens keeps here."""


def places(model: TextModel, prompt: str) -> list[Place]:
    """The layers that a prompt passes, in their order.

    Raises ValueError where a layer does not end in a linear layer that adds to the hidden states.
    """
    found = []
    layers = model.encoder_layers()
    for name, layer in layers:
        own = feed_forward_end(layer)
        end = own or attention_end(layer)
        if end is None:
            raise ValueError(NOT_ADDED)
        kind = _Trial if own else _InnerTrial
        found.append(kind(f"{name}.{end}.weight", layer, layer.get_submodule(end)))
    with ExitStack() as stack, torch.no_grad():
        for trial in found:
            for hook in trial.hooks():
                stack.callback(hook.remove)
        model.read([prompt])
        for trial in found:
            trial.trying = True
        model.read([prompt])
    met = [(name, trial) for (name, _), trial in zip(layers, found) if trial.after is not None]
    stacks = [name.rpartition(".")[0] for name, _ in met]
    return [
        Place(
            trial.key,
            trial.layer,
            trial.linear,
            *trial.ending(),
            trial.inner,
            stacks[i],
            stacks[i] not in stacks[:i],
            stacks[i + 1 :].count(stacks[i]),
            trial.floats,
        )
        for i, (_, trial) in enumerate(met)
    ]


class _Trial:
    """Finds out how one layer ends."""

    inner = False

    def __init__(self, key: str, layer: torch.nn.Module, linear: torch.nn.Module) -> None:
        self.key, self.layer, self.linear = key, layer, linear
        self.trying = False
        self.after: torch.Tensor | None = None
        self.floats = 0
        self._more: torch.Tensor | None = None
        self._normed: dict[torch.nn.Module, torch.Tensor] = {}
        self._fits: list[torch.nn.Module | None] = []

    def hooks(self) -> list[torch.utils.hooks.RemovableHandle]:
        norms = (one for one in self.layer.modules() if getattr(one, "weight", None) is not None)
        return [
            self.linear.register_forward_hook(self._add),
            self.layer.register_forward_hook(self._compare),
            *(
                norm.register_forward_pre_hook(self._note)
                for norm in norms
                if not hasattr(norm, "in_features")
            ),
        ]

    def ending(self) -> tuple[torch.nn.Module | None, NormGain | None]:
        """The norm and what it does, if there is one."""
        for norm in self._fits:
            gain = None if norm is None else NormGain.of(norm, self._normed[norm])
            if norm is None or gain is not None:
                return norm, gain
        raise ValueError(NOT_ADDED)

    def _add(self, linear: torch.nn.Module, args: tuple, output: torch.Tensor):
        if not self.trying:
            size = output.float().square().mean().sqrt()
            draw = torch.Generator().manual_seed(0)
            self._more = (torch.randn(output.shape, generator=draw).to(size) * size).to(output)
            self.floats = args[0].numel() + 2 * output.numel()
            return None
        return output + self._more

    def _note(self, norm: torch.nn.Module, args: tuple) -> None:
        if self._more is not None and not self.trying and args[0].shape == self._more.shape:
            self._normed[norm] = args[0].clone()

    def _compare(self, layer: torch.nn.Module, args: tuple, output: Any) -> Any:
        found = hidden(output)
        if not self.trying:
            if self.after is not None:
                raise ValueError(TWICE)
            self.after = found.clone()
            return None
        if self._more is not None:
            self._try(found)
        return with_hidden(output, self.after)  # what follows is tried by itself

    def _try(self, found: torch.Tensor) -> None:
        for norm in (None, *self._normed):
            more = self._more
            if norm is not None:
                x = self._normed[norm]
                more = norm.forward(x + more).float() - norm.forward(x).float()
            if _is_sum(found, self.after, more):
                self._fits.append(norm)


class _InnerTrial(_Trial):
    """Finds out whether what the attention's linear layer gives is added to the hidden states: it
    is if the norm behind it reads their sum."""

    inner = True

    def hooks(self) -> list[torch.utils.hooks.RemovableHandle]:
        return [
            self.layer.register_forward_pre_hook(self._enter, with_kwargs=True),
            *super().hooks(),
        ]

    def _enter(self, layer: torch.nn.Module, args: tuple, named: dict) -> None:
        if not self.trying:
            self._entered = entered(args, named).clone()

    def _add(self, linear: torch.nn.Module, args: tuple, output: torch.Tensor):
        if not self.trying:
            self._output = output.clone()
        return super()._add(linear, args, output)

    def _note(self, norm: torch.nn.Module, args: tuple) -> None:
        super()._note(norm, args)
        before = self._normed.get(norm)
        if self.trying and before is not None:
            added = _is_sum(before, self._entered, self._output)
            if added and _is_sum(args[0], before, self._more):
                self._fits.append(None)

    def _try(self, found: torch.Tensor) -> None:
        """It is tried before the experts."""


def _is_sum(whole: torch.Tensor, one: torch.Tensor, more: torch.Tensor) -> bool:
    """But for rounding, and where `more` is not lost in it."""
    one, more = one.float(), more.float()
    rounding = torch.finfo(whole.dtype).eps * one.norm()
    return bool((whole.float() - one - more).norm() <= 0.05 * more.norm() + 2 * rounding)


def read_together(model: TextModel, prompts: Sequence[str]) -> bool:
    """Whether the text encoder reads these prompts, equally long ones, at once as each alone."""
    layers = model.encoder_layers()

    def after(some: Sequence[str]) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []

        def keep(layer: torch.nn.Module, args: tuple, output: Any) -> None:
            found.append(hidden(output).clone())

        hooks = [layer.register_forward_hook(keep) for _, layer in layers]
        try:
            with torch.no_grad():
                model.read(some)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    alone = [torch.cat(parts) for parts in zip(*(after([one]) for one in prompts))]
    try:
        together = after(prompts)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False  # what the host does behind the layers is made for one prompt
    return len(alone) == len(together) and all(
        one.shape == other.shape and (one - other).norm() <= 1e-2 * one.norm()
        for one, other in zip(alone, together)
    )


def entered(args: tuple, named: dict) -> torch.Tensor:
    """The hidden states among a layer's arguments."""
    return next(x for x in (*args, *named.values()) if torch.is_tensor(x) and x.ndim == 3)


def hidden(output: Any) -> torch.Tensor:
    """The hidden states in a layer's output."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, states: torch.Tensor) -> Any:
    """A layer's output with other hidden states."""
    return (states, *output[1:]) if isinstance(output, tuple) else states
