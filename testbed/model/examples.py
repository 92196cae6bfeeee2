"""What the text encoder and the UNet are trained on: latents of drawings, with captions."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..host.precision import fast
from . import data, models
from .stage import DEVICE, workers
from .vocabulary import HELD_OUT, STYLES, caption, other_drawing


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in 0..1, channels last in memory."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)


def shifted(images: np.ndarray, variants: int, rng: np.random.Generator) -> np.ndarray:
    """Each picture `variants` times, shifted by up to three pixels: (N * variants, 128, 128, 3)."""
    copies = []
    for picture in images:
        padded = np.pad(picture, ((3, 3), (3, 3), (0, 0)), mode="edge")
        for _ in range(variants):
            y, x = rng.integers(0, 7, 2)
            copies.append(padded[y : y + data.SIZE, x : x + data.SIZE])
    return np.stack(copies)


def training_latents(folder: Path, variants: int = 8) -> tuple[torch.Tensor, list[tuple]]:
    """Latents (N, variants, 4, 16, 16) of the training drawings, and their (name, style)."""
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

    A style that is shown on a thousand other things is learnt as a style, and generalises to the
    held-out pairs. Shown on the vocabulary only, it is memorised with each object.
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
    """Latents (N, 4, 16, 16) of uint8 pictures (N, 128, 128, 3), by the trained autoencoder."""
    encoder, _ = models.autoencoder()
    weights = torch.load(folder / "autoencoder.final.pt", weights_only=True)["modules"]
    encoder.load_state_dict(
        {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}
    )
    encoder.to(DEVICE, memory_format=torch.channels_last)
    parts = np.array_split(images, max(1, len(images) // 32))

    def latents(part: np.ndarray) -> torch.Tensor:
        with torch.no_grad(), fast(DEVICE):  # both are settings of a thread
            return encoder(to_tensor(part).to(DEVICE)).float().cpu()

    with workers() as pool:
        return torch.cat(list(tqdm(pool.map(latents, parts), total=len(parts), desc="latents")))


class Batches:
    """Endless random batches of (latents, captions, (name, style)); a tenth are characters.

    others: latents and pairs outside the vocabulary. They make up the share `beside` of a batch.
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
