"""Checks that a saved state is one that a run expects, made before any of it is restored.

A file may be damaged, and may come from anybody. Each check raises Misfit with a few words that say
what is wrong.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence

import torch

LARGEST = 1e9
"""The largest absolute value of a weight, moment or latent. No run comes near it."""
STEEPEST = 32.0
"""The largest ratio of Adam's first moment to the root of its second. Its betas allow 18."""


class Misfit(ValueError):
    """The state is not one that the run expects. The message is a few words, not a sentence."""


def check(is_right: bool, problem: str) -> None:
    """Raises Misfit with `problem` unless `is_right`."""
    if not is_right:
        raise Misfit(problem)


def check_names(value, names: Collection, what: str) -> None:
    """A dict with exactly these keys."""
    check(isinstance(value, dict) and value.keys() == set(names), f"its {what} has other entries")


def check_number(value, what: str, low: float = -math.inf, high: float = math.inf) -> None:
    """A finite number in low..high."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = is_number and math.isfinite(value) and low <= value <= high
    check(fits, f"its {what} is not a number that fits")


def check_numbers(value, what: str, most: int) -> None:
    """A list of at most `most` finite numbers."""
    fits = isinstance(value, list) and len(value) <= most
    check(fits, f"its {what} is not a list of numbers that fits")
    for number in value:
        check_number(number, what)


def check_tensor(value, shape: Sequence[int], dtypes: Collection[torch.dtype], what: str) -> None:
    """A plain, finite tensor on the CPU, of this shape and one of these dtypes."""
    check(type(value) is torch.Tensor, f"its {what} is not a tensor")
    plain = value.layout == torch.strided and value.device.type == "cpu"
    check(plain and tuple(value.shape) == tuple(shape), f"its {what} has another shape")
    check(value.dtype in dtypes, f"its {what} is in another precision")
    usual = not value.is_floating_point() or not value.numel() or value.abs().max() <= LARGEST
    check(bool(usual), f"its {what} holds values that are not finite or far too large")


def check_like(value, own: torch.Tensor, what: str) -> None:
    """A plain, finite tensor on the CPU, of the shape and dtype of `own`."""
    check_tensor(value, own.shape, {own.dtype}, what)


def check_random(value) -> None:
    """The state of a random.Random."""
    problem = "its random generator is damaged"
    check(isinstance(value, tuple) and len(value) == 3 and value[0] == 3, problem)
    if value[2] is not None:
        check_number(value[2], "random generator")
    try:
        random.Random().setstate(value)
    except (TypeError, ValueError, OverflowError):
        raise Misfit(problem) from None


def check_generator(value) -> None:
    """The state of a torch.Generator on the CPU."""
    trial = torch.Generator()
    check_like(value, trial.get_state(), "noise generator")
    try:
        trial.set_state(value)
    except RuntimeError:
        raise Misfit("its noise generator is damaged") from None


def check_module(value, own: torch.nn.Module) -> None:
    """The state dict of a module."""
    own_state = own.state_dict()
    check_names(value, own_state, "module")
    for name, tensor in own_state.items():
        check_like(value[name], tensor, name)


MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def check_adam(value, own: torch.optim.Optimizer) -> None:
    """The state dict of Adam. Fused Adam would read past the end of a moment that is too short."""
    check_names(value, ("state", "param_groups"), "optimiser")
    groups, moments = value["param_groups"], value["state"]
    own_groups = own.state_dict()["param_groups"]
    is_alike = isinstance(groups, list) and len(groups) == len(own_groups)
    check(is_alike, "its optimiser has other groups")
    for group, own_group in zip(groups, own_groups):
        check_names(group, own_group, "parameter group")
        # A method may lower the learning rate during a run; none raises it.
        check_number(group["lr"], "learning rate", 0, own_group["lr"])
        for name in own_group.keys() - {"lr"}:
            check(_same(group[name], own_group[name]), f"its optimiser has another {name}")
    parameters = [p for group in own.param_groups for p in group["params"]]
    check(
        isinstance(moments, dict)
        and all(type(place) is int and 0 <= place < len(parameters) for place in moments),
        "its optimiser has other weights",
    )
    for place, state in moments.items():
        check_names(state, MOMENTS, "optimiser")
        check_tensor(state["step"], (), {torch.float32}, "step")
        for name in MOMENTS[1:]:
            check_like(state[name], parameters[place], name)
        check(bool(state["step"] >= 0), "its step is below zero")
        check(bool((state["exp_avg_sq"] >= 0).all()), "its squared gradients are below zero")
        steep = state["exp_avg"].abs() > STEEPEST * state["exp_avg_sq"].sqrt() + 1e-12
        check(not steep.any(), "no gradients can lead to its moments")


def _same(a, b) -> bool:
    """Equal in value and type: 1 is not True, and a tensor is not a number."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b
