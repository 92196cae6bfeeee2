"""Deterministic sampling, one step at a time: DDIM (Song et al., arXiv 2010.02502, eta = 0).

The code asks DiffusionModel for x0 and x_t only, so it serves noise, v and velocity prediction.
"""

from __future__ import annotations

import torch

from ..files import state_checks
from .conditioning import Conditioning
from .model import DiffusionModel


def timesteps(steps: int) -> list[float]:
    """Evenly spaced timesteps, noisiest first: 981, 961, ..., 1 for 50 steps."""
    return [1000 * (steps - 1 - i) / steps + 1 for i in range(steps)]


def at(t: float, x: torch.Tensor) -> torch.Tensor:
    """The timestep `t` for every item of the batch `x`: (N,)."""
    return torch.full((len(x),), t, device=x.device)


def guided(
    model: DiffusionModel,
    x: torch.Tensor,
    t: float,
    prompt: Conditioning,
    empty: Conditioning,
    scale: float,
) -> torch.Tensor:
    """The prediction under classifier-free guidance (arXiv 2207.12598), in one batch.

    x: (N, ...); prompt and empty: N prompts each; scale: 1 is no guidance.
    """
    if scale == 1.0:
        return model.predict(x, at(t, x), prompt)
    both = Conditioning.cat([prompt, empty])
    doubled = torch.cat([x, x])
    conditional, unconditional = model.predict(doubled, at(t, doubled), both).chunk(2)
    return unconditional + scale * (conditional - unconditional)


def ddim_step(
    model: DiffusionModel,
    x: torch.Tensor,
    t: float,
    prediction: torch.Tensor,
    t_next: float | None,
) -> torch.Tensor:
    """x at the next, less noisy timestep `t_next`; None means no noise."""
    now = at(t, x)
    x0 = model.predict_x0(x, now, prediction)
    if t_next is None:
        return x0
    # x = add_noise(x0, noise, t) is linear in the noise, so the noise can be solved for.
    zeros = torch.zeros_like(x)
    scaled_x0 = model.add_noise(x0, zeros, now)
    noise_scale = model.add_noise(zeros, torch.ones_like(x), now)
    return model.add_noise(x0, (x - scaled_x0) / noise_scale, at(t_next, x))


class Trajectory:
    """A DDIM trajectory that is sampled step by step with the model as it is at that moment.

    It continues from its last x_t if the next step is asked for. For any other step it starts again
    from fresh noise.
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
        """x_t at `step` (0 is the noisiest), sampled from `prompt`: (count, ...)."""
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

    def forget(self) -> None:
        """Start the next step from fresh noise, whichever it is."""
        self.x, self.step = None, -2

    def state(self) -> dict:
        """The state to save, for `restore`."""
        return {"x": self.x, "step": self.step, "generator": self.generator.get_state()}

    def check(self, state) -> None:
        """Raises Misfit unless `state` is that of such a trajectory."""
        state_checks.check_names(state, ("x", "step", "generator"), "trajectory")
        state_checks.check_generator(state["generator"])
        step, last = state["step"], len(self.times) - 1
        is_begun = state["x"] is not None
        is_step = type(step) is int and (0 <= step <= last if is_begun else step == -2)
        state_checks.check(is_step, "its trajectory is at a step that this run does not have")
        if is_begun:
            noise = self.model.noise(self.count, torch.Generator())
            state_checks.check_like(state["x"], noise, "trajectory")

    def restore(self, state: dict) -> None:
        """Continue from a saved state that passed `check`."""
        self.x, self.step = state["x"], state["step"]
        if self.x is not None:
            self.x = self.x.to(self.model.device)
        self.generator.set_state(state["generator"])
