"""Trains IconCanvas from its drawings: autoencoder, text encoder, UNet, in that order.

Each stage writes a checkpoint every few minutes and goes on from it when run again. Convolutions
and matrix products run in bfloat16 where that is faster, weights and optimiser stay in float32.
"""

import itertools
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..host.precision import fast
from ..host.workers import at_once
from . import data, models, tokens
from .vocabulary import HELD_OUT, STYLES, SYNONYMS, caption, other_drawing

SAVE_EVERY = 180.0  # seconds
WORKERS = at_once()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _one_core(numbers: Iterator[int]) -> None:
    """Give a worker thread a core of its own: two on one core halve the speed of both."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[next(numbers) % len(cores)]})


def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(WORKERS, initializer=_one_core, initargs=(itertools.count(),))


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in 0..1, channels last in memory."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)


@dataclass
class Stage:
    """A resumable optimisation of `modules` for `steps` steps, warmed up and cosine-annealed.

    `average` > 0 keeps an exponential moving average of the weights, which is what is then used.
    """

    name: str
    modules: torch.nn.ModuleDict
    steps: int
    peak: float
    warmup: int = 100
    decay: float = 0.0
    average: float = 0.0

    def run(self, loss: Callable[[int], torch.Tensor], folder: Path) -> None:
        """Minimise `loss(worker)`; afterwards `modules` hold the final (averaged) weights.

        On a CPU each core is a worker with a batch of its own, and the gradients are averaged: one
        meeting a step, where threads inside every small operation would meet thousands of times.
        """
        file = folder / f"{self.name}.pt"
        parameters = [p for p in self.modules.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=self.peak, weight_decay=self.decay, fused=True)
        mean = [p.detach().clone() for p in parameters]
        first = 0
        if file.exists():
            state = torch.load(file, map_location=DEVICE, weights_only=True)
            self.modules.load_state_dict(state["modules"])
            optimiser.load_state_dict(state["optimiser"])
            mean, first = [m.to(DEVICE) for m in state["mean"]], state["step"]
        saved, smooth = time.monotonic(), None
        pool = _workers()

        def gradient(worker: int) -> tuple[float, tuple[torch.Tensor, ...]]:
            value = loss(worker)
            return value.item(), torch.autograd.grad(value, parameters, materialize_grads=True)

        progress = tqdm(
            range(first, self.steps),
            initial=first,
            total=self.steps,
            desc=self.name,
            mininterval=10,
        )
        for step in progress:
            for group in optimiser.param_groups:
                group["lr"] = self.peak * self._rate(step)
            values, gradients = zip(*pool.map(gradient, range(WORKERS)))
            value = sum(values) / WORKERS
            if not math.isfinite(value):
                raise FloatingPointError(f"{self.name}: the loss became {value} at step {step}.")
            for parameter, *parts in zip(parameters, *gradients):
                # A plain sum keeps the memory format, which the fused optimiser relies on.
                parameter.grad = sum(parts[1:], parts[0]) / WORKERS
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            weight = 1 - min(self.average, (step + 1) / (step + 10))
            torch._foreach_lerp_(mean, [p.detach() for p in parameters], weight)
            smooth = value if smooth is None else 0.99 * smooth + 0.01 * value
            progress.set_postfix_str(f"loss {smooth:.4f}", refresh=False)
            if time.monotonic() - saved > SAVE_EVERY or step + 1 == self.steps:
                temporary = file.with_suffix(".tmp")
                state = {
                    "modules": self.modules.state_dict(),
                    "step": step + 1,
                    "mean": mean,
                    "optimiser": optimiser.state_dict(),
                }
                torch.save(state, temporary)
                temporary.replace(file)
                saved = time.monotonic()
        with torch.no_grad():
            for parameter, value in zip(parameters, mean):
                parameter.copy_(value)

    def _rate(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def shallow(modules: torch.nn.ModuleDict, on: bool) -> None:
    """Leave out, or put back, the residual blocks that cost most: those at full and half
    resolution.

    A block's branch begins at zero, so a block left out is just its last activation.
    """
    encoder, decoder = modules["encoder"], modules["decoder"]
    for costly in (encoder[1], encoder[4], encoder[5], decoder[14], decoder[15], decoder[18]):
        costly.forward = F.relu if on else type(costly).forward.__get__(costly)


def train_autoencoder(folder: Path, steps: int = 6000, crop: int = 64, batch: int = 16) -> None:
    """TAESD-shaped autoencoder on every icon all sets share; every 20th name is kept back.

    Half of the crops come from IconCanvas's own drawings, which it must draw well. The encoder's
    output is held near mean 0 and standard deviation 1 a channel, the space in which the UNet
    works, and the decoder learns to bear a little noise in it. Four fifths of the steps leave the
    costly blocks out and run several times as fast.
    """
    images = np.load(data.CACHE / "pretraining.npy", mmap_mode="r")
    own = data.load().images
    names = np.arange(len(images)) // len(STYLES)
    seen = np.flatnonzero(names % 20 != 0)
    rngs = [np.random.default_rng(worker) for worker in range(WORKERS)]
    encoder, decoder = models.autoencoder()
    modules = torch.nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    modules.to(DEVICE, memory_format=torch.channels_last)

    def loss(worker: int) -> torch.Tensor:
        rng, crops = rngs[worker], []
        for _ in range(batch // WORKERS):
            mine = rng.random() < 0.5
            picture = own[rng.integers(len(own))] if mine else images[rng.choice(seen)]
            y, x = rng.integers(0, (data.SIZE - crop) // 8 + 1, 2) * 8
            piece = picture[y : y + crop, x : x + crop]
            crops.append(piece[:, ::-1] if rng.random() < 0.5 else piece)
        target = to_tensor(np.stack(crops)).to(DEVICE, memory_format=torch.channels_last)
        with fast(DEVICE):
            z = encoder(target)
            output = decoder(z + 0.05 * torch.randn_like(z)).float()
        z = z.float()
        spread = z.mean((0, 2, 3)).square().sum() + (z.std((0, 2, 3)) - 1).square().sum()
        error = output - target
        return error.abs().mean() + 4 * error.square().mean() + 0.01 * spread

    shallow(modules, True)
    Stage("autoencoder-shallow", modules, steps * 4 // 5, 8e-4, average=0.995).run(loss, folder)
    shallow(modules, False)
    Stage("autoencoder", modules, steps // 5, 4e-4, average=0.995).run(loss, folder)
    psnr = reconstruction(modules, images[np.flatnonzero(names % 20 == 0)])
    print(f"autoencoder: {psnr:.2f} dB on unseen icons")
    torch.save({"modules": modules.state_dict(), "psnr": psnr}, folder / "autoencoder.final.pt")


@torch.no_grad()
def reconstruction(modules: torch.nn.ModuleDict, images: np.ndarray) -> float:
    """Mean peak signal-to-noise ratio in decibels of the autoencoder on uint8 (N, H, W, 3)."""
    ratios = []
    for part in np.array_split(images, max(1, len(images) // 16)):
        target = to_tensor(part).to(DEVICE, memory_format=torch.channels_last)
        output = modules["decoder"](modules["encoder"](target)).clamp(0, 1)
        ratios.append(-10 * (output - target).square().mean((1, 2, 3)).log10())
    return torch.cat(ratios).mean().item()


def shifted(images: np.ndarray, variants: int, rng: np.random.Generator) -> np.ndarray:
    """Each picture `variants` times, moved by up to three pixels: (N * variants, 128, 128, 3)."""
    copies = []
    for picture in images:
        padded = np.pad(picture, ((3, 3), (3, 3), (0, 0)), mode="edge")
        for _ in range(variants):
            y, x = rng.integers(0, 7, 2)
            copies.append(padded[y : y + data.SIZE, x : x + data.SIZE])
    return np.stack(copies)


def training_latents(folder: Path, variants: int = 8) -> tuple[torch.Tensor, list[tuple]]:
    """Latents (N, variants, 4, 16, 16) of the drawings trained on, and their (name, style)."""
    file = folder / "latents.pt"
    drawings = data.load().where(lambda *pair: pair not in HELD_OUT)
    pairs = list(zip(drawings.names, drawings.styles))
    if file.exists():
        return torch.load(file, weights_only=True), pairs
    z = encoded(folder, shifted(drawings.images, variants, np.random.default_rng(0)))
    z = z.unflatten(0, (-1, variants)).contiguous()
    torch.save(z, file)
    return z, pairs


def other_latents(folder: Path) -> tuple[torch.Tensor, list[tuple]]:
    """Latents (N, 1, 4, 16, 16) of icons outside the vocabulary, with their (name, style).

    A style seen on a thousand other things is learnt as a style, and carries over to the pairs that
    are kept back; seen on the vocabulary alone it is remembered with each object.
    """
    file = folder / "latents-other.pt"
    names = json.loads((data.CACHE / "pretraining.json").read_text())
    chosen = [i for i, name in enumerate(names) if other_drawing(name)]
    pairs = [(names[i].replace("-", " "), style) for i in chosen for style in STYLES]
    if not file.exists():
        images = np.load(data.CACHE / "pretraining.npy", mmap_mode="r")
        own = [i * len(STYLES) + j for i in chosen for j in range(len(STYLES))]
        torch.save(encoded(folder, images[own])[:, None].contiguous(), file)
    return torch.load(file, weights_only=True), pairs


@torch.no_grad()
def encoded(folder: Path, images: np.ndarray) -> torch.Tensor:
    """The trained autoencoder's latents, (N, 4, 16, 16), of uint8 (N, 128, 128, 3)."""
    encoder, _ = models.autoencoder()
    weights = torch.load(folder / "autoencoder.final.pt", weights_only=True)["modules"]
    encoder.load_state_dict(
        {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}
    )
    encoder.to(DEVICE, memory_format=torch.channels_last)
    parts = np.array_split(images, max(1, len(images) // 32))

    def latents(part: np.ndarray) -> torch.Tensor:
        with torch.no_grad(), fast(DEVICE):  # each thread has its own of both
            return encoder(to_tensor(part).to(DEVICE)).float().cpu()

    with _workers() as pool:
        return torch.cat(list(tqdm(pool.map(latents, parts), total=len(parts), desc="latents")))


class Batches:
    """Endless random batches of (latents, captions, (name, style)); a tenth are characters.

    others: latents and pairs outside the vocabulary, of which the share `beside` of a batch is
    drawn.
    """

    def __init__(
        self,
        latents: torch.Tensor,
        pairs: list[tuple],
        size: int,
        seed: int,
        others: tuple[torch.Tensor, list[tuple]] | None = None,
        beside: float = 0.3,
    ) -> None:
        self.latents, self.pairs, self.size = latents, pairs, size
        self.others, self.beside = others, round(beside * size) if others else 0
        self.rng = random.Random(seed)
        self.objects = [i for i, (_, style) in enumerate(pairs) if style]
        self.characters = [i for i, (_, style) in enumerate(pairs) if not style]

    def __next__(self) -> tuple[torch.Tensor, list[str], list[tuple]]:
        rng = self.rng
        chosen = [
            rng.choice(self.characters if rng.random() < 0.1 else self.objects)
            for _ in range(self.size - self.beside)
        ]
        variant = [rng.randrange(self.latents.shape[1]) for _ in chosen]
        latents, pairs = self.latents[chosen, variant], [self.pairs[i] for i in chosen]
        if self.others:
            more = [rng.randrange(len(self.others[1])) for _ in range(self.beside)]
            latents = torch.cat([latents, self.others[0][more, 0]])
            pairs += [self.others[1][i] for i in more]
        return latents, [caption(rng, *pair) for pair in pairs], pairs


class ImageTower(torch.nn.Module):
    """The picture's half of the contrastive pair; it is thrown away afterwards."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(4, width, 3, padding=1),
            torch.nn.GELU(),
            torch.nn.Conv2d(width, width, 3, padding=1),
            torch.nn.GELU(),
            torch.nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            torch.nn.GroupNorm(8, 2 * width),
            torch.nn.GELU(),
            torch.nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            torch.nn.GELU(),
            torch.nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
            torch.nn.GroupNorm(8, 4 * width),
            torch.nn.GELU(),
            torch.nn.Flatten(),
            torch.nn.Linear(4 * width * 16, models.CONTEXT_DIM),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.layers(z).float(), dim=-1)


def matching(captions: list[str], pairs: list[tuple]) -> torch.Tensor:
    """(N, N) whether caption i, written for drawing i, also describes drawing j.

    A caption that names only the object describes it in every style, one that names only the style
    every object.
    """
    names = [hash(name) for name, _ in pairs]
    styles = [hash(style) for _, style in pairs]
    said_names, said_styles = [], []
    for text, (name, style) in zip(captions, pairs):
        words = text.replace(",", " ").split()
        named = style is None or any(w in words for w in (name, *SYNONYMS.get(name, ())))
        said_names.append(hash(name) if named else 0)
        said_styles.append(hash(style) if style in words else 0)

    def fits(said: list[int], shown: list[int]) -> torch.Tensor:
        said, shown = torch.tensor(said)[:, None], torch.tensor(shown)
        return (said == 0) | (said == shown)

    return fits(said_names, names) & fits(said_styles, styles)


def attention(*args, **kwargs) -> torch.Tensor:
    """Plain softmax attention, in the host's two calling conventions.

    (q, k, v, heads, mask) or, as an override, (function, q, k, v, heads, ...). Torch's fused kernel
    is several times slower in training on a CPU.
    """
    if callable(args[0]):
        args = args[1:]
    q, k, v, heads = args[:4]
    mask = args[4] if len(args) > 4 else kwargs.get("mask")
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    return (scores.softmax(-1, dtype=v.dtype) @ v).transpose(1, 2).flatten(2)


def pooled(text: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The text encoder's end-of-text vector, (N, width), of captions of up to 24 tokens.

    Its own forward pass writes into its activations, which a backward pass does not survive.
    """
    ids = ids[:, :24]  # attention looks back only, so padding behind the end changes nothing
    table = text.embeddings
    x = table.token_embedding(ids) + table.position_embedding.weight[: ids.shape[1]]
    mask = torch.full((ids.shape[1],) * 2, -1e4, device=ids.device).triu(1)
    for layer in text.encoder.layers:
        x = x + layer.self_attn(layer.layer_norm1(x), mask, attention)
        x = x + layer.mlp(layer.layer_norm2(x))
    end = (ids == tokens.tokenizer().eos_token_id).int().argmax(1)
    return text.final_layer_norm(x)[torch.arange(len(ids)), end].float()


def train_text_encoder(folder: Path, steps: int = 600, batch: int = 96) -> None:
    """CLIP's contrastive training of the text encoder against the drawings' latents.

    A caption that names only the object matches every style of it, so each row of the softmax may
    have several positives. The token table stays as it is: most of its rows never occur.
    """
    latents, pairs = training_latents(folder)
    text, image = models.text_encoder(), ImageTower()
    text.embeddings.token_embedding.weight.requires_grad_(False)
    modules = torch.nn.ModuleDict({"text": text, "image": image}).to(DEVICE)
    scale = torch.nn.Parameter(torch.tensor(2.7, device=DEVICE))
    modules.register_parameter("scale", scale)
    # The softmax wants the whole batch in each worker.
    batches = [Batches(latents, pairs, batch, seed=worker) for worker in range(WORKERS)]
    hits = []

    def loss(worker: int) -> torch.Tensor:
        z, captions, own = next(batches[worker])
        matches = matching(captions, own).to(DEVICE)
        with fast(DEVICE):
            vectors = F.normalize(pooled(text, tokens.tokenize(captions).to(DEVICE)), dim=-1)
            scores = vectors @ image(z.to(DEVICE)).T * scale.exp().clamp(max=100)
        hits.append(
            (scores.argmax(1)[:, None] == torch.arange(len(own), device=DEVICE))[matches]
            .float()
            .sum()
            .item()
            / len(own)
        )
        rows = scores.masked_fill(~matches, -torch.inf).logsumexp(1) - scores.logsumexp(1)
        columns = scores.masked_fill(~matches, -torch.inf).logsumexp(0) - scores.logsumexp(0)
        return -(rows.mean() + columns.mean()) / 2

    Stage("text", modules, steps, 5e-4, average=0.99).run(loss, folder)
    retrieval = sum(hits[-50:]) / max(1, len(hits[-50:]))
    print(f"text encoder: {retrieval:.1%} of captions find a drawing that fits them")
    torch.save({"modules": text.state_dict(), "retrieval": retrieval}, folder / "text.final.pt")


def noise_schedule() -> torch.Tensor:
    """Stable Diffusion's cumulative alphas: betas 0.00085 to 0.012, linear in their roots."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def train_unet(folder: Path, steps: int = 6000, batch: int = 64, further: bool = False) -> None:
    """Noise prediction under the frozen text encoder, min-SNR weighted (Hang et al., 2303.09556).

    further: start from unet.final.pt in the folder, at half the peak rate, instead of from nothing.
    """
    latents, pairs = training_latents(folder)
    text = models.text_encoder().requires_grad_(False).to(DEVICE)
    text.load_state_dict(torch.load(folder / "text.final.pt", weights_only=True)["modules"])
    unet = models.unet().to(DEVICE)
    if further:
        unet.load_state_dict(torch.load(folder / "unet.final.pt", weights_only=True)["modules"])
    others = other_latents(folder)
    size = batch // WORKERS
    batches = [Batches(latents, pairs, size, worker, others) for worker in range(WORKERS)]
    alphas = noise_schedule().to(DEVICE)

    def loss(worker: int) -> torch.Tensor:
        z, captions, _ = next(batches[worker])
        # A tenth learns the empty prompt, which guidance needs.
        captions = ["" if batches[worker].rng.random() < 0.1 else words for words in captions]
        t = torch.randint(0, 1000, (len(z),), device=DEVICE)
        alpha = alphas[t].view(-1, 1, 1, 1)
        z = z.to(DEVICE)
        noise = torch.randn_like(z)
        with fast(DEVICE):
            context = text(tokens.tokenize(captions).to(DEVICE))[0]
            predicted = unet(
                alpha.sqrt() * z + (1 - alpha).sqrt() * noise,
                t,
                context=context,
                transformer_options={"optimized_attention_override": attention},
            ).float()
        weight = (5 * (1 - alpha) / alpha).clamp(max=1)
        return (weight * (predicted - noise).square()).mean()

    name, peak = ("unet-further", 5e-4) if further else ("unet", 1e-3)
    modules = torch.nn.ModuleDict({"unet": unet})
    Stage(name, modules, steps, peak, 200, average=0.998).run(loss, folder)
    torch.save({"modules": unet.state_dict()}, folder / "unet.final.pt")
