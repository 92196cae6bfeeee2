"""Drawings as a diffusion model draws them, and smears of its kind. The judge learns from them.

Latents of drawings are disturbed and decoded. They show what sampling in few steps does: speckles,
shapes a little bent, colours too strong or off, and parts that are missing.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from unlearn.files.writing import whole_file

from ..host.precision import fast
from . import data
from .augment import disturbed, scrambled
from .examples import encoded, half_latents, other_latents, trained_half, training_latents
from .judge import halves
from .stage import DEVICE, workers
from .vocabulary import HELD_OUT, resembles

SIDE = 112  # pixels
# Pictures of each drawing, of each other icon, and of smears. Together about 280 MB.
OBJECTS, CHARACTERS, OTHERS, TWOS, SMEARS = 3, 2, 0.5, 600, 800


@dataclass
class Worn:
    """Pictures as uint8 (N, SIDE, SIDE, 3), each with what it shows."""

    images: np.ndarray
    shown: list[tuple[tuple[str, ...], str | None]]
    """The names of the one thing or the two things, and the style; no name for a smear."""
    sources: list[tuple[int | str, ...]]
    """What it was made of: numbers of drawings in `data.load()`, or an icon's name."""

    def made_of(self, sources: set[int | str], wanted: bool = True) -> "Worn":
        """The pictures that are made of one of these; with wanted=False, all others."""
        keep = [i for i, mine in enumerate(self.sources) if bool(sources & set(mine)) == wanted]
        return Worn(
            self.images[keep], [self.shown[i] for i in keep], [self.sources[i] for i in keep]
        )


def worn(folder: Path, unseen: set[int]) -> Worn:
    """Worn pictures of all drawings, of half of the other icons, and of pairs; and smears.

    They are made once, from the latents of the training and by its autoencoder, and kept in
    `folder`. unseen: the drawings that no smear is made of.
    """
    file = folder / "worn.pt"
    if not file.exists():
        found = make(folder, unseen)
        state = {"images": torch.from_numpy(found.images)}
        state |= {"shown": found.shown, "sources": found.sources}
        with whole_file(file) as new:
            torch.save(state, new)
    state = torch.load(file, weights_only=True)
    return Worn(state["images"].numpy(), state["shown"], state["sources"])


def make(folder: Path, unseen: set[int]) -> Worn:
    """What `worn` keeps."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    drawings = data.load()
    pairs = list(zip(drawings.names, drawings.styles))
    trained = [i for i, pair in enumerate(pairs) if pair not in HELD_OUT]
    held_out = [i for i, pair in enumerate(pairs) if pair in HELD_OUT]
    known, _ = training_latents(folder)
    own = {i: known[k] for k, i in enumerate(trained)}
    own |= {i: z[None] for i, z in zip(held_out, encoded(folder, drawings.images[held_out]))}
    latents, shown, sources = [], [], []

    def add(z: torch.Tensor, what: tuple, *made_of: int | str) -> None:
        latents.append(z)
        shown.append(what)
        sources.append(made_of)

    for i, (name, style) in enumerate(pairs):
        for _ in range(CHARACTERS if style is None else OBJECTS):
            add(rng.choice(own[i]), ((name,), style), i)
    others, icons = other_latents(folder)
    # The report measures the judge on icons whose names resemble the vocabulary's: not these.
    usable = [k for k, (name, _) in enumerate(icons) if not resembles(name.replace(" ", "-"))]
    for k in sorted(rng.sample(usable, int(OTHERS * len(usable)))):
        add(others[k, 0], ((icons[k][0],), icons[k][1]), icons[k][0])
    ones = len(latents)
    sides = half_latents(folder)
    for _ in range(TWOS):
        left = rng.randrange(len(trained))
        style = pairs[trained[left]][1]
        right = rng.choice([k for k, i in enumerate(trained) if pairs[i][1] == style])
        z = torch.cat([rng.choice(sides[left, 0]), rng.choice(sides[right, 1])], -1)
        both = trained[left], trained[right]
        add(z, (tuple(pairs[i][0] for i in both), style), *both)
    blank = encoded(folder, np.full_like(drawings.images[:1], 255))[0]
    whole = disturbed(torch.stack(latents), blank, generator)
    seen = [i for i in range(len(pairs)) if i not in unseen]
    smears = torch.stack([rng.choice(own[rng.choice(seen)]) for _ in range(SMEARS)])
    smears = disturbed(scrambled(smears, blank, generator), blank, generator)
    images = decoded(folder, torch.cat([whole, smears]))
    pictures = [small(images[: len(whole)])]
    # Each of two things alone, too, as `Judge.things` looks at it.
    for picture, what, both in zip(images[ones:], shown[ones:], sources[ones:]):
        pictures.append(small(halves(picture.movedim(0, -1) / 255).movedim(-1, 1) * 255))
        shown += [((name,), what[1]) for name in what[0]]
        sources += [(source,) for source in both]
    pictures.append(small(images[len(whole) :]))
    shown += [((), None)] * SMEARS
    sources += [()] * SMEARS
    return Worn(torch.cat(pictures).movedim(1, -1).contiguous().numpy(), shown, sources)


def small(images: torch.Tensor) -> torch.Tensor:
    """Pictures (N, 3, H, W) in 0..255 to uint8 (N, 3, SIDE, SIDE)."""
    parts = [
        F.interpolate(part.float(), (SIDE, SIDE), mode="bilinear", antialias=True)
        for part in images.split(64)
    ]
    return torch.cat([part.round().clamp(0, 255).byte() for part in parts])


def decoded(folder: Path, z: torch.Tensor) -> torch.Tensor:
    """Pictures of latents (N, 4, 16, 16), uint8 (N, 3, 128, 128), by the trained autoencoder."""
    decoder = trained_half(folder, "decoder")

    def pictures(part: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), fast(DEVICE):  # both are settings of a thread
            x = decoder(part.to(DEVICE)).float().clamp(0, 1)
        return (x * 255).round().byte().cpu()

    parts = z.split(32)
    with workers() as pool:
        return torch.cat(list(tqdm(pool.map(pictures, parts), total=len(parts), desc="worn")))
