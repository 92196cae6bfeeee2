"""What norms do, found by running them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unlearn.methods.parts.norm_gain import NormGain

WIDTH = 12


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Gemma(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(drawn(WIDTH, seed=5), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, (WIDTH,), self.weight + 1, 1e-6)


def layer_norm() -> nn.Module:
    norm = nn.LayerNorm(WIDTH).requires_grad_(False)
    norm.weight.copy_(1 + drawn(WIDTH, seed=5))
    norm.bias.copy_(drawn(WIDTH, seed=6))
    return norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_gain_is_found_by_running_the_norm(dtype: torch.dtype) -> None:
    like = drawn(2, 3, WIDTH).to(dtype)
    for norm, centred in ((Gemma(), False), (layer_norm(), True)):
        found = NormGain.of(norm.to(dtype), like)
        assert found.centred is centred
        expected = norm.weight.float() + (0 if centred else 1)
        torch.testing.assert_close(found.gain, expected, atol=1e-2, rtol=1e-2)


def test_what_is_no_norm_has_no_gain() -> None:
    modules = (nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.GroupNorm(3, WIDTH))
    assert not any(NormGain.of(module, drawn(2, WIDTH)) for module in modules)
    assert NormGain.of(nn.Identity(), drawn(2, 4096)) is None


@pytest.mark.parametrize("norm", [Gemma(), layer_norm()])
def test_a_change_of_its_input_makes_that_of_its_output(norm: nn.Module) -> None:
    """Here one of which the norm is capable: from one output to another."""
    found = NormGain.of(norm, drawn(1, WIDTH))
    x, other = 7 * drawn(5, WIDTH, seed=1), 3 * drawn(5, WIDTH, seed=2)
    wanted = norm(other) - norm(x)
    change = found.change(x, wanted) * found.size(x)
    left = norm(x + change) - norm(other)
    assert left.norm() < 0.03 * wanted.norm()
    # It keeps the size of what goes in, which the norm would take away again.
    torch.testing.assert_close(found.size(x + change), found.size(x))
    assert not found.change(x, torch.zeros_like(x)).abs().max() > 1e-5


def test_a_channel_that_the_norm_shuts_does_not_take_over() -> None:
    norm = nn.LayerNorm(WIDTH).requires_grad_(False)
    norm.weight[3] = 1e-6
    found = NormGain.of(norm, drawn(1, WIDTH))
    x, wanted = drawn(5, WIDTH, seed=1), drawn(5, WIDTH, seed=2)
    assert found.change(x, wanted)[:, 3].abs().max() < 1.0
