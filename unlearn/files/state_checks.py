"""Whether what a file gives back is what a run expects, asked before anything is put back.

Files come from a disk that may be bad, and from anybody. Each check raises Misfit with a few words
that say what is wrong.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence

import torch

LARGEST = 1e9
"""Of a weight, a moment or a latent: no run comes near to it."""
STEEPEST = 32.0
"""How many times larger than the root of its square Adam's first moment may be: by its betas 18."""


class Misfit(ValueError):
    """It is not what the run expects; the message has a few words, no sentence."""


def check(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise Misfit(otherwise)


def check_names(value, names: Collection, what: str) -> None:
    """A dict that has these names and no others."""
    check(isinstance(value, dict) and value.keys() == set(names), f"its {what} has other names")


def check_number(value, what: str, low: float = -math.inf, high: float = math.inf) -> None:
    """A finite number in low..high."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    check(is_number and math.isfinite(value) and low <= value <= high, f"its {what} is no number")


def check_numbers(value, what: str, most: int) -> None:
    """A list of finite numbers, so many at most."""
    check(isinstance(value, list) and len(value) <= most, f"its {what} is no list of numbers")
    for one in value:
        check_number(one, what)


def check_tensor(value, shape: Sequence[int], dtypes: Collection[torch.dtype], what: str) -> None:
    """A plain tensor on the CPU of this shape and one of these dtypes, all of it finite."""
    check(type(value) is torch.Tensor, f"its {what} is no tensor")
    plain = value.layout == torch.strided and value.device.type == "cpu"
    check(plain and tuple(value.shape) == tuple(shape), f"its {what} has another shape")
    check(value.dtype in dtypes, f"its {what} is in another precision")
    usual = not value.is_floating_point() or not value.numel() or value.abs().max() <= LARGEST
    check(bool(usual), f"its {what} holds values that are not finite or far too large")


def check_like(value, own: torch.Tensor, what: str) -> None:
    check_tensor(value, own.shape, {own.dtype}, what)


def check_random(value) -> None:
    """The state of a random.Random."""
    what = "random numbers"
    check(isinstance(value, tuple) and len(value) == 3 and value[0] == 3, f"its {what} are none")
    if value[2] is not None:
        check_number(value[2], what)
    try:
        random.Random().setstate(value)
    except (TypeError, ValueError, OverflowError):
        raise Misfit(f"its {what} are none") from None


def check_generator(value) -> None:
    """The state of a torch.Generator on the CPU."""
    trial = torch.Generator()
    check_like(value, trial.get_state(), "noise")
    try:
        trial.set_state(value)
    except RuntimeError:
        raise Misfit("its noise is none") from None


def check_module(value, own: torch.nn.Module) -> None:
    """The state dict of a module."""
    wanted = own.state_dict()
    check_names(value, wanted, "module")
    for name, tensor in wanted.items():
        check_like(value[name], tensor, name)


MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def check_adam(value, own: torch.optim.Optimizer) -> None:
    """The state dict of Adam: fused, it reads past the end of a moment that is too short."""
    check_names(value, ("state", "param_groups"), "optimiser")
    groups, moments = value["param_groups"], value["state"]
    wanted = own.state_dict()["param_groups"]
    check(isinstance(groups, list) and len(groups) == len(wanted), "its optimiser has other groups")
    for group, own_group in zip(groups, wanted):
        check_names(group, own_group, "group of weights")
        # A run that begins with a solution goes on more slowly; none goes faster.
        check_number(group["lr"], "rate", 0, own_group["lr"])
        for name in own_group.keys() - {"lr"}:
            check(_same(group[name], own_group[name]), f"its optimiser has another {name}")
    parameters = [p for group in own.param_groups for p in group["params"]]
    check(
        isinstance(moments, dict)
        and all(type(place) is int and 0 <= place < len(parameters) for place in moments),
        "its optimiser is of other weights",
    )
    for place, one in moments.items():
        check_names(one, MOMENTS, "optimiser")
        check_tensor(one["step"], (), {torch.float32}, "step")
        for name in MOMENTS[1:]:
            check_like(one[name], parameters[place], name)
        check(bool(one["step"] >= 0), "its step is below zero")
        check(bool((one["exp_avg_sq"] >= 0).all()), "its squares are below zero")
        steep = one["exp_avg"].abs() > STEEPEST * one["exp_avg_sq"].sqrt() + 1e-12
        check(not steep.any(), "its moments belong to no gradients")


def _same(one, other) -> bool:
    """Equal in type, too: 1 is no True, and a tensor is no number."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other
