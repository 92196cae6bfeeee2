"""Pictures from files, as a method takes them, and into files."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..core.images import SMALLEST
from ..files.writing import whole_file
from .output import Failure, check_apart, check_writable

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""What is read, whatever a file is called. Pillow would start other programs for some others."""
LARGEST = 64_000_000  # pixels of one picture, as 8000 x 8000
TOGETHER = 400_000_000  # pixels of all pictures, 1.2 GB
AS_SEEN = (
    "Of a picture that moves the first frame is read. What is transparent is laid on white, as "
    "ComfyUI shows it."
)


def read_pictures(paths: list[Path]) -> list[Image.Image]:
    """The pictures in files, and of folders all in the order of their names.

    Raises Failure for a path that is missing, holds none, or cannot be read, and for more pictures
    than fit into memory.
    """
    files = picture_files(paths)
    check_sizes(files)
    return [_read(file) for file in files]


def picture_files(paths: list[Path]) -> list[Path]:
    """Raises Failure for a path that is missing or holds no pictures."""
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
    return files


def check_sizes(files: list[Path]) -> None:
    """Raises Failure for pictures that are too small or too large, before any is unpacked."""
    total = 0
    for file in files:
        try:
            with _opened(file) as picture:
                width, height = picture.size
        except Image.DecompressionBombError:
            width = height = LARGEST
        except Exception:  # noqa: BLE001
            raise _unreadable(file) from None
        if min(width, height) < SMALLEST:
            raise Failure(
                f"{file} has {width} x {height} pixels, and {SMALLEST} x {SMALLEST} are the fewest "
                "that can be looked at; replace it by a larger picture."
            )
        if width * height > LARGEST:
            raise Failure(
                f"{file} has more than {LARGEST // 10**6} million pixels; make it smaller, models "
                "look at less than two million."
            )
        total += width * height
    if total > TOGETHER:
        raise Failure(
            f"The {len(files)} pictures have {total // 10**6} million pixels together, at most "
            f"{TOGETHER // 10**6} million are read; name fewer pictures or make them smaller."
        )


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """By what it holds; Pillow's advice to programmers is no answer to a user."""
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as picture:
            yield picture


def _unreadable(file: Path) -> Failure:
    return Failure(f"{file} is no picture that can be read; remove or replace it.")


def _read(file: Path) -> Image.Image:
    """The picture as it is seen: turned as it says, on white, at eight bits a channel."""
    try:
        with _opened(file) as picture:
            return on_white(ImageOps.exif_transpose(picture))
    except Exception:  # noqa: BLE001
        # Damaged, which Pillow says in a dozen ways: a PNG by SyntaxError, a TIFF by KeyError.
        raise _unreadable(file) from None


def on_white(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        # 16 bits a channel, of which Pillow would take all above 255 for white.
        values = np.asarray(picture).clip(0, 65535).astype(np.uint32)
        picture = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture, page = picture.convert("RGBA"), Image.new("RGB", picture.size, "white")
    page.paste(picture, mask=picture.getchannel("A"))
    return page


def batch(pictures: list[Image.Image], size: tuple[int, int]) -> torch.Tensor:
    """(N, height, width, 3) in 0..1, resized where need be: bicubic and uncropped, as the paper
    does (arXiv 2405.07288, released code). Raises Failure for more than fit into memory."""
    height, width = size
    if len(pictures) * height * width > TOGETHER:
        raise Failure(
            f"{len(pictures)} pictures of {width} x {height} pixels do not fit into memory; name "
            f"at most {TOGETHER // (height * width)}."
        )
    same = [
        one if one.size == (width, height) else one.resize((width, height), Image.BICUBIC)
        for one in pictures
    ]
    return torch.from_numpy(np.stack([np.asarray(one) for one in same])).float() / 255


def check_png(file: Path | None, option: str, inputs: Iterable[Path] = ()) -> None:
    """Raises Failure for a picture to write that would be of another kind, takes the place of one
    that is read, or cannot be written."""
    if file is None:
        return
    if file.suffix.lower() != ".png":
        raise Failure(f"{file} must end in .png; name such a {option}.")
    check_apart(file, inputs, option)
    check_writable(file)


def write_png(file: Path, picture: torch.Tensor) -> None:
    """picture: (1, height, width, 3) in 0..1; the file is written whole or not at all."""
    pixels = (picture[0].numpy() * 255).round().astype(np.uint8)
    with whole_file(file) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
