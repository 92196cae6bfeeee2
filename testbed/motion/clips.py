"""Clips for training the motion module: the drawings, moved as the five motion words say.

A clip's course is one similarity transform for each frame. Pixels are complex numbers, measured
from the picture's middle (x to the right, y down): p becomes turn * p + shift.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from unlearn.files.writing import whole_file

from ..model import data
from ..model.vocabulary import CHARACTERS, FRAMES, HELD_OUT, MOTIONS

POSES = 8  # drawings of each character

# The movements are short, because IconCanvas draws upright things in the middle of the picture.
# With movements half as long again, the pictures at the ends (turned the most, smallest, lowest)
# were right in six or seven of ten cases, those in between in nine or more. The repository's module
# was trained on the long ones first and on these afterwards (--further, 1500 steps).
SLIDE = 16.0  # pixels from the middle at either end
SPIN = 5.0  # degrees between two frames
BOUNCE = 8.0  # pixels above and below the middle
GROW = 0.74  # the size in the first frame; 1 in the last
SWAY = 12.0  # degrees to either side
FOOT = 58.0  # pixels from the middle down to the point around which a thing sways


def courses() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """From each motion word to (turn, shift), two complex vectors of FRAMES numbers."""
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
    """Pictures (N, 3, H, W) in 0..1, each moved by its similarity: turn and shift, complex (N,).

    What comes in from outside is white.
    """
    height, width = images.shape[2:]
    # Sampling needs the inverse: where the pixel at p comes from. Torch's coordinates go from -1 to
    # 1 over the picture.
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
    """From pictures (N, 3, 128, 128) in 0..1 to clips (N, FRAMES, 3, 128, 128).

    Raises KeyError for a word that is not in MOTIONS.
    """
    turn, shift = (torch.from_numpy(x).repeat(len(images)) for x in courses()[motion])
    frames = images.repeat_interleave(FRAMES, 0)
    return moved(frames, turn, shift).unflatten(0, (len(images), FRAMES))


def distinct(motion: str) -> tuple[np.ndarray, np.ndarray]:
    """(indices of the different frames of a motion, for every frame the one of these it equals).

    What bounces or sways passes the same places twice.
    """
    places = np.round(np.stack(courses()[motion], 1), 6)
    _, first, like = np.unique(places, axis=0, return_index=True, return_inverse=True)
    return first, like.reshape(-1)


def sources() -> data.Drawings:
    """The drawings that are moved: all training pairs, and some drawings of each character."""
    left = dict.fromkeys(CHARACTERS, POSES)

    def chosen(name: str, style: str | None) -> bool:
        if style is None:
            left[name] -= 1
            return left[name] >= 0
        return (name, style) not in HELD_OUT

    return data.load().where(chosen)


def training_clips(folder: Path) -> tuple[torch.Tensor, list[tuple]]:
    """Latents (N, len(MOTIONS), FRAMES, 4, 16, 16), float16, and their (name, style).

    The drawings are moved as pixels and then encoded, since latents cannot be turned. Each motion
    word has a file in the folder.
    """
    from ..model.examples import encoded, to_tensor

    drawings = sources()
    for motion in MOTIONS:
        file = folder / f"latents-{motion}.pt"
        if not file.exists():
            parts = to_tensor(drawings.images).split(32)
            first, like = distinct(motion)
            frames = [_bytes(clip(part, motion)[:, first].flatten(0, 1)) for part in parts]
            z = encoded(folder, np.concatenate(frames)).unflatten(0, (-1, len(first)))
            z = z[:, like].half()
            with whole_file(file) as new:
                torch.save(z, new)
    z = [torch.load(folder / f"latents-{motion}.pt", weights_only=True) for motion in MOTIONS]
    return torch.stack(z, 1), list(zip(drawings.names, drawings.styles))


def _bytes(images: torch.Tensor) -> np.ndarray:
    """From float (N, 3, H, W) in 0..1 to uint8 (N, H, W, 3)."""
    return (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
