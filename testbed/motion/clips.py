"""Clips to learn motion from: the drawings, moved as the five motion words say.

A clip's course is a similarity for each frame, on pixels measured from the picture's middle (x to
the right, y down) as complex numbers: p becomes turn * p + shift.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..model import data
from ..model.vocabulary import CHARACTERS, FRAMES, HELD_OUT, MOTIONS

POSES = 8  # drawings of each character

# The ways are short, because IconCanvas draws upright things in the middle of the picture. In ways
# half as long again, what it drew at their ends (turned the most, smallest, lowest) was right in
# six or seven pictures of ten, in the middle of the way in nine and more. The repository's module
# learnt those first, and these afterwards (--further, 1500 steps).
SLIDE = 16.0  # pixels from the middle at either end
SPIN = 5.0  # degrees a frame
BOUNCE = 8.0  # pixels above and below the middle
GROW = 0.74  # of its size, at first
SWAY = 12.0  # degrees to either side
FOOT = 58.0  # pixels from the middle down to the point about which a thing sways


def courses() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """motion word -> (turn, shift), two complex vectors of FRAMES numbers."""
    k = np.arange(FRAMES)
    still, middle = np.ones(FRAMES, complex), np.zeros(FRAMES, complex)
    line = 2 * k / (FRAMES - 1) - 1  # -1 to 1
    swing = np.exp(1j * np.radians(SWAY) * np.sin(2 * np.pi * k / FRAMES))
    return {
        "slide": (still, SLIDE * line + 0j),
        "spin": (np.exp(1j * np.radians(SPIN) * (k - (FRAMES - 1) / 2)), middle),
        # Two hops, up and down.
        "bounce": (still, 1j * BOUNCE * (1 - 2 * np.abs(np.sin(2 * np.pi * k / FRAMES)))),
        "grow": (GROW ** (1 - k / (FRAMES - 1)) + 0j, middle),
        "sway": (swing, 1j * FOOT - swing * 1j * FOOT),
    }


def moved(images: torch.Tensor, turn: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Pictures (N, 3, H, W) in 0..1, each by its similarity, two complex (N,); white comes in."""
    height, width = images.shape[2:]
    # Sampling asks the other way round: where does what is now at p come from? Torch measures a
    # picture's halves as one.
    back, origin = 1 / turn, -shift / turn
    unit = torch.tensor([[width / 2], [height / 2]])
    theta = torch.stack(
        [
            torch.stack([back.real, -back.imag, origin.real / unit[0]], 1),
            torch.stack([back.imag, back.real, origin.imag / unit[1]], 1),
        ],
        1,
    ).float()
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # White outside: sampled as the negative, whose zero padding is white.
    return 1 - F.grid_sample(1 - images, grid, mode="bicubic", align_corners=False).clamp(0, 1)


def clip(images: torch.Tensor, motion: str) -> torch.Tensor:
    """Pictures (N, 3, 128, 128) in 0..1 to clips (N, FRAMES, 3, 128, 128).

    Raises KeyError for a word that is none of MOTIONS.
    """
    turn, shift = (torch.from_numpy(x).repeat(len(images)) for x in courses()[motion])
    frames = images.repeat_interleave(FRAMES, 0)
    return moved(frames, turn, shift).unflatten(0, (len(images), FRAMES))


def distinct(motion: str) -> tuple[np.ndarray, np.ndarray]:
    """(the numbers of a motion's frames that differ, for every frame which of these it is like).

    What bounces or sways comes by the same places again.
    """
    places = np.round(np.stack(courses()[motion], 1), 6)
    _, first, like = np.unique(places, axis=0, return_index=True, return_inverse=True)
    return first, like.reshape(-1)


def sources() -> data.Drawings:
    """The drawings that move: all pairs trained on, and some drawings of each character."""
    left = dict.fromkeys(CHARACTERS, POSES)

    def chosen(name: str, style: str | None) -> bool:
        if style is None:
            left[name] -= 1
            return left[name] >= 0
        return (name, style) not in HELD_OUT

    return data.load().where(chosen)


def training_clips(folder: Path) -> tuple[torch.Tensor, list[tuple]]:
    """Latents (N, len(MOTIONS), FRAMES, 4, 16, 16), float16, and their (name, style).

    Moved as pixels and then encoded, one file a motion word: a latent picture cannot be turned.
    """
    from ..model.train import encoded, to_tensor

    drawings = sources()
    for motion in MOTIONS:
        file = folder / f"latents-{motion}.pt"
        if not file.exists():
            parts = to_tensor(drawings.images).split(32)
            first, like = distinct(motion)
            frames = [_bytes(clip(part, motion)[:, first].flatten(0, 1)) for part in parts]
            z = encoded(folder, np.concatenate(frames)).unflatten(0, (-1, len(first)))
            z = z[:, like].half()
            temporary = file.with_suffix(".tmp")
            torch.save(z, temporary)
            temporary.replace(file)
    z = [torch.load(folder / f"latents-{motion}.pt", weights_only=True) for motion in MOTIONS]
    return torch.stack(z, 1), list(zip(drawings.names, drawings.styles))


def _bytes(images: torch.Tensor) -> np.ndarray:
    """float (N, 3, H, W) in 0..1 to uint8 (N, H, W, 3)."""
    return (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
