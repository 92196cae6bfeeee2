"""Where the seconds go: a clock with phases, put around functions from outside.

The methods know nothing of it. While it watches, functions of the pack and of PyTorch are replaced
by ones that tell the clock when they begin and end.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

PHASES = (
    "encoding",
    "network forward",
    "backward",
    "solve",
    "optimiser",
    "drawing",
    "saving",
)


class Phases:
    """Seconds of each phase. What is inside another phase counts once, for itself.

    synchronise: called before the clock is read, for devices that work ahead.
    """

    def __init__(
        self,
        synchronise: Callable[[], object] = lambda: None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.seconds: Counter[str] = Counter()
        self._synchronise, self._now = synchronise, now
        self._open: list[tuple[str, bool]] = []
        self._since = 0.0

    def clock(self) -> float:
        """Seconds, once all that was begun is done."""
        self._synchronise()
        return self._now()

    def enter(self, name: str, whole: bool = False) -> None:
        """Begin a phase. whole: what begins inside it counts for it."""
        if self._open and self._open[-1][1]:
            self._open.append(self._open[-1])
            return
        self._count()
        self._open.append((name, whole))

    def leave(self) -> None:
        if len(self._open) == 1 or self._open[-1] is not self._open[-2]:
            self._count()
        self._open.pop()

    def _count(self) -> None:
        """Give the seconds since the last time to the phase that is open."""
        now = self.clock()
        if self._open:
            self.seconds[self._open[-1][0]] += now - self._since
        self._since = now

    @contextmanager
    def phase(self, name: str, whole: bool = False) -> Iterator[None]:
        self.enter(name, whole)
        try:
            yield
        finally:
            self.leave()

    def around(self, function: Callable, name: str, whole: bool = False) -> Callable:
        """The same function, as a phase."""

        @functools.wraps(function)
        def timed(*arguments: Any, **more: Any) -> Any:
            with self.phase(name, whole):
                return function(*arguments, **more)

        return timed

    @contextmanager
    def watching(self, *places: tuple[Any, str, str, bool]) -> Iterator[Phases]:
        """Inside the block the functions at (owner, attribute, phase, whole) are phases, and so are
        backward passes and the steps of optimisers."""
        every = [
            *places,
            (torch.Tensor, "backward", "backward", True),
            (torch.autograd, "grad", "backward", True),
        ]
        with ExitStack() as stack:
            for owner, attribute, name, whole in every:
                stack.enter_context(
                    replaced(owner, attribute, self.around(getattr(owner, attribute), name, whole))
                )
            for hook in (
                register_optimizer_step_pre_hook(lambda *_: self.enter("optimiser")),
                register_optimizer_step_post_hook(lambda *_: self.leave()),
            ):
                stack.callback(hook.remove)
            yield self


@contextmanager
def replaced(owner: Any, attribute: str, value: Any) -> Iterator[None]:
    """Inside the block an attribute has another value. Afterwards it is as before, also where the
    owner had it from its class."""
    own = attribute in vars(owner)
    before = vars(owner).get(attribute)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, attribute, before)
        else:
            delattr(owner, attribute)


def places_of_pack(package: ModuleType) -> list[tuple[Any, str, str, bool]]:
    """What is watched of the pack.

    Drawing is one phase with all that it asks of encoder and denoiser. Blocks that are recomputed
    count for the backward pass. The passes of the closed form's prompts are encoding; its layers
    are solved in their middle.
    """
    science, backend = package.unlearn, package.nodes.backend
    methods = science.methods
    model, encoder = backend.model.ComfyModel, backend.encoder_model.ComfyEncoder
    return [
        (model, "encode", "encoding", False),
        (model, "encode_with_embeddings", "encoding", False),
        (model, "encode_images", "encoding", True),
        (encoder, "encode", "encoding", False),
        (model, "predict", "network forward", False),
        (methods.parts.discriminator.Discriminator, "forward", "network forward", False),
        (model, "sample", "drawing", True),
        (model, "decode_latents", "drawing", True),
        (science.core.ddim.Trajectory, "to", "drawing", True),
        (science.core.edit.Edit, "step", "optimiser", False),
        (methods.parts.encoder_solver, "walk", "encoding", False),
        (methods.parts.solve_prompts, "read_together", "encoding", False),
        (methods.parts.encoder_solver.Solver, "at", "solve", False),
        (methods.parts.closed_form, "start", "solve", False),
        (science.core.erasure.Erasure, "save", "saving", True),
    ]


def places_of_plain() -> list[tuple[Any, str, str, bool]]:
    """What is watched of the plain loops (testbed/plain)."""
    from unlearn.methods.parts.discriminator import Discriminator

    from ..plain.model import PlainModel

    return [
        (PlainModel, "encode", "encoding", False),
        (PlainModel, "encode_pictures", "encoding", True),
        (PlainModel, "predict", "network forward", False),
        (Discriminator, "forward", "network forward", False),
    ]


class Steps:
    """The seconds and phases of each step of a run; `on_step` ends one."""

    def __init__(self, phases: Phases) -> None:
        self.phases = phases
        self.ended: list[tuple[float, Counter[str]]] = []
        self.cpu: list[float] = []
        """Of each step the processor's seconds, which another program beside it hardly changes."""
        self._last = phases.clock(), Counter(phases.seconds)
        self._cpu = time.process_time()

    def on_step(self, *told: Any) -> None:
        now, seconds = self.phases.clock(), Counter(self.phases.seconds)
        since, before = self._last
        self.ended.append((now - since, seconds - before))
        self._last = now, seconds
        cpu = time.process_time()
        self.cpu.append(cpu - self._cpu)
        self._cpu = cpu


def median_of(steps: list[tuple[float, Counter[str]]]) -> tuple[float, dict[str, float]]:
    """(seconds, phases) of the step with the median time: of one real step, so that its phases add
    up to no more than itself. Of an even number, of the quicker of the middle two."""
    seconds, phases = sorted(steps, key=lambda step: step[0])[(len(steps) - 1) // 2]
    return seconds, {name: round(phases[name], 6) for name in PHASES if phases[name]}
