"""An erasure on a pipeline's weights, at a strength."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from unlearn.core.erasure import Erasure
from unlearn.diffusers_backend.apply import applied


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0, -1.0])
def test_the_weights_get_the_strength_times_the_change_and_are_afterwards_what_they_were(
    strength: float,
) -> None:
    weights = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([5.0, 6.0])}
    before = {key: weight.clone() for key, weight in weights.items()}
    up, down = torch.tensor([[1.0], [-2.0]]), torch.tensor([[0.5, 4.0]])
    deltas = {
        "a": {"lora_up": up, "lora_down": down},
        "b": {"diff": torch.tensor([0.25, -8.0])},
    }
    with applied(SimpleNamespace(weights=weights), Erasure(deltas), strength):
        assert torch.equal(weights["a"], before["a"] + strength * (up @ down))
        assert torch.equal(weights["b"], before["b"] + strength * torch.tensor([0.25, -8.0]))
    assert all(torch.equal(weights[key], before[key]) for key in weights)
