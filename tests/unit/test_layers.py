"""How the layers of an encoder end, the walk through them, and which encoders are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from unlearn.methods.parts.layer_ends import NOT_ADDED, TWICE, places, read_together
from unlearn.methods.parts.layers import changed, walk

WIDTH = 6


class RMSNorm(nn.Module):
    """As Gemma's, whose weight is its gain less one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-0.5, 1.0, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + self.weight)


class Layer(nn.Module):
    """end: "added", "normed" alone as in Gemma, "normed together" as in Jina CLIP, or what is not
    known: "scaled", "bent", "narrow"."""

    def __init__(self, end: str) -> None:
        super().__init__()
        inside = WIDTH if end == "narrow" else 9
        self.end, self.fc1, self.fc2 = end, nn.Linear(WIDTH, inside), nn.Linear(inside, WIDTH)
        self.before, self.norm = nn.LayerNorm(WIDTH), RMSNorm()
        if end == "normed together":
            self.norm = nn.LayerNorm(WIDTH)
            nn.init.normal_(self.norm.weight)
            nn.init.normal_(self.norm.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        out = self.fc2(self.fc1(self.before(x)).relu())
        known = {
            "normed": lambda: x + self.norm(out),
            "normed together": lambda: self.norm(x + out),
            "scaled": lambda: x + 0.5 * out,
            "bent": lambda: x + self.norm(out).tanh(),
        }
        return known.get(self.end, lambda: x + out)(), None


class Experts(nn.Module):
    """An attention that ends in a linear layer, and a feed-forward part that does not. beside:
    both read what enters the layer."""

    def __init__(self, beside: bool) -> None:
        super().__init__()
        self.beside, self.attention_out = beside, nn.Linear(9, WIDTH)
        self.register_buffer("mixed", torch.randn(WIDTH, 9))
        self.before, self.norm = nn.LayerNorm(WIDTH), RMSNorm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.before(x).mean(1, keepdim=True) + x
        after = x + self.attention_out((mean @ self.mixed).relu())
        return after + self.norm(x if self.beside else after).sin()


def layer_of(end: str) -> nn.Module:
    return Experts(end == "beside") if end in ("experts", "beside") else Layer(end)


class Model:
    def __init__(self, end: str = "added", times: int = 1) -> None:
        torch.manual_seed(0)
        self.layers, self.times = nn.ModuleList(layer_of(end) for _ in range(3)), times
        self.last: list[torch.Tensor] = []

    def encoder_layers(self) -> list[tuple[str, nn.Module]]:
        return [(f"encoder.layers.{i}", layer) for i, layer in enumerate(self.layers[:2])]

    def read(self, prompts: Sequence[str]) -> None:
        x = torch.stack([hidden(prompt) for prompt in prompts])
        for layer in self.layers:
            for _ in range(self.times):
                x = hidden_of(layer(x))
        self.last.append(x)


def hidden_of(output: torch.Tensor | tuple) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def hidden(prompt: str) -> torch.Tensor:
    return torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(ord(prompt)))


def nothing(place, waiting) -> list[None]:
    return [None for _ in waiting]


def test_every_layer_is_met_once_with_all_prompts() -> None:
    met, model = [], Model()

    def solve(place, waiting) -> list[None]:
        met.append((place.key, place.first, place.left, [tuple(w.inputs.shape) for w in waiting]))
        assert [w.entering is not None for w in waiting] == [place.first] * 2
        return nothing(place, waiting)

    walk(model, [["a", "b"], ["c"]], places(model, "a"), solve)
    shapes = [(2, 3, 9), (1, 3, 9)]
    assert met == [
        ("encoder.layers.0.fc2.weight", True, 1, shapes),
        ("encoder.layers.1.fc2.weight", False, 0, shapes),
    ]


@pytest.mark.parametrize("end", ["added", "normed", "normed together", "experts"])
def test_hidden_states_are_those_of_a_changed_layer(end: str) -> None:
    model = Model(end)
    found = places(model, "a")
    assert [place.norm is not None for place in found] == [end.startswith("normed")] * 2
    assert [place.inner for place in found] == [end == "experts"] * 2
    changes = {p.key: (torch.randn(WIDTH, 2), torch.randn(2, 9)) for p in found}
    model.last.clear()
    walk(
        model,
        [["a", "b"], ["c"], ["c"]],
        found,
        lambda place, waiting: [changes[place.key], changes[place.key], None],
        still={2},
    )
    *changed, still = model.last
    model.read(["c"])
    torch.testing.assert_close(still, model.last[-1])
    for place in found:
        up, down = changes[place.key]
        place.linear.weight.data += up @ down
    model.read(["a", "b"])
    model.read(["c"])
    for one, expected in zip(changed, model.last[-2:]):
        torch.testing.assert_close(one, expected)
        assert (one - still).abs().max() > 0.1


def test_of_batches_that_stay_as_they_are_no_inputs_are_kept() -> None:
    model, kept = Model("normed"), []

    def solve(place, waiting) -> list[None]:
        kept.append([(w.inputs is not None, w.normed is not None) for w in waiting])
        return nothing(place, waiting)

    walk(model, [["a"], ["b"]], places(model, "a"), solve, still={1})
    assert kept == [[(True, True), (False, False)]] * 2


@pytest.mark.parametrize(
    ("end", "times", "said"),
    [
        ("scaled", 1, NOT_ADDED),
        ("bent", 1, NOT_ADDED),
        ("narrow", 1, NOT_ADDED),
        ("beside", 1, NOT_ADDED),
        ("added", 2, TWICE),
    ],
)
def test_what_it_cannot_do_is_refused(end: str, times: int, said: str) -> None:
    model = Model(end, times)
    with pytest.raises(ValueError, match="closed form") as error:
        places(model, "a")
    assert str(error.value) == said
    assert "\n" not in said
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.layers.modules())


def mixed(self: Model, prompts: Sequence[str]) -> None:
    """Every prompt reads the first one, too."""
    x = torch.stack([hidden(prompt) for prompt in prompts])
    for layer in self.layers:
        x = layer(x + x[:1])[0]


def first(self: Model, prompts: Sequence[str]) -> None:
    x = hidden(prompts[0])[None]
    for layer in self.layers:
        x = layer(x)[0]


def failing(self: Model, prompts: Sequence[str]) -> None:
    Model.read(self, prompts)
    if len(prompts) > 1:
        raise RuntimeError("sizes of tensors")


@pytest.mark.parametrize(
    ("read", "together"), [(Model.read, True), (mixed, False), (first, False), (failing, False)]
)
def test_prompts_are_read_together_where_each_is_read_as_alone(
    read: Callable, together: bool
) -> None:
    model = Model()
    model.read = lambda prompts: read(model, prompts)
    assert read_together(model, ["a", "b"]) is together
    assert not any(one._forward_hooks for one in model.layers.modules())


@pytest.mark.parametrize("end", ["added", "normed", "normed together", "experts"])
def test_what_was_solved_for_is_what_the_weights_have(end: str) -> None:
    model = Model(end)
    found = places(model, "a")
    deltas = {
        place.key: {"lora_up": torch.randn(WIDTH, 2), "lora_down": torch.randn(2, 9)}
        for place in found
    }
    with changed(found, deltas):
        model.read(["a", "b"])
    model.read(["a", "b"])
    with torch.no_grad():
        for place in found:
            own = deltas[place.key]
            place.linear.weight += own["lora_up"] @ own["lora_down"]
    model.read(["a", "b"])
    hooked, plain, weighed = model.last[-3:]
    assert (hooked - plain).abs().max() > 0.1
    torch.testing.assert_close(hooked, weighed)
