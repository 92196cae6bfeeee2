"""The walk through an encoder's layers, and which encoders it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unlearn.methods.parts.layers import walk


class Layer(nn.Module):
    def __init__(self, norm_after: bool, narrow: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 4)
        self.norm = nn.LayerNorm(4) if norm_after else nn.Identity()
        if not narrow:
            self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm(self.fc2(self.fc1(x).relu()))


class Model:
    def __init__(self, norm_after: bool = False, narrow: bool = True, one_by_one=False) -> None:
        self.layers = nn.ModuleList(Layer(norm_after, narrow) for _ in range(2))
        self.one_by_one = one_by_one

    def encoder_layers(self) -> list[tuple[str, nn.Module]]:
        return [(f"layers.{i}", layer) for i, layer in enumerate(self.layers)]

    def encode(self, prompts: list[str]) -> None:
        for count in [1] * len(prompts) if self.one_by_one else [len(prompts)]:
            x = torch.ones(count, 3, 4)
            for layer in self.layers:
                x = layer(x)


def nothing(place, waiting) -> list[torch.Tensor]:
    return [torch.zeros_like(one.after) for one in waiting]


def test_every_layer_is_met_once_with_all_prompts() -> None:
    met = []

    def solve(place, waiting) -> list[torch.Tensor]:
        met.append((place.key, [tuple(one.inputs.shape) for one in waiting]))
        return nothing(place, waiting)

    walk(Model(), [["a", "b"], ["c"]], solve)
    shapes = [(2, 3, 8), (1, 3, 8)]
    assert met == [("layers.0.fc2.weight", shapes), ("layers.1.fc2.weight", shapes)]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Model(norm_after=True), "do not end in a linear layer"),
        (Model(narrow=False), "do not end in a linear layer"),
        (Model(one_by_one=True), "reads prompts one by one"),
    ],
)
def test_what_it_cannot_do_is_refused(model: Model, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        walk(model, [["a", "b"], ["c", "d"]], nothing)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.layers.modules())
