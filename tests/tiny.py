"""A DiffusionModel small enough to compute by hand, and its encoder on its own.

One channel, one pixel. The encoder is a stack of two layers, named as CLIP's are, on a sum of fixed
word vectors; the network adds to the noised latent what the conditioning says. Nothing is random
but the word vectors and the initial weights, both seeded.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from unlearn.erasure import Erasure, fingerprint
from unlearn.model import Conditioning, Edit
from unlearn.select import encoder_weights


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width)
        self.self_attn = Attention(width)
        self.mlp = MLP(width)


class Encoder(nn.Module):
    """CLIP's names; `forward` is the tiny model's."""

    def __init__(self, width: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(5, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(depth))
        self.final_layer_norm = nn.LayerNorm(width)


def word_vectors(prompts: Sequence[str], width: int) -> torch.Tensor:
    """(N, width): the mean of a vector for each word; zero for the empty prompt."""
    rows = []
    for prompt in prompts:
        words = [
            torch.randn(width, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))
            for word in prompt.split()
        ]
        rows.append(torch.stack(words).mean(0) if words else torch.zeros(width))
    return torch.stack(rows)


class TinyModel:
    """x_t is x0 + noise * t / 1000; the prediction is x_t plus the conditioning's first number."""

    device = torch.device("cpu")

    def __init__(self, width: int = 8) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = Encoder(width).requires_grad_(False)
        self.width = width
        self.current: Edit | None = None
        self.encoded: list[list[str]] = []
        """Every list of prompts that was encoded."""
        self.asked: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        """(x0, noise, t) of every `target`."""

    def _weight(self, name: str) -> torch.Tensor:
        weight = self.encoder.get_parameter(name)
        if self.current and name in self.current.deltas:
            return self.current.changed(name, weight)
        return weight

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return nn.functional.linear(x, self._weight(f"{name}.weight"), self._weight(f"{name}.bias"))

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        self.encoded.append(list(prompts))
        x = word_vectors(prompts, self.width)
        for i in range(len(self.encoder.layers)):
            query = torch.tanh(self._linear(x, f"layers.{i}.self_attn.q_proj"))
            x = x + self._linear(query, f"layers.{i}.self_attn.out_proj")
            hidden = torch.tanh(self._linear(x, f"layers.{i}.mlp.fc1"))
            x = x + self._linear(hidden, f"layers.{i}.mlp.fc2")
        return Conditioning(x[:, None])

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        return images[..., :1].mean((1, 2), keepdim=True).movedim(-1, 1)

    def images(self, x0: torch.Tensor) -> torch.Tensor:
        return x0.movedim(1, -1).expand(-1, -1, -1, 3).clamp(0, 1)

    def noised(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x0 + noise * (t / 1000).view(-1, 1, 1, 1)

    def target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.asked.append((x0, noise, t))
        return noise

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        return x_t + conditioning.cross[:, 0, 0].view(-1, 1, 1, 1)

    def sample(
        self, prompts: Sequence[str], seed: int, steps: int = 20, guidance: float = 7.5
    ) -> torch.Tensor:
        return self.encode(prompts).cross[:, :, :1, None].detach().clone()

    @contextmanager
    def edit(self, part: str, select: str, rank: int = 0, seed: int = 0) -> Iterator[Edit]:
        edit = Edit(encoder_weights(self.encoder, select), rank, seed)
        self.current = edit
        try:
            yield edit
        finally:
            self.current = None

    def erased(self, erasure: Erasure) -> TinyModel:
        """A model of its own with the deltas in its weights."""
        model = copy.deepcopy(self)
        for key in erasure.deltas:
            model.encoder.get_parameter(key).add_(erasure.delta(key))
        return model

    def base(self, keys: Iterable[str]) -> dict[str, str]:
        return {key: fingerprint(self.encoder.get_parameter(key)) for key in keys}


class LinearModel(TinyModel):
    """One weight w and one bias of zero: the conditioning is w, the prediction too.

    So the denoising loss is (w - noise)^2, and its slope 2 (w - noise).
    """

    def __init__(self, w: float) -> None:
        super().__init__(width=1)
        self.encoder = nn.ModuleDict({"fc": nn.Linear(1, 1, bias=False)}).requires_grad_(False)
        with torch.no_grad():
            self.encoder["fc"].weight.fill_(w)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        self.encoded.append(list(prompts))
        return Conditioning(self._weight("fc.weight").expand(len(prompts), 1)[:, None])

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        return conditioning.cross[:, 0, 0].view(-1, 1, 1, 1)

    @contextmanager
    def edit(self, part: str, select: str, rank: int = 0, seed: int = 0) -> Iterator[Edit]:
        edit = self.current = Edit({"fc.weight": self.encoder["fc"].weight}, rank, seed)
        try:
            yield edit
        finally:
            self.current = None
