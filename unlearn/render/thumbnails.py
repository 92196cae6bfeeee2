"""Small pictures as text: what an erasure's file keeps of before and after."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image

from .sheet import as_images, resized

LARGEST = 128  # pixels of the longer side
QUALITY = 85


def packed(pictures: torch.Tensor) -> list[str]:
    """Pictures, (N, H, W, 3) in 0..1, as JPEG in base64; at most LARGEST pixels high and wide."""
    height, width = pictures.shape[1:3]
    scale = min(1.0, LARGEST / max(height, width))
    cell = max(1, round(width * scale)), max(1, round(height * scale))
    found = []
    for picture in resized(pictures, cell):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=QUALITY)
        found.append(base64.b64encode(file.getvalue()).decode())
    return found


def unpacked(texts: list[str]) -> torch.Tensor:
    """The pictures again, (N, H, W, 3) in 0..1.

    Raises ValueError for what is no JPEG, is larger than LARGEST, or differs in size: files come
    from anybody.
    """
    found = []
    for text in texts:
        try:
            file = io.BytesIO(base64.b64decode(text, validate=True))
            with Image.open(file, formats=["JPEG"]) as one:
                if max(one.size) > LARGEST:
                    raise ValueError(f"A picture has {one.size[0]} x {one.size[1]} pixels.")
                found.append(as_images(one))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"A picture cannot be read: {error}.") from None
    if len({picture.shape for picture in found}) != 1:
        raise ValueError("The pictures have several sizes.")
    return torch.cat(found)
