"""What the text encoder and the UNet are trained on: latents of drawings, with captions."""

import json
import random
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from unlearn.prompts.translations import translations

from ..host.precision import fast
from . import data, models, phrases, tokens
from .captions import Caption, Grammar, in_motion, plural
from .colours import COLOURS, colours
from .stage import DEVICE, workers
from .vocabulary import HELD_OUT, MOTIONS, OBJECTS, STYLES, known_words, other_drawing


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


def trained_half(folder: Path, name: str) -> torch.nn.Module:
    """The trained autoencoder's "encoder" or "decoder"."""
    half = dict(zip(("encoder", "decoder"), models.autoencoder()))[name]
    weights = torch.load(folder / "autoencoder.final.pt", weights_only=True)["modules"]
    start = f"{name}."
    half.load_state_dict(
        {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}
    )
    return half.to(DEVICE, memory_format=torch.channels_last)


@torch.no_grad()
def encoded(folder: Path, images: np.ndarray) -> torch.Tensor:
    """Latents (N, 4, 16, 16) of uint8 pictures (N, 128, 128, 3), by the trained autoencoder."""
    encoder = trained_half(folder, "encoder")
    parts = np.array_split(images, max(1, len(images) // 32))

    def latents(part: np.ndarray) -> torch.Tensor:
        with torch.no_grad(), fast(DEVICE):  # both are settings of a thread
            return encoder(to_tensor(part).to(DEVICE)).float().cpu()

    with workers() as pool:
        return torch.cat(list(tqdm(pool.map(latents, parts), total=len(parts), desc="latents")))


def half_latents(folder: Path, variants: int = 3) -> torch.Tensor:
    """Latents (N, 2, variants, 4, 16, 8) of the training drawings at half their size, as the left
    and as the right half of a picture of two things."""
    file = folder / "latents-half.pt"
    if not file.exists():
        drawings = data.load().where(lambda *pair: pair not in HELD_OUT)
        halves = halved(drawings.images, variants, np.random.default_rng(1))
        blank = np.full_like(halves, 255)
        # Each is encoded beside an empty half: at a picture's edge the autoencoder does not see
        # white, and two such edges in the middle of a picture would be drawn as a stripe.
        left = encoded(folder, np.concatenate([halves, blank], 2))[..., : data.SIZE // 16]
        right = encoded(folder, np.concatenate([blank, halves], 2))[..., data.SIZE // 16 :]
        sides = torch.stack([left, right], 1).unflatten(0, (-1, variants))
        torch.save(sides.transpose(1, 2).contiguous(), file)
    return torch.load(file, weights_only=True)


def halved(images: np.ndarray, variants: int, rng: np.random.Generator) -> np.ndarray:
    """Each picture `variants` times at half its size, at the middle height of half a picture or a
    little off it: (N * variants, 128, 64, 3)."""
    half = data.SIZE // 2
    out = np.full((len(images) * variants, data.SIZE, half, 3), 255, np.uint8)
    for i, picture in enumerate(images):
        small = np.asarray(Image.fromarray(picture).resize((half, half), Image.Resampling.LANCZOS))
        for k in range(variants):
            top = half // 2 + rng.integers(-4, 5)
            out[i * variants + k, top : top + half] = small
    return out


def meaningless_words() -> list[str]:
    """Words to strew into captions. None of them names a drawing or asks for anything."""
    others = json.loads((data.CACHE / "pretraining.json").read_text())
    taken = known_words() | {part for name in others for part in name.split("-")}
    taken |= {plural(word) for word in taken} | set(COLOURS)
    taken |= {w for name in OBJECTS for text in translations(name) for w in text.lower().split()}
    taken |= {word for words in phrases.MOTION_WORDS.values() for w in words for word in w.split()}
    taken |= {*phrases.ANY_OBJECT, *phrases.ANY_PERSON, phrases.ANY_STYLE}
    return tokens.idle_words(taken)


class Batches:
    """Endless random batches of (latents, captions, shown).

    A tenth of the vocabulary's pictures are characters and three tenths show two things side by
    side: halves are harder to learn than wholes.
    shown: (names from left to right, style) of each picture, the style None for characters.

    folder: where the latents are. others: the share of icons outside the vocabulary. moving: the
    share of captions that end in a motion, which a picture cannot show.
    """

    TWO = 0.3
    TWICE = 0.25  # of the pictures of two things: those of the same thing twice

    def __init__(
        self, folder: Path, size: int, seed: int, others: float = 0.3, moving: float = 0.0
    ) -> None:
        self.latents, self.pairs = training_latents(folder)
        self.halves = half_latents(folder)
        self.others, self.other_pairs = other_latents(folder)
        self.size, self.beside, self.moving = size, round(others * size), moving
        self.rng = random.Random(seed)
        self.grammar = Grammar(meaningless_words())
        self.colours = drawing_colours()
        self.objects = [i for i, (_, style) in enumerate(self.pairs) if style]
        self.characters = [i for i, (_, style) in enumerate(self.pairs) if not style]
        self.of_style: dict[str | None, list[int]] = {}
        for i, (_, style) in enumerate(self.pairs):
            self.of_style.setdefault(style, []).append(i)

    def __next__(self) -> tuple[torch.Tensor, list[Caption], list[tuple]]:
        made = [self.own() for _ in range(self.size - self.beside)]
        made += [self.other() for _ in range(self.beside)]
        latents, captions, shown = zip(*made)
        return torch.stack(latents), list(captions), list(shown)

    def own(self) -> tuple[torch.Tensor, Caption, tuple]:
        rng = self.rng
        i = rng.choice(self.characters if rng.random() < 0.1 else self.objects)
        name, style = self.pairs[i]
        if rng.random() < self.TWO:
            j = i if rng.random() < self.TWICE else rng.choice(self.of_style[style])
            names = (name, self.pairs[j][0])
            z = torch.cat([rng.choice(self.halves[i][0]), rng.choice(self.halves[j][1])], -1)
            return z, self.said(names, style), (names, style)
        z = rng.choice(self.latents[i])
        return z, self.said((name,), style, self.colours.get((name, style), ())), ((name,), style)

    def other(self) -> tuple[torch.Tensor, Caption, tuple]:
        i = self.rng.randrange(len(self.other_pairs))
        name, style = self.other_pairs[i]
        # A neutral word means a thing of the vocabulary: many of these icons are signs.
        return self.others[i, 0], self.said((name,), style, nameless=False), ((name,), style)

    def said(
        self, names: tuple, style: str | None, colours: tuple = (), nameless: bool = True
    ) -> Caption:
        caption = self.grammar.caption(self.rng, names, style, colours, nameless)
        if self.rng.random() < self.moving:
            caption = in_motion(self.rng, caption, self.rng.choice(MOTIONS))
        return caption


@lru_cache(1)
def drawing_colours() -> dict[tuple, tuple[str, ...]]:
    """The true colours of every object's drawing, by (name, style)."""
    drawings = data.load()
    named = zip(drawings.names, drawings.styles, drawings.images)
    return {(name, style): colours(image) for name, style, image in named if style}
