"""Pictures from files, as a method takes them, and into files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..writing import whole_file
from .output import Failure, check_writable

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def read_pictures(paths: list[Path]) -> list[Image.Image]:
    """The pictures in files, and of folders all in the order of their names.

    Raises Failure for a path that is missing, holds none, or cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise Failure(f"There is no picture or folder {path}; name another.")
        inside = [path]
        if path.is_dir():
            inside = sorted(one for one in path.iterdir() if one.suffix.lower() in ENDINGS)
        if not inside:
            raise Failure(
                f"{path} holds no pictures; put some there ({', '.join(sorted(ENDINGS))}) or name "
                "another folder."
            )
        files += inside
    return [_read(file) for file in files]


def _read(file: Path) -> Image.Image:
    try:
        with Image.open(file) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    # Pillow calls a damaged PNG a SyntaxError.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise Failure(f"{file} is no picture that can be read; remove or replace it.") from None


def batch(pictures: list[Image.Image], size: tuple[int, int]) -> torch.Tensor:
    """(N, height, width, 3) in 0..1, resized where need be: bicubic and uncropped, as the paper
    does (arXiv 2405.07288, released code)."""
    height, width = size
    same = [
        one if one.size == (width, height) else one.resize((width, height), Image.BICUBIC)
        for one in pictures
    ]
    return torch.from_numpy(np.stack([np.asarray(one) for one in same])).float() / 255


def check_png(file: Path | None, option: str) -> None:
    """Raises Failure for a picture to write that would be of another kind, or cannot be written."""
    if file is None:
        return
    if file.suffix.lower() != ".png":
        raise Failure(f"{file} must end in .png; name such a {option}.")
    check_writable(file)


def write_png(file: Path, picture: torch.Tensor) -> None:
    """picture: (1, height, width, 3) in 0..1; the file is written whole or not at all."""
    pixels = (picture[0].numpy() * 255).round().astype(np.uint8)
    with whole_file(file) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
