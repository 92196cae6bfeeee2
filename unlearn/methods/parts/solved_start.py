"""A start for training the text encoder: what one solve takes out (methods/closed_form.py).

Training by pictures walks about a hundred steps to where the solve is at once. It begins there, and
what is left to do is what the solve cannot know: what the pictures show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...core.edit import Edit
from ...core.model import DiffusionModel
from ...core.progress import Progress
from ...prompts.other_names import other_names
from .encoder_solver import solved
from .layer_ends import NOT_ADDED, TWICE
from .solve_prompts import OVERSHOOT, SolveSettings

REST = 0.2  # of the rate, once the solution is in
UNSOLVABLE = (NOT_ADDED, TWICE)


@dataclass(frozen=True)
class Start:
    """Changes of weights, by their names, in the form of an erasure; and other names of the
    concepts that they take out."""

    deltas: dict[str, dict[str, torch.Tensor]]
    names: dict[str, list[str]]


def solved_start(
    model: DiffusionModel,
    concepts: Sequence[str],
    settings: Any,
    progress: Progress,
) -> Start | None:
    """The start; None for an encoder that cannot be changed so. `progress` may raise to cancel.

    settings: of the method that trains, with its kind, anchor, protected words and seed.
    """
    if not model.encoder_layers():
        return None
    kind = settings.kind
    told = SolveSettings(kind, settings.anchor, OVERSHOOT[kind], settings.seed, settings.protect)
    names = other_names(model, concepts, kind, progress)
    try:
        solver = solved(model, concepts, names, told, progress)
    except ValueError as error:
        if str(error) in UNSOLVABLE:
            return None
        raise
    return Start(solver.deltas, names)


@torch.no_grad()
def begun(edit: Edit, optimiser: torch.optim.Optimizer, start: Start | None) -> bool:
    """Give an edit the changes of the start; whether it has them, which takes that it trains all of
    their weights. The optimiser, whose rate is made for a start from nothing, is slowed down."""
    if start is None or not start.deltas.keys() <= edit.deltas.keys():
        return False
    for key, delta in start.deltas.items():
        change = delta["lora_up"] @ delta["lora_down"]
        weight = edit.weights[key]
        edit.deltas[key].assign(change.to(weight.device).view(weight.shape))
    for group in optimiser.param_groups:
        group["lr"] *= REST
    return True
