"""Pictures from files: read as they are seen, and refused in one sentence where they are none."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from commands import sentence
from PIL import Image

from unlearn.cli import pictures
from unlearn.cli.output import Failure
from unlearn.cli.pictures import batch, read_pictures

SIZE = (16, 12)


def seen(file: Path) -> np.ndarray:
    """(height, width, 3) of a picture as it is read."""
    (picture,) = read_pictures([file])
    return np.asarray(picture)


def saved(folder: Path, picture: Image.Image, name: str = "a.png", **options) -> Path:
    picture.save(folder / name, **options)
    return folder / name


def half(mode: str, left, right) -> Image.Image:
    """A picture of two colours, side by side."""
    picture = Image.new(mode, SIZE, left)
    picture.paste(right, (SIZE[0] // 2, 0, *SIZE))
    return picture


RED, CLEAR_GREEN, WHITE = (255, 0, 0), (0, 255, 0, 0), (255, 255, 255)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    found = seen(saved(tmp_path, half("RGBA", (*RED, 255), CLEAR_GREEN)))
    assert tuple(found[0, 0]) == RED
    assert tuple(found[0, -1]) == WHITE
    found = seen(saved(tmp_path, half("RGBA", (*RED, 255), (0, 0, 0, 128))))
    assert tuple(found[0, -1]) == (127, 127, 127)
    found = seen(saved(tmp_path, half("LA", (0, 255), (0, 0))))
    assert (tuple(found[0, 0]), tuple(found[0, -1])) == ((0, 0, 0), WHITE)


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    picture = half("P", 0, 1)
    picture.putpalette([*RED, 0, 255, 0])
    found = seen(saved(tmp_path, picture, transparency=1))
    assert (tuple(found[0, 0]), tuple(found[0, -1])) == (RED, WHITE)
    found = seen(saved(tmp_path, half("RGB", RED, (0, 255, 0)), transparency=(0, 255, 0)))
    assert (tuple(found[0, 0]), tuple(found[0, -1])) == (RED, WHITE)


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    values = np.zeros(SIZE[::-1], np.uint16)
    values[:, 8:] = 0x8080
    found = seen(saved(tmp_path, Image.fromarray(values)))
    assert (tuple(found[0, 0]), tuple(found[0, -1])) == ((0, 0, 0), (128, 128, 128))


def test_other_kinds_of_pictures(tmp_path: Path) -> None:
    found = seen(saved(tmp_path, half("1", 0, 1)))
    assert (tuple(found[0, 0]), tuple(found[0, -1])) == ((0, 0, 0), WHITE)
    found = seen(saved(tmp_path, Image.new("CMYK", SIZE), "a.jpg"))
    assert (found > 250).all()
    frames = [Image.new("RGB", SIZE, color) for color in (RED, "blue")]
    found = seen(saved(tmp_path, frames[0], "a.webp", lossless=True, save_all=True,
                       append_images=frames[1:]))  # fmt: skip
    assert tuple(found[0, 0]) == RED, "the first frame"
    turned = Image.Exif()
    turned[0x0112] = 6
    assert seen(saved(tmp_path, Image.new("RGB", SIZE), "b.jpg", exif=turned)).shape == (16, 12, 3)


def png(width: int, height: int) -> bytes:
    """A picture that says it is of this size, and holds a row."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(100))
    parts = chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as a picture"),
        (b"hello\n", "cannot be read as a picture"),
        (bytes(1000), "cannot be read as a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "cannot be read as a picture"),
        (png(16, 16), "cannot be read as a picture"),  # cut short
        (png(1, 1), "has 1 x 1 pixels, but at least 8 x 8"),
        (png(2, 2), "has 2 x 2 pixels, but at least 8 x 8"),
        (png(512, 1), "has 512 x 1 pixels, but at least 8 x 8"),
        (png(9000, 9000), "has more than 64 million pixels; make it smaller"),
        (png(100_000, 100_000), "has more than 64 million pixels; make it smaller"),
    ],
    ids=str,
)
def test_files_that_are_no_pictures_to_work_with(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(Failure, match=said) as error:
        read_pictures([tmp_path / "a.png"])
    assert "\n" not in str(error.value)


def test_the_command_line_says_it_before_a_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(png(1, 512))
    said = sentence(["identify", "no_model", tmp_path], capsys)
    assert "a.png has 1 x 512 pixels, but at least 8 x 8 are needed" in said


def test_more_than_fits_into_memory_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(900):
        (tmp_path / f"{i}.png").write_bytes(png(800, 600))
    monkeypatch.setattr(pictures, "_read", None)
    with pytest.raises(Failure, match="The 900 pictures have 432 million pixels together"):
        read_pictures([tmp_path])
    with pytest.raises(Failure, match="do not fit into memory; name at most 95"):
        batch([Image.new("RGB", SIZE)] * 96, (2048, 2048))
