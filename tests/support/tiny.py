"""DiffusionModels small enough to compute by hand, or to train in a second.

TinyModel: one channel, one pixel. The encoder has two layers, named as CLIP's, on the mean of fixed
word vectors. The prediction is the noised latent plus a number from the conditioning.
TinyNetworkModel: pictures of 3 x 4 x 4, and a real denoiser with cross-attention to be trained.
Only the word vectors and the initial weights are random, from fixed seeds.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Literal

import torch
from torch import nn

from unlearn.core.conditioning import Conditioning
from unlearn.core.ddim import ddim_step, guided, timesteps
from unlearn.core.edit import Edit
from unlearn.core.erasure import NETWORK, Erasure, fingerprint
from unlearn.core.progress import Progress
from unlearn.core.resume import Resume
from unlearn.core.token_reading import Reading
from unlearn.core.token_slots import Vocabulary
from unlearn.core.trainable import encoder_weights, network_weights
from unlearn.prompts.common_words import COMMON_WORDS


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
    """Layers with CLIP's names. The computation is in TinyModel."""

    def __init__(self, width: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(5, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(depth))
        self.final_layer_norm = nn.LayerNorm(width)


@cache
def word_vector(word: str, width: int) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))


def word_vectors(prompts: Sequence[str], width: int) -> torch.Tensor:
    """(N, width): the mean of the vectors of a prompt's words; zero for the empty prompt."""
    rows = []
    for prompt in prompts:
        words = [word_vector(word, width) for word in prompt.split()]
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

    @cached_property
    def _weights(self) -> dict[str, torch.Tensor]:
        """The encoder's. Kept, since to look for one by its name takes longer than to use it."""
        return dict(self.encoder.named_parameters())

    def original(self, key: str) -> torch.Tensor:
        """A weight by its key in an Edit."""
        return self._weights[key]

    def _weight(self, name: str) -> torch.Tensor:
        weight = self._weights[name]
        if self.current and name in self.current.deltas:
            return self.current.changed(name, weight)
        return weight

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return nn.functional.linear(x, self._weight(f"{name}.weight"), self._weight(f"{name}.bias"))

    def encoder_layers(self) -> list[tuple[str, nn.Module]]:
        return []  # none that a solve could change

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        self.encoded.append(list(prompts))
        return Conditioning(self._layers(word_vectors(prompts, self.width))[:, None])

    def vocabulary(self) -> Vocabulary:
        words = sorted({word for word in COMMON_WORDS if " " not in word})
        return Vocabulary(words, torch.stack([word_vector(word, self.width) for word in words]))

    def readings(self, words: str) -> list[Reading]:
        """One token for each word, without regard to case. Words in ASCII are known tokens."""
        tokens = tuple(zlib.crc32(word.encode()) for word in words.lower().split())
        return [Reading(tokens, any(word.isascii() for word in words.split()), room=75)]

    def token_count(self, words: str) -> int:
        return len(words.split())

    def encode_with_embeddings(
        self, sentences: Sequence[str], vectors: torch.Tensor
    ) -> Conditioning:
        rows = []
        for sentence, gap in zip(sentences, vectors.expand(len(sentences), -1, -1)):
            words = [word_vector(word, self.width) for word in sentence.split() if word != "{}"]
            rows.append(torch.cat([torch.stack(words), gap] if words else [gap]).mean(0))
        return Conditioning(self._layers(torch.stack(rows))[:, None])

    def _layers(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(len(self.encoder.layers)):
            query = torch.tanh(self._linear(x, f"layers.{i}.self_attn.q_proj"))
            x = x + self._linear(query, f"layers.{i}.self_attn.out_proj")
            hidden = torch.tanh(self._linear(x, f"layers.{i}.mlp.fc1"))
            x = x + self._linear(hidden, f"layers.{i}.mlp.fc2")
        return x

    def release_saved_tensors(self) -> None:
        pass

    told_guidance = False
    has_autoencoder = True
    deviation = 0.0
    """Of what the autoencoder says of a picture."""

    def encode_images(
        self, images: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        mean = self._mean_latents(images)
        if generator is None:
            return mean
        return mean + self.deviation * torch.randn(mean.shape, generator=generator)

    def _mean_latents(self, images: torch.Tensor) -> torch.Tensor:
        return images[..., :1].mean((1, 2), keepdim=True).movedim(-1, 1)

    def decode_latents(self, x0: torch.Tensor) -> torch.Tensor:
        return x0.movedim(1, -1).expand(-1, -1, -1, 3).clamp(0, 1)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x0 + noise * (t / 1000).view(-1, 1, 1, 1)

    def target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.asked.append((x0, noise, t))
        return noise

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        return x_t + conditioning.cross[:, 0, 0].view(-1, 1, 1, 1)

    def predict_x0(
        self, x_t: torch.Tensor, t: torch.Tensor, prediction: torch.Tensor
    ) -> torch.Tensor:
        return x_t - prediction * (t / 1000).view(-1, 1, 1, 1)

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(count, 1, 1, 1, generator=generator)

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
            weight = model.original(key)
            weight.add_(erasure.delta(key).view(weight.shape))
        return model

    def fingerprints(self, keys: Iterable[str]) -> dict[str, str]:
        return {key: fingerprint(self.original(key)) for key in keys}


class LinearModel(TinyModel):
    """A single weight w, which is both the conditioning and the prediction.

    So the denoising loss is (w - noise)^2, and its derivative is 2 (w - noise).
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


class CrossAttention(nn.Module):
    """Cross-attention from places of the picture to tokens. Tokens that are zero are padding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
        scores = self.to_q(x) @ self.to_k(cross).mT / math.sqrt(x.shape[-1])
        padding = ~cross.any(-1)[:, None]
        return self.to_out(scores.masked_fill(padding, -torch.inf).softmax(-1) @ self.to_v(cross))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn2 = CrossAttention(width)
        self.ff = FeedForward(width)

    def forward(self, x: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
        x = x + self.attn2(x, cross)
        return x + self.ff(x)


class SmallConv(nn.Conv2d):
    """A convolution of few pixels as one product, which is several times as fast there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = nn.functional.unfold(x, self.kernel_size, padding=self.padding)
        found = self.weight.flatten(1) @ columns + self.bias[:, None]
        return found.unflatten(2, x.shape[2:])


class Network(nn.Module):
    """Predicts x0 from x_t, mostly from the prompt. Names are those of Stable Diffusion's UNet."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.time_embed = nn.Linear(1, width)
        self.conv_in = SmallConv(channels, width, 3, padding=1)
        self.transformer_blocks = nn.ModuleList([Block(width)])
        self.conv_out = SmallConv(width, channels, 3, padding=1)
        with torch.no_grad():
            self.conv_in.weight.mul_(0.3)

    def forward(self, x: torch.Tensor, t: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
        h = self.conv_in(x) + self.time_embed(t[:, None] / 1000)[..., None, None]
        places = h.flatten(2).mT
        for block in self.transformer_blocks:
            places = block(places, cross)
        return self.conv_out(places.mT.unflatten(2, h.shape[2:]))


class TinyNetworkModel(TinyModel):
    """A trainable denoiser in one of three parameterisations. Prompts have several tokens.

    x_t is a x0 + s noise. With "eps" and "v", a and s are the cosine and sine of an angle that
    grows with t. With "flow", s grows with t to 1, and a is 1 - s. At t = 0 some noise is left.
    """

    SHAPE = (3, 4, 4)

    def __init__(self, parameterisation: Literal["eps", "v", "flow"] = "eps") -> None:
        super().__init__()
        self.parameterisation = parameterisation
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.network = Network(self.SHAPE[0], self.width).requires_grad_(False)
        self.predictions: list[int] = []
        """The batch size of every `predict`."""
        self.learnt_from: list[int] = []
        """The batch sizes of those with a gradient."""
        self.drawn: list[list[str]] = []
        """The prompts of every `sample`."""

    @property
    def layers(self) -> nn.Module:
        return self.network

    @cached_property
    def _network_weights(self) -> dict[str, torch.Tensor]:
        return dict(self.network.named_parameters())

    def original(self, key: str) -> torch.Tensor:
        if key.startswith(NETWORK):
            return self._network_weights[key.removeprefix(NETWORK)]
        return super().original(key)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        self.encoded.append(list(prompts))
        tokens = [["<start>", *prompt.replace(",", " ").lower().split()] for prompt in prompts]
        return self._padded([[word_vector(word, self.width) for word in words] for words in tokens])

    def encode_with_embeddings(
        self, sentences: Sequence[str], vectors: torch.Tensor
    ) -> Conditioning:
        rows = []
        for sentence, gap in zip(sentences, vectors.expand(len(sentences), -1, -1)):
            words = ["<start>", *sentence.replace(",", " ").lower().split()]
            parts = [gap if w == "{}" else [word_vector(w, self.width)] for w in words]
            rows.append([vector for part in parts for vector in part])
        return self._padded(rows)

    def _padded(self, rows: list[list[torch.Tensor]]) -> Conditioning:
        """The conditioning of prompts by the vectors of their tokens, the shorter padded with
        zeros. No token knows of another, so all go through the layers at once."""
        read = self._layers(torch.stack([vector for row in rows for vector in row]))
        parts = read.split([len(row) for row in rows])
        return Conditioning(nn.utils.rnn.pad_sequence(parts, batch_first=True))

    def _mean_latents(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images.movedim(-1, 1), self.SHAPE[1:])

    def decode_latents(self, x0: torch.Tensor) -> torch.Tensor:
        return x0.movedim(1, -1).clamp(0, 1)

    def _mix(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, s) for timesteps."""
        t = t.view(-1, 1, 1, 1) / 1000
        if self.parameterisation == "flow":
            s = 0.1 + 0.9 * t
            return 1 - s, s
        angle = 0.3 + 1.1 * t
        return angle.cos(), angle.sin()

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a, s = self._mix(t)
        return a * x0 + s * noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        super().target(x0, noise, t)
        a, s = self._mix(t)
        return {"eps": noise, "v": a * noise - s * x0, "flow": noise - x0}[self.parameterisation]

    def predict_x0(
        self, x_t: torch.Tensor, t: torch.Tensor, prediction: torch.Tensor
    ) -> torch.Tensor:
        a, s = self._mix(t)
        if self.parameterisation == "eps":
            return (x_t - s * prediction) / a
        return (a * x_t if self.parameterisation == "v" else x_t) - s * prediction

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(count, *self.SHAPE, generator=generator)

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        self.predictions.append(len(x_t))
        changed = {}
        if self.current:
            changed = {
                key.removeprefix(NETWORK): self.current.changed(key, self.original(key))
                for key in self.current.deltas
                if key.startswith(NETWORK)
            }
        inputs = (x_t, t, conditioning.cross)
        x0 = torch.func.functional_call(self.network, changed, inputs, tie_weights=False)
        a, s = self._mix(t)
        if x0.requires_grad:
            self.learnt_from.append(len(x_t))
        return {
            "eps": lambda: (x_t - a * x0) / s,
            "v": lambda: (a * x_t - x0) / s,
            "flow": lambda: (x_t - x0) / s,
        }[self.parameterisation]()

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[str], seed: int, steps: int = 20, guidance: float = 7.5
    ) -> torch.Tensor:
        self.drawn.append(list(prompts))
        own, empty = self.encode(prompts), self.encode([""]).repeated(len(prompts))
        seeds = range(seed, seed + len(prompts))
        x = torch.cat([self.noise(1, torch.Generator().manual_seed(one)) for one in seeds])
        times = timesteps(steps)
        for t, after in zip(times, [*times[1:], None]):
            x = ddim_step(self, x, t, guided(self, x, t, own, empty, guidance), after)
        return x

    @contextmanager
    def edit(self, part: str, select: str, rank: int = 0, seed: int = 0) -> Iterator[Edit]:
        if part == "encoder":
            with super().edit(part, select, rank, seed) as edit:
                yield edit
            return
        found = network_weights(self.network, select)
        edit = self.current = Edit({NETWORK + key: w for key, w in found.items()}, rank, seed)
        try:
            yield edit
        finally:
            self.current = None


class OutOfMemoryAtTheEnd(TinyNetworkModel):
    """Runs out of memory after the training, when it is measured how far the concept moved."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        if prompts == ["a photo of a cat", ""]:
            raise MemoryError
        return super().encode(prompts)


class Stages(Progress):
    """Hands every stage on to a function: what, done, total, leader."""

    def __init__(self, hear: Callable) -> None:
        self.stage = hear


class Cancelled(Exception):
    """Raised after a step to cancel."""


def cancel_at(last: int) -> Callable:
    """Called after each step: cancels at this one."""

    def on_step(step: int, *_) -> None:
        if step == last:
            raise Cancelled

    return on_step


def kept_and_cancelled(resume: Resume, last: int) -> Callable:
    """Called after each step: cancels at this one, with the state of the step before it kept, as if
    each had been. resume: keeps none by itself, since to write them all takes long."""

    def on_step(step: int, *_) -> None:
        if step == last - 1:
            resume.every = 0.0
        if step == last:
            raise Cancelled

    return on_step


def same(one: Erasure, other: Erasure) -> bool:
    """Whether two erasures are equal, bit for bit."""
    return one.deltas.keys() == other.deltas.keys() and all(
        torch.equal(one.delta(key), other.delta(key)) for key in one.deltas
    )


def left(erased: TinyNetworkModel, x0: torch.Tensor, prompt: str, anchor: str) -> float:
    """The squared distance of the erased model's prediction from the anchor's, relative to that of
    the original model."""
    model = TinyNetworkModel(erased.parameterisation)
    t = torch.tensor([200.0, 400.0, 600.0, 800.0])
    x_t = model.add_noise(x0, model.noise(4, torch.Generator().manual_seed(2)), t)
    own, neutral = (model.encode([p]).repeated(4) for p in (prompt, anchor))
    wanted = model.predict(x_t, t, neutral)
    before = (model.predict(x_t, t, own) - wanted).square().mean()
    after = (erased.predict(x_t, t, own) - wanted).square().mean()
    return (after / before).item()
