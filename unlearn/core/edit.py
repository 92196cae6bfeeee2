"""Edit: trainable deltas on the weights of a model that otherwise stays as it is."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..files import state_checks as fitting
from .gradient_projection import Projection, project_gradients


class Delta:
    """The change of one weight: a full tensor, or the product of two thin matrices.

    A weight of any shape counts as a matrix (first dimension, all the others).
    """

    def __init__(
        self,
        weight: torch.Tensor,
        rank: int,
        generator: torch.Generator,
        device: torch.device | None = None,
    ) -> None:
        self.shape, device = weight.shape, device or weight.device
        rows, columns = weight.shape[0], math.prod(weight.shape[1:])
        self.scale = spectral_scale(weight)
        # A bias or a norm's weight has no rank to speak of.
        if rank and len(weight.shape) > 1 and rank < min(rows, columns):
            down = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
            self.down = down.to(device).requires_grad_()
            self.up = torch.zeros(rows, rank, device=device).requires_grad_()
            self.full = None
        else:
            self.full = torch.zeros(weight.shape, device=device).requires_grad_()

    def parameters(self) -> list[torch.Tensor]:
        return [self.full] if self.full is not None else [self.up, self.down]

    def value(self) -> torch.Tensor:
        """The change itself, float32, in the weight's shape."""
        return self.full if self.full is not None else (self.up @ self.down).view(self.shape)

    @torch.no_grad()
    def assign(self, value: torch.Tensor) -> None:
        """Make it this change; of a low rank, the nearest one."""
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
        """Copies for the artefact: {"diff"} or {"lora_up", "lora_down"}."""
        if self.full is not None:
            parts = {"diff": self.full}
        else:
            parts = {"lora_up": self.up, "lora_down": self.down}
        return {name: part.detach().to("cpu", dtype, copy=True) for name, part in parts.items()}


def spectral_scale(weight: torch.Tensor) -> float:
    """The size of one Adam step on `weight`, an element, that changes its output by its own
    measure.

    Adam moves every element by about the learning rate, and at first all in one direction: a
    rank-one matrix of spectral norm lr * sqrt(m n). A random m x n matrix of root mean square s has
    one near s (sqrt(m) + sqrt(n)). Their ratio, s (1/sqrt(m) + 1/sqrt(n)), is a learning rate of 1
    in relative terms, so one relative rate serves encoders of every width.
    """
    rms = weight.detach().float().square().mean().sqrt().item()
    if len(weight.shape) < 2:
        return max(rms, 1e-3)
    rows, columns = weight.shape[0], math.prod(weight.shape[1:])
    return max(rms, 1e-3) * (rows**-0.5 + columns**-0.5)


# Gradients inside a half-precision network are multiplied by this on their way through.
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
    """x itself, its gradient multiplied: half precision would lose a small gradient to zero."""
    return x if factor == 1.0 else _ScaleGradient.apply(x, factor)


class Diverged(FloatingPointError):
    """The loss became NaN or infinite. `deltas` are the last good ones, `history` their losses.

    A method adds `erasure`, so that what was won is not lost.
    """

    def __init__(self, value: float, step: int, deltas: dict, history: list[float]) -> None:
        self.deltas, self.history, self.erasure = deltas, history, None
        super().__init__(
            f"The loss became {value} after step {step}; use fewer steps or a smaller rate."
        )


class Edit:
    """The deltas being trained, keyed by the host's names of the weights they change.

    Inside `with edit.off():` the model is the frozen original, exactly, so teacher and student
    share one set of weights. A backend asks `changed(key, weight)` at each use of an edited weight.
    """

    def __init__(
        self,
        weights: dict[str, torch.Tensor],
        rank: int,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        """device: where the deltas are; None: each where its weight is."""
        generator = torch.Generator().manual_seed(seed)
        self.weights = weights
        self.history: list[float] = []
        """The loss at each step so far."""
        self._good, self._good_at = {}, 0
        # The biases of several experts (GPT-OSS) are a matrix, of which the host takes no LoRA.
        self.deltas = {
            key: Delta(weight, 0 if key.endswith(".bias") else rank, generator, device)
            for key, weight in weights.items()
        }
        self._overflows = 0
        self._on = True
        self.gradient_scale = 1.0
        """What the deltas' gradients are multiplied by: a backend may scale them up on their way
        through half precision."""
        self.after_step: Callable[[], object] = lambda: None
        """Called when a step is done: a backend may let go of what it kept for backward passes."""

    def parameters(self) -> Iterator[torch.Tensor]:
        for delta in self.deltas.values():
            yield from delta.parameters()

    def groups(self, relative_rate: float) -> list[dict]:
        """Parameter groups for an optimiser: each weight's step in proportion to its own size."""
        groups = []
        # Every edited weight adds its share to the change of the output.
        shared = relative_rate / math.sqrt(len(self.deltas))
        for delta in self.deltas.values():
            rate = shared * delta.scale
            if delta.full is None:
                # Of an input, down's rows see rank / columns of what a full step would use.
                rank, columns = delta.down.shape
                groups.append({"params": [delta.up], "lr": rate * columns / rank})
                groups.append({"params": [delta.down], "lr": 0.1 * shared / math.sqrt(columns)})
            else:
                groups.append({"params": [delta.full], "lr": rate})
        return groups

    def adam(
        self, betas: tuple[float, float], eps: float, rate: float = 0.0, relative_rate: float = 0.0
    ) -> torch.optim.Adam:
        """Adam on the deltas, at one `rate` for all or at one relative to each weight's size.

        Fused where torch can: its other forms take temporary copies as large as the deltas.
        """
        parameters = self.groups(relative_rate) if relative_rate else self.parameters()
        devices = {parameter.device.type for parameter in self.parameters()}
        return torch.optim.Adam(
            parameters, rate, betas=betas, eps=eps, fused=devices <= {"cpu", "cuda"}
        )

    def changed(self, key: str, weight: torch.Tensor) -> torch.Tensor:
        """The weight as the edited model has it."""
        if not self._on:
            return weight
        # Back in float32 before it is scaled down: that is what it was scaled up for.
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
        """One step of the optimiser down the loss, whose value it returns.

        keep: a loss that the step should not raise; what in the gradient would is taken out by
        `projection` (gradient_projection.py). clip > 0: the largest norm of each gradient.

        A gradient that overflowed on its way, as it may in half precision, is left out. Raises
        Diverged, with the deltas of an earlier step, when the loss is not finite, or OVERFLOWS
        gradients in a row were not.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged(value)
        if len(self.history) % KEEP_EVERY == 1:
            # In the precision that files have: half the memory.
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
            # Not to None, by which `tensors` would take them for weights that are not read.
            optimiser.zero_grad(set_to_none=False)
        else:
            self._overflows = 0
            if weight_decay:
                self._decay(weight_decay)
            optimiser.step()
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
        parameters = list(self.parameters())
        one = self._gradients(loss, retain=True)
        other = self._gradients(keep, retain=False)
        for parameter, gradient in zip(parameters, project_gradients(one, other, projection, clip)):
            parameter.grad = gradient

    def _gradients(self, loss: torch.Tensor, retain: bool) -> list[torch.Tensor | None]:
        """By backward: torch.autograd.grad does not see weights inside of a recomputed block."""
        parameters = list(self.parameters())
        for parameter in parameters:
            parameter.grad = None
        loss.backward(retain_graph=retain)
        return [parameter.grad for parameter in parameters]

    def _decay(self, rate: float) -> None:
        """Add rate * weight to each gradient (Adam's L2 form), the weight as the edited model has
        it.

        For full deltas only: a low-rank one has no gradient of the weight itself.
        """
        for key, delta in self.deltas.items():
            if delta.full is not None and delta.full.grad is not None:
                weight = self.weights[key].to(delta.full)
                delta.full.grad.add_((weight + delta.full.detach()) * rate)

    @torch.no_grad()
    def shrink(self, share: float) -> None:
        """AdamW's weight decay: take a share of each weight, as the edited model has it, away.

        For full deltas only.
        """
        for key, delta in self.deltas.items():
            if delta.full is not None:
                delta.full.sub_((self.weights[key].to(delta.full) + delta.full) * share)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The original model, without gradients."""
        before, self._on = self._on, False
        try:
            with torch.no_grad():
                yield
        finally:
            self._on = before

    def state(self) -> dict:
        """What `restore` needs to go on from here."""
        return {
            "parameters": [parameter.detach().cpu() for parameter in self.parameters()],
            "read": [parameter.grad is not None for parameter in self.parameters()],
            "history": list(self.history),
        }

    def check(self, state) -> None:
        """Raises Misfit for what is no `state` of an edit of the same weights and rank."""
        fitting.check_names(state, ("parameters", "read", "history"), "edit")
        own = list(self.parameters())
        for name in ("parameters", "read"):
            kept = state[name]
            is_whole = isinstance(kept, list) and len(kept) == len(own)
            fitting.check(is_whole, "its edit is of other weights")
        for kept, read, parameter in zip(state["parameters"], state["read"], own):
            fitting.check_like(kept, parameter, "edit")
            fitting.check(isinstance(read, bool), "its edit is of other weights")
        fitting.check_numbers(state["history"], "history", sys.maxsize)

    def restore(self, state: dict) -> None:
        """Go on from a `state` of an edit of the same weights and rank, which was checked."""
        with torch.no_grad():
            for parameter, kept, read in zip(
                self.parameters(), state["parameters"], state["read"], strict=True
            ):
                parameter.copy_(kept)
                parameter.grad = torch.zeros_like(parameter) if read else None
        self.history[:] = state["history"]
        self._good, self._good_at = self.tensors(torch.float16), len(self.history)

    def tensors(self, dtype: torch.dtype = torch.float32) -> dict[str, dict[str, torch.Tensor]]:
        """Copies of the deltas for an `Erasure`; of weights that are not read there are none."""
        return {
            key: delta.tensors(dtype)
            for key, delta in self.deltas.items()
            if any(p.grad is not None for p in delta.parameters())
        }


OVERFLOWS = 8  # gradients in a row that are not finite, after which a run is given up
KEEP_EVERY = 10  # steps between copies of the deltas, kept in case the loss stops being finite
