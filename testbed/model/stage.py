"""One stage of a training: resumable, and shared by the cores of a CPU."""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from unlearn.files.writing import whole_file

from ..host.workers import at_once

SAVE_EVERY = 180.0  # seconds
WORKERS = at_once()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _one_core(numbers: Iterator[int]) -> None:
    """Give a worker thread a core of its own, since two on one core run at half speed."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[next(numbers) % len(cores)]})


def workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(WORKERS, initializer=_one_core, initargs=(itertools.count(),))


@dataclass
class Stage:
    """A resumable optimisation of `modules` with warm-up and a cosine schedule.

    peak: the highest learning rate. decay: AdamW's weight decay. average: if above 0, the decay of
    an exponential moving average of the weights, which is the result.
    """

    name: str
    modules: torch.nn.ModuleDict
    steps: int
    peak: float
    warmup: int = 100
    decay: float = 0.0
    average: float = 0.0

    def run(self, loss: Callable[[int], torch.Tensor], folder: Path) -> None:
        """Minimise `loss(worker)`. Afterwards `modules` hold the final (averaged) weights.

        On a CPU each core is a worker with a batch of its own, and the gradients are averaged. So
        the threads wait for each other once a step, not in every small operation.
        """
        file = folder / f"{self.name}.pt"
        parameters = [p for p in self.modules.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=self.peak, weight_decay=self.decay, fused=True)
        mean = [p.detach().clone() for p in parameters]
        first = 0
        if file.exists():
            state = torch.load(file, map_location=DEVICE, weights_only=True)
            self.modules.load_state_dict(state["modules"])
            optimiser.load_state_dict(state["optimiser"])
            mean, first = [m.to(DEVICE) for m in state["mean"]], state["step"]
        saved, smooth = time.monotonic(), None
        pool = workers()

        def gradient(worker: int) -> tuple[float, tuple[torch.Tensor, ...]]:
            value = loss(worker)
            return value.item(), torch.autograd.grad(value, parameters, materialize_grads=True)

        progress = tqdm(
            range(first, self.steps),
            initial=first,
            total=self.steps,
            desc=self.name,
            mininterval=10,
        )
        for step in progress:
            for group in optimiser.param_groups:
                group["lr"] = self.peak * self._rate(step)
            values, gradients = zip(*pool.map(gradient, range(WORKERS)))
            value = sum(values) / WORKERS
            if not math.isfinite(value):
                raise FloatingPointError(f"{self.name}: the loss became {value} at step {step}.")
            for parameter, *parts in zip(parameters, *gradients):
                # A plain sum keeps the memory format, which the fused optimiser needs.
                parameter.grad = sum(parts[1:], parts[0]) / WORKERS
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            weight = 1 - min(self.average, (step + 1) / (step + 10))
            torch._foreach_lerp_(mean, [p.detach() for p in parameters], weight)
            smooth = value if smooth is None else 0.99 * smooth + 0.01 * value
            progress.set_postfix_str(f"loss {smooth:.4f}", refresh=False)
            if time.monotonic() - saved > SAVE_EVERY or step + 1 == self.steps:
                state = {
                    "modules": self.modules.state_dict(),
                    "step": step + 1,
                    "mean": mean,
                    "optimiser": optimiser.state_dict(),
                }
                with whole_file(file) as new:
                    torch.save(state, new)
                saved = time.monotonic()
        with torch.no_grad():
            for parameter, value in zip(parameters, mean):
                parameter.copy_(value)

    def _rate(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
