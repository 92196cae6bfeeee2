"""Deterministic sampling one step at a time: DDIM (Song et al., arXiv 2010.02502, eta = 0).

Written against DiffusionModel alone, so the same lines serve networks that predict noise, v or a
flow's velocity.
"""

from __future__ import annotations

import torch

from ..files import state_checks as fitting
from .conditioning import Conditioning
from .model import DiffusionModel


def timesteps(steps: int) -> list[float]:
    """Noisiest first, evenly spaced: 981, 961, ..., 1 for 50 steps."""
    return [1000 * (steps - 1 - i) / steps + 1 for i in range(steps)]


def at(t: float, x: torch.Tensor) -> torch.Tensor:
    """A timestep for each of a batch, (N,)."""
    return torch.full((len(x),), t, device=x.device)


def guided(
    model: DiffusionModel,
    x: torch.Tensor,
    t: float,
    prompt: Conditioning,
    empty: Conditioning,
    scale: float,
) -> torch.Tensor:
    """The prediction under classifier-free guidance (arXiv 2207.12598); both halves at once."""
    both = Conditioning.cat([prompt, empty])
    yes, no = model.predict(torch.cat([x, x]), at(t, torch.cat([x, x])), both).chunk(2)
    return no + scale * (yes - no)


def ddim_step(
    model: DiffusionModel,
    x: torch.Tensor,
    t: float,
    prediction: torch.Tensor,
    t_next: float | None,
) -> torch.Tensor:
    """x at the next, less noisy timestep; None is no noise at all."""
    now = at(t, x)
    x0 = model.predict_x0(x, now, prediction)
    if t_next is None:
        return x0
    # x = noised(x0, noise, t) is linear in the noise.
    nothing = torch.zeros_like(x)
    without = model.add_noise(x0, nothing, now)
    amount = model.add_noise(nothing, torch.ones_like(x), now)
    return model.add_noise(x0, (x - without) / amount, at(t_next, x))


class Trajectory:
    """A trajectory sampled with the model as it is at each moment, and where it has come to.

    It goes on from the state it holds where one step follows the other, and else begins again from
    fresh noise.
    """

    def __init__(
        self,
        model: DiffusionModel,
        steps: int,
        guidance: float,
        generator: torch.Generator,
        count: int = 1,
    ) -> None:
        self.model, self.times, self.guidance = model, timesteps(steps), guidance
        self.generator, self.count = generator, count
        self.x: torch.Tensor | None = None
        self.step = -2

    @torch.no_grad()
    def to(self, step: int, prompt: Conditioning, empty: Conditioning) -> torch.Tensor:
        """x_t at `step` (0 is the noisiest), on the way of `prompt`: (count, ...)."""
        if self.x is None or step != self.step + 1:
            noise = self.model.noise(self.count, self.generator)
            self.x = self.model.add_noise(torch.zeros_like(noise), noise, at(self.times[0], noise))
            self.step = 0
        while self.step < step:
            t = self.times[self.step]
            prediction = guided(self.model, self.x, t, prompt, empty, self.guidance)
            self.x = ddim_step(self.model, self.x, t, prediction, self.times[self.step + 1])
            self.step += 1
        return self.x

    def state(self) -> dict:
        return {"x": self.x, "step": self.step, "generator": self.generator.get_state()}

    def check(self, state) -> None:
        """Raises Misfit for what is no `state` of such a trajectory."""
        fitting.check_names(state, ("x", "step", "generator"), "walk")
        fitting.check_generator(state["generator"])
        step, last = state["step"], len(self.times) - 1
        is_begun = state["x"] is not None
        is_step = type(step) is int and (0 <= step <= last if is_begun else step == -2)
        fitting.check(is_step, "its walk has another step")
        if is_begun:
            fitting.check_like(state["x"], self.model.noise(self.count, torch.Generator()), "walk")

    def restore(self, state: dict) -> None:
        self.x, self.step = state["x"], state["step"]
        if self.x is not None:
            self.x = self.x.to(self.model.device)
        self.generator.set_state(state["generator"])
