"""Models and steps that note what they are asked for, to work a loss out from it by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from tiny import TinyNetworkModel

from unlearn.core.conditioning import Conditioning
from unlearn.core.edit import Edit


def shift(edit: Edit, size: float = 0.1) -> None:
    """Deltas that are not zero, always the same: the edited model is then not the original."""
    generator = torch.Generator().manual_seed(7)
    for parameter in edit.parameters():
        parameter.data.copy_(size * torch.randn(parameter.shape, generator=generator))


@dataclass(frozen=True)
class Prediction:
    x_t: torch.Tensor
    t: torch.Tensor
    cross: torch.Tensor
    edited: bool
    """Whether the edit was on."""
    result: torch.Tensor


class NotedNetworkModel(TinyNetworkModel):
    def __init__(self, parameterisation: str = "eps") -> None:
        super().__init__(parameterisation)
        self.made: list[Prediction] = []

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        result = super().predict(x_t, t, conditioning)
        edited = self.current is not None and self.current._on
        self.made.append(Prediction(x_t, t, conditioning.cross, edited, result.detach()))
        return result

    def prompt_of(self, row: torch.Tensor) -> str:
        """The prompt, of all that were encoded so far, whose conditioning (tokens, width) is."""
        for prompt in dict.fromkeys(prompt for prompts in list(self.encoded) for prompt in prompts):
            cross = TinyNetworkModel.encode(self, [prompt]).cross[0]
            padding = row[len(cross) :]
            if len(row) < len(cross) or padding.any():
                continue
            if torch.allclose(row[: len(cross)], cross, atol=1e-6):
                return prompt
        raise AssertionError("nothing was encoded to this")


@dataclass(frozen=True)
class Step:
    """What Edit.step was given."""

    loss: float
    keep: float | None
    weight_decay: float
    projection: str
    clip: float
    rate: float
    """Of the first weight."""
    betas: tuple[float, float]
    eps: float


@pytest.fixture(name="steps")
def noted_steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Every step of an edit that the test takes."""
    taken: list[Step] = []
    step = Edit.step

    def noted(
        self: Edit,
        optimiser: torch.optim.Optimizer,
        loss: torch.Tensor,
        weight_decay: float = 0.0,
        keep: torch.Tensor | None = None,
        projection: str = "off",
        clip: float = 0.0,
    ) -> float:
        group = optimiser.param_groups[0]
        taken.append(
            Step(
                loss.item(),
                None if keep is None else keep.item(),
                weight_decay,
                projection,
                clip,
                group["lr"],
                group["betas"],
                group["eps"],
            )
        )
        return step(self, optimiser, loss, weight_decay, keep, projection, clip)

    monkeypatch.setattr(Edit, "step", noted)
    return taken


def square(one: torch.Tensor, other: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Mean squared difference."""
    return (one - other).square().mean()


def said_of(concept: str, prompts: Sequence[str]) -> list[str]:
    """Those that have the concept among their words."""
    return [p for p in prompts if concept in p.replace(",", " ").split()]
