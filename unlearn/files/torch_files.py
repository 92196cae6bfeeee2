"""Files as torch.save writes them, from anybody: nothing in them is run, and none grows as it is
read."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch

LARGEST_PLAN = 2**22
"""Bytes of the plan by which tensors and values are put together; real ones have a tenth of it."""


class Unreadable(ValueError):
    """The message says why in a few words, no sentence."""


def read(file: Path, largest: int | None = None):
    """What a file holds, on the CPU. largest: bytes that it may have, where that is known.

    Raises Unreadable where it cannot be read.
    """
    try:
        size = file.stat().st_size
        if largest is not None and size > largest:
            raise Unreadable(f"it has {size} bytes, at most {largest} are expected")
        if zipfile.is_zipfile(file):
            check_members(file, size)
        # Before PyTorch 1.6 it was no zip file, and nothing in it was packed. Of such a file code
        # could be run until 2.6 (CVE-2025-32434).
        elif torch.torch_version.TorchVersion(torch.__version__) < (2, 6):
            raise Unreadable("it is of an old kind, which PyTorch reads safely from 2.6 on")
        return torch.load(file, map_location="cpu", weights_only=True)
    except Unreadable:
        raise
    except Exception:  # noqa: BLE001
        # Cut short or of another make, which torch says in a dozen ways.
        raise Unreadable("it is cut short, damaged or of another make") from None


def check_members(file: Path, size: int) -> None:
    """Raises Unreadable where a zip file would unpack to more than it has, or is damaged.

    torch.save packs nothing, so a packed part is none of its own. Parts that share their bytes
    would count more than once.
    """
    with zipfile.ZipFile(file) as parts:
        members = parts.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > size:
            raise Unreadable("its parts are packed, which torch.save never does")
        plans = [m.file_size for m in members if m.filename.endswith(".pkl")]
        if plans and max(plans) > LARGEST_PLAN:
            raise Unreadable(f"its plan has {max(plans)} bytes, at most {LARGEST_PLAN} are read")
        if parts.testzip() is not None:  # which torch.load does not look at
            raise Unreadable("it is damaged")
