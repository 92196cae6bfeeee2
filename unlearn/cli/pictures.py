"""Reads pictures from files as a method takes them, and writes pictures."""

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
"""The formats that are read, whatever a file's name. For some others Pillow starts programs."""
LARGEST = 64_000_000  # pixels of one picture, such as 8000 x 8000
TOGETHER = 400_000_000  # pixels of all pictures, 1.2 GB
AS_SEEN = "The first frame of an animation is read. Transparent pixels become white, as in ComfyUI."


def read_pictures(paths: list[Path]) -> list[Image.Image]:
    """The pictures in files and folders; those of a folder in the order of their names.

    Raises Failure for a path that is missing, holds no picture or cannot be read, and for more
    pictures than fit into memory.
    """
    files = picture_files(paths)
    check_sizes(files)
    return [_read(file) for file in files]


def picture_files(paths: list[Path]) -> list[Path]:
    """The picture files of paths. Raises Failure for a path that is missing or holds none."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise Failure(f"There is no picture or folder {path}; name another.")
        inside = [path]
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
        if not inside:
            raise Failure(
                f"{path} holds no pictures; put some there ({', '.join(sorted(ENDINGS))}) or name "
                "another folder."
            )
        files += inside
    return files


def check_sizes(files: list[Path]) -> None:
    """Raises Failure for pictures that are too small or too large, before any is decoded."""
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
                f"{file} has {width} x {height} pixels, but at least {SMALLEST} x {SMALLEST} are "
                "needed; use a larger picture."
            )
        if width * height > LARGEST:
            raise Failure(
                f"{file} has more than {LARGEST // 10**6} million pixels; make it smaller, since "
                "models use less than two million."
            )
        total += width * height
    if total > TOGETHER:
        raise Failure(
            f"The {len(files)} pictures have {total // 10**6} million pixels together, but at most "
            f"{TOGETHER // 10**6} million are read; name fewer pictures or make them smaller."
        )


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """The opened picture. Its content decides the format. Pillow's warnings are for programmers, so
    they are not shown."""
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as picture:
            yield picture


def _unreadable(file: Path) -> Failure:
    return Failure(f"{file} cannot be read as a picture; remove or replace it.")


def _read(file: Path) -> Image.Image:
    """The picture in RGB as a viewer shows it: rotated as its metadata says, and on white."""
    try:
        with _opened(file) as picture:
            return on_white(ImageOps.exif_transpose(picture))
    except Exception:  # noqa: BLE001
        # Pillow has a dozen errors for damaged files: SyntaxError for PNG, KeyError for TIFF.
        raise _unreadable(file) from None


def on_white(picture: Image.Image) -> Image.Image:
    """The picture in RGB at eight bits per channel, with transparent pixels on white."""
    if picture.mode.startswith("I"):
        # 16 bits per channel: Pillow's own conversion would make every value above 255 white.
        values = np.asarray(picture).clip(0, 65535).astype(np.uint32)
        picture = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture, page = picture.convert("RGBA"), Image.new("RGB", picture.size, "white")
    page.paste(picture, mask=picture.getchannel("A"))
    return page


def batch(pictures: list[Image.Image], size: tuple[int, int]) -> torch.Tensor:
    """The pictures as a tensor (N, height, width, 3) in 0..1.

    size: (height, width). Others are resized by bicubic interpolation without cropping, as in the
    released code of arXiv 2405.07288. Raises Failure for more than fit into memory.
    """
    height, width = size
    if len(pictures) * height * width > TOGETHER:
        raise Failure(
            f"{len(pictures)} pictures of {width} x {height} pixels do not fit into memory; name "
            f"at most {TOGETHER // (height * width)}."
        )
    resized = [
        picture if picture.size == (width, height) else picture.resize(size[::-1], Image.BICUBIC)
        for picture in pictures
    ]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in resized])).float() / 255


def check_png(file: Path | None, option: str, inputs: Iterable[Path] = ()) -> None:
    """Raises Failure for an output picture that is not .png, would replace an input, or cannot be
    written."""
    if file is None:
        return
    if file.suffix.lower() != ".png":
        raise Failure(f"{file} does not end in .png; name a {option} that does.")
    check_apart(file, inputs, option)
    check_writable(file)


def write_png(file: Path, picture: torch.Tensor) -> None:
    """Write a picture, (1, height, width, 3) in 0..1, atomically."""
    pixels = (picture[0].numpy() * 255).round().astype(np.uint8)
    with whole_file(file) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
