"""What a safetensors file is, told by its header alone: quickly, for a list of a thousand files."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .erasure import ENDINGS, FORMAT, HEADER, NETWORK
from .model import Part

WHOLE_ENCODER = re.compile(rb'encoder\.layers\.0\.self_attn\.q_proj\.weight"')
"""A name that every whole CLIP text encoder has, and no LoRA."""


@dataclass(frozen=True)
class Header:
    """What a file is. A file that cannot be read is nothing."""

    is_erasure: bool = False
    is_encoder: bool = False
    """Whether it holds a whole CLIP text encoder, perhaps in a checkpoint."""
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Of an erasure, by ComfyUI's name of each weight that it changes: its rows and columns."""
    key: str = ""
    """Of an erasure that a node trained: the hash of all that it was trained with."""

    @property
    def parts(self) -> set[Part]:
        """The parts of a model that the erasure changes."""
        return {"denoiser" if key.startswith(NETWORK) else "encoder" for key in self.shapes}


NOTHING = Header()
_known: dict[Path, tuple[tuple[int, int], Header]] = {}
"""By path: the file's time and size when it was read, and what it was."""


def header(file: Path) -> Header:
    """What the file is. It is opened only if it is new, or its size or time changed."""
    try:
        found = file.stat()
    except OSError:
        return NOTHING
    seen = found.st_mtime_ns, found.st_size
    known = _known.get(file)
    if known is None or known[0] != seen:
        known = _known[file] = seen, _read(file) if stat.S_ISREG(found.st_mode) else NOTHING
    return known[1]


def _read(file: Path) -> Header:
    try:
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            text = content.read(length) if length <= HEADER else b""
    except OSError:
        return NOTHING
    # Most files are LoRAs of others, whose headers are long: they are not parsed.
    if FORMAT.encode() not in text:
        return Header(is_encoder=bool(WHOLE_ENCODER.search(text)))
    try:
        return _erasure(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return NOTHING


def _erasure(found: Any) -> Header:
    """Raises what a header of another shape leads to."""
    metadata = found.pop("__metadata__")
    if metadata["format"] != FORMAT:
        return NOTHING
    shapes: dict[str, tuple[int, int]] = {}
    for name, tensor in found.items():
        ending = next((one for one in ENDINGS if name.endswith(one)), None)
        if ending is None or ending == ".alpha":
            continue
        key = name.removesuffix(ending).removeprefix("text_encoders.") + ENDINGS[ending][0]
        first, rest = _sides(tensor["shape"])
        rows, columns = shapes.get(key, (0, 0))
        if ending.startswith(".diff"):
            shapes[key] = first, rest
        elif ending.startswith(".lora_up"):
            shapes[key] = first, columns
        else:
            shapes[key] = rows, rest
    try:
        key = json.loads(metadata["concept_unlearn"]).get("key", "")
    except (KeyError, ValueError, AttributeError, RecursionError):
        key = ""  # Erasure.load says what is wrong with it
    return Header(True, shapes=shapes, key=key if isinstance(key, str) else "")


def _sides(shape: list[int]) -> tuple[int, int]:
    rest = 1
    for side in shape[1:]:
        rest *= int(side)
    return (int(shape[0]) if shape else 1), rest
