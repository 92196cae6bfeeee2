"""Edit: trainable deltas on the weights of a model. The weights themselves never change."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..files import state_checks
from .gradient_projection import Projection, project_gradients

if TYPE_CHECKING:
    from .erasure import Erasure


def rank_of(key: str, shape: Sequence[int], rank: int) -> int:
    """The rank of the delta of a weight; 0: it is a full tensor.

    A vector (a bias, a norm's weight) has no low-rank form, and of a small matrix it saves nothing.
    GPT-OSS stacks its experts' biases as a matrix, and ComfyUI takes no LoRA of a bias.
    """
    is_matrix = len(shape) > 1 and not key.endswith(".bias")
    return rank if is_matrix and rank < min(shape[0], math.prod(shape[1:])) else 0


def trained_values(
    weights: Mapping[str, torch.Tensor], rank: int, rows: Mapping[str, slice] | None = None
) -> int:
    """How many numbers an Edit of these weights trains. rows: as for the Edit."""
    total = 0
    for key, weight in weights.items():
        shape = trained_shape(weight.shape, (rows or {}).get(key))
        count, columns = shape[0], math.prod(shape[1:])
        total += rank_of(key, shape, rank) * (count + columns) or count * columns
    return total


def trained_shape(shape: Sequence[int], rows: slice | None) -> tuple[int, ...]:
    """The shape of what is trained of a weight. rows: those that are; None: all."""
    return tuple(shape) if rows is None else (rows.stop - rows.start, *shape[1:])


class Delta:
    """The change of one weight: a full tensor, or a low-rank product `up @ down`.

    A weight of any shape is treated as a matrix: its first dimension by all the others. rows: those
    that are trained, where it is not all of them; the change of the others is zero.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        rank: int,
        generator: torch.Generator,
        device: torch.device | None = None,
        rows: slice | None = None,
    ) -> None:
        self.whole, self.rows, device = weight.shape, rows, device or weight.device
        self.shape = trained_shape(weight.shape, rows)
        columns = math.prod(self.shape[1:])
        self.scale = spectral_scale(weight, rows)
        if rank := rank_of("", self.shape, rank):
            down = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
            self.down = down.to(device).requires_grad_()
            self.up = torch.zeros(self.shape[0], rank, device=device).requires_grad_()
            self.full = None
        else:
            self.full = torch.zeros(self.shape, device=device).requires_grad_()

    def parameters(self) -> list[torch.Tensor]:
        return [self.full] if self.full is not None else [self.up, self.down]

    def value(self) -> torch.Tensor:
        """The change as one tensor, float32, in the weight's shape."""
        part = self.full if self.full is not None else (self.up @ self.down).view(self.shape)
        return self.in_place(part)

    def in_place(self, part: torch.Tensor) -> torch.Tensor:
        """What is trained, between rows of zeros for what is not."""
        if self.rows is None:
            return part
        after = self.whole[0] - self.rows.stop
        return F.pad(part, [0, 0] * (part.ndim - 1) + [self.rows.start, after])

    def part_of(self, weight: torch.Tensor) -> torch.Tensor:
        """Those rows of a weight that are trained."""
        return weight if self.rows is None else weight[self.rows]

    @torch.no_grad()
    def assign(self, value: torch.Tensor) -> None:
        """Set the change to `value`, in the weight's shape; rows that are not trained stay zero.
        A low-rank delta takes the nearest one of its rank."""
        value = self.part_of(value)
        if self.full is not None:
            self.full.copy_(value)
        else:
            rank = self.down.shape[0]
            u, s, vh = torch.linalg.svd(value.float().flatten(1), full_matrices=False)
            root = s[:rank].sqrt()
            self.up.copy_(u[:, :rank] * root)
            self.down.copy_(root[:, None] * vh[:rank])
        for parameter in self.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def tensors(self, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        """Copies on the CPU for an Erasure: {"diff"} or {"lora_up", "lora_down"}."""
        if self.full is not None:
            parts = {"diff": self.in_place(self.full)}
        else:
            parts = {"lora_up": self.in_place(self.up), "lora_down": self.down}
        return {name: part.detach().to("cpu", dtype, copy=True) for name, part in parts.items()}


def spectral_scale(weight: torch.Tensor, rows: slice | None = None) -> float:
    """The learning rate at which one Adam step has the spectral norm of `weight` itself.

    Adam moves every element by about the learning rate, and its first steps all point in one
    direction: a rank-one matrix of spectral norm lr * sqrt(m n). A random m x n matrix of root mean
    square s has a spectral norm near s (sqrt(m) + sqrt(n)). The two are equal at
    lr = s (1/sqrt(m) + 1/sqrt(n)). A rate relative to this value suits encoders of every width.
    rows: those of the weight that are meant, where it is not all of them.
    """
    values = weight.detach().float()
    values = values if rows is None else values[rows]
    rms = values.square().mean().sqrt().item()
    if len(values.shape) < 2:
        return max(rms, 1e-3)
    count, columns = values.shape[0], math.prod(values.shape[1:])
    return max(rms, 1e-3) * (count**-0.5 + columns**-0.5)


# Gradients inside a half-precision network are multiplied by this, or small ones become zero.
HALF_GRADIENT_SCALE = 2.0**12


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.factor, None


def scale_gradient(x: torch.Tensor, factor: float) -> torch.Tensor:
    """x unchanged; its gradient is multiplied by `factor` in the backward pass."""
    return x if factor == 1.0 else _ScaleGradient.apply(x, factor)


class Diverged(FloatingPointError):
    """The loss became NaN or infinite.

    deltas: the last good ones, as `Edit.tensors` gives them. history: the losses up to them.
    erasure: the method builds one of the last good deltas, so that the run is not lost.
    """

    def __init__(self, value: float, step: int, deltas: dict, history: list[float]) -> None:
        self.deltas, self.history = deltas, history
        self.erasure: Erasure | None = None
        super().__init__(
            f"The loss became {value} after step {step}; use fewer steps or a smaller rate."
        )


class Edit:
    """The deltas being trained, by ComfyUI's names of the weights they change.

    Inside `with edit.off():` the model is exactly the original, so teacher and student share one
    set of weights. A backend calls `changed(key, weight)` whenever the model uses an edited weight.
    """

    def __init__(
        self,
        weights: dict[str, torch.Tensor],
        rank: int,
        seed: int = 0,
        device: torch.device | None = None,
        rows: Mapping[str, slice] | None = None,
    ) -> None:
        """weights: the originals by name. rank: 0 for full deltas, else the rank of low-rank ones.
        device: where to keep the deltas; None keeps each beside its weight. rows: of weights that
        are trained in part, which rows."""
        generator = torch.Generator().manual_seed(seed)
        self.weights = weights
        self.history: list[float] = []
        """The loss at each step so far."""
        self._good: dict[str, dict[str, torch.Tensor]] = {}
        self._good_at = 0
        parts = {key: (rows or {}).get(key) for key in weights}
        shapes = {key: trained_shape(weights[key].shape, part) for key, part in parts.items()}
        self.deltas = {
            key: Delta(weight, rank_of(key, shapes[key], rank), generator, device, parts[key])
            for key, weight in weights.items()
        }
        self._overflows = 0
        self._on = True
        self.gradient_scale = 1.0
        """The factor on the deltas' gradients. A backend that scales gradients up for half
        precision sets its inverse here."""
        self.kept_as: torch.dtype | None = None
        """The edited weights are rounded to this type after each step; None: they stay float32.
        Full deltas only."""
        self.after_step: Callable[[], object] = lambda: None
        """Called after each step. A backend may free what it saved for the backward pass."""

    def parameters(self) -> Iterator[torch.Tensor]:
        for delta in self.deltas.values():
            yield from delta.parameters()

    def groups(self, relative_rate: float) -> list[dict]:
        """Parameter groups for an optimiser, with a learning rate in proportion to each weight's
        size (`spectral_scale`)."""
        groups = []
        # The changes of all edited weights add up in the output.
        shared = relative_rate / math.sqrt(len(self.deltas))
        for delta in self.deltas.values():
            rate = shared * delta.scale
            if delta.full is None:
                # `down` projects an input to rank / columns of its energy; `up` makes up for it.
                rank, columns = delta.down.shape
                groups.append({"params": [delta.up], "lr": rate * columns / rank})
                groups.append({"params": [delta.down], "lr": 0.1 * shared / math.sqrt(columns)})
            else:
                groups.append({"params": [delta.full], "lr": rate})
        return groups

    def adam(
        self, betas: tuple[float, float], eps: float, rate: float = 0.0, relative_rate: float = 0.0
    ) -> torch.optim.Adam:
        """Adam on the deltas, at one absolute `rate` or at a `relative_rate` (see `groups`).

        It is fused where torch can: the other forms need temporary copies as large as the deltas.
        """
        parameters = self.groups(relative_rate) if relative_rate else self.parameters()
        devices = {parameter.device.type for parameter in self.parameters()}
        return torch.optim.Adam(
            parameters, rate, betas=betas, eps=eps, fused=devices <= {"cpu", "cuda"}
        )

    def changed(self, key: str, weight: torch.Tensor) -> torch.Tensor:
        """The weight of the edited model: `weight` plus its delta. Inside `off`, `weight` alone."""
        if not self._on:
            return weight
        # The gradient is converted to float32 first and scaled down then, so nothing is lost.
        return weight + scale_gradient(self.deltas[key].value(), self.gradient_scale).to(weight)

    def step(
        self,
        optimiser: torch.optim.Optimizer,
        loss: torch.Tensor,
        weight_decay: float = 0.0,
        keep: torch.Tensor | None = None,
        projection: Projection = "off",
        clip: float = 0.0,
    ) -> float:
        """Take one step of the optimiser to lower the loss; returns the loss's value.

        keep: a retention loss that the step should not raise. `projection` removes the part of the
        gradient that would (gradient_projection.py). clip > 0: the largest norm of each gradient.

        A gradient that overflowed, as it may in half precision, is skipped. Raises Diverged, with
        the deltas of an earlier step, when the loss is not finite or OVERFLOWS gradients in a row
        were not.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged(value)
        if len(self.history) % KEEP_EVERY == 1:
            # float16, as in a file: half the memory.
            self._good, self._good_at = self.tensors(torch.float16), len(self.history)
        optimiser.zero_grad()
        if keep is None or projection == "off":
            loss.backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(list(self.parameters()), clip)
        else:
            self._backward_keeping(loss, keep, projection, clip)
        if self._overflowed():
            self._overflows += 1
            if self._overflows == OVERFLOWS:
                raise self._diverged(math.nan)
            # Zero and not None: `tensors` leaves out weights whose gradient is None.
            optimiser.zero_grad(set_to_none=False)
        else:
            self._overflows = 0
            if weight_decay:
                self._decay(weight_decay)
            optimiser.step()
            if self.kept_as is not None:
                self._round(self.kept_as)
        self.history.append(value)
        self.after_step()
        return value

    def _diverged(self, value: float) -> Diverged:
        return Diverged(value, len(self.history), self._good, self.history[: self._good_at])

    def _overflowed(self) -> bool:
        found = [p.grad for p in self.parameters() if p.grad is not None]
        return bool(found) and not torch.stack(torch._foreach_norm(found)).isfinite().all()

    def _backward_keeping(
        self, loss: torch.Tensor, keep: torch.Tensor, projection: Projection, clip: float
    ) -> None:
        erasing = self._gradients(loss, retain=True)
        keeping = self._gradients(keep, retain=False)
        projected = project_gradients(erasing, keeping, projection, clip)
        for parameter, gradient in zip(self.parameters(), projected):
            parameter.grad = gradient

    def _gradients(self, loss: torch.Tensor, retain: bool) -> list[torch.Tensor | None]:
        """The gradient of each parameter. By `backward`, since torch.autograd.grad does not see
        the weights inside a checkpointed block."""
        parameters = list(self.parameters())
        for parameter in parameters:
            parameter.grad = None
        loss.backward(retain_graph=retain)
        return [parameter.grad for parameter in parameters]

    def _decay(self, rate: float) -> None:
        """Add rate * weight to each gradient (Adam's L2 form), where weight is the edited one.

        For full deltas only: a low-rank delta has no gradient of the weight itself.
        """
        for key, delta in self.deltas.items():
            if delta.full is not None and delta.full.grad is not None:
                weight = delta.part_of(self.weights[key].to(delta.full))
                delta.full.grad.add_((weight + delta.full.detach()) * rate)

    @torch.no_grad()
    def shrink(self, share: float) -> None:
        """AdamW's weight decay: multiply each edited weight by (1 - share). Full deltas only."""
        for key, delta in self.deltas.items():
            if delta.full is not None:
                weight = delta.part_of(self.weights[key].to(delta.full))
                delta.full.sub_((weight + delta.full) * share)

    @torch.no_grad()
    def _round(self, dtype: torch.dtype) -> None:
        """Each edited weight as a training whose weights are of this type would have it."""
        for key, delta in self.deltas.items():
            if delta.full is not None:
                weight = delta.part_of(self.weights[key].to(delta.full)).to(dtype).float()
                delta.full.copy_((weight + delta.full).to(dtype).float() - weight)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside the block the model is the original, and no gradients are recorded."""
        before, self._on = self._on, False
        try:
            with torch.no_grad():
                yield
        finally:
            self._on = before

    def state(self) -> dict:
        """The state to save, for `restore`."""
        return {
            "parameters": [parameter.detach().cpu() for parameter in self.parameters()],
            "read": [parameter.grad is not None for parameter in self.parameters()],
            "history": list(self.history),
        }

    def check(self, state) -> None:
        """Raises Misfit unless `state` is that of an edit of the same weights and rank."""
        state_checks.check_names(state, ("parameters", "read", "history"), "edit")
        own = list(self.parameters())
        for name in ("parameters", "read"):
            saved = state[name]
            is_whole = isinstance(saved, list) and len(saved) == len(own)
            state_checks.check(is_whole, "it changes other weights")
        for saved, read, parameter in zip(state["parameters"], state["read"], own):
            state_checks.check_like(saved, parameter, "edit")
            state_checks.check(isinstance(read, bool), "it changes other weights")
        state_checks.check_numbers(state["history"], "history", sys.maxsize)

    def restore(self, state: dict) -> None:
        """Continue from a saved state that passed `check`."""
        with torch.no_grad():
            for parameter, saved, read in zip(
                self.parameters(), state["parameters"], state["read"], strict=True
            ):
                parameter.copy_(saved)
                parameter.grad = torch.zeros_like(parameter) if read else None
        self.history[:] = state["history"]
        self._good, self._good_at = self.tensors(torch.float16), len(self.history)

    def tensors(self, dtype: torch.dtype = torch.float32) -> dict[str, dict[str, torch.Tensor]]:
        """Copies of the deltas on the CPU, for an `Erasure`.

        Deltas without a gradient are left out: the model does not use their weights.
        """
        return {
            key: delta.tensors(dtype)
            for key, delta in self.deltas.items()
            if any(p.grad is not None for p in delta.parameters())
        }


OVERFLOWS = 8  # this many gradients in a row that are not finite end a run
KEEP_EVERY = 10  # steps between copies of the deltas, in case the loss becomes NaN
