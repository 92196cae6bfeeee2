"""An erasure's size: by its file's alpha, and on a pipeline's weights at a strength."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from unlearn.core.erasure import Erasure, full, parse
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


@pytest.mark.parametrize(("alpha", "scale"), [(3.0, 1.5), (2.0, 1.0), (0.5, 0.25), (-2.0, -1.0)])
def test_of_a_file_alpha_over_the_rank_is_the_scale(alpha: float, scale: float) -> None:
    up, down = torch.tensor([[1.0, 2.0], [3.0, -4.0]]), torch.tensor([[0.5, 1.0], [2.0, 0.25]])
    (delta,) = parse(
        {
            "text_encoders.fc.lora_up.weight": up,
            "text_encoders.fc.lora_down.weight": down,
            "text_encoders.fc.alpha": torch.tensor(alpha),
        }
    ).values()
    assert torch.equal(full(delta), scale * (up @ down))


def test_without_alpha_the_scale_is_one() -> None:
    up, down = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5], [2.0]])
    names = ("fc.lora_up.weight", "fc.lora_down.weight")
    (delta,) = parse(dict(zip(names, (up, down)))).values()
    assert torch.equal(full(delta), up @ down)
