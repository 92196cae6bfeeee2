"""Reading torch.save files from anybody: no code in them runs, and none unpacks to more than its
size."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch

LARGEST_PLAN = 2**22
"""The most bytes of the pickle, which lists tensors and values. Real ones have a tenth of it."""


class Unreadable(ValueError):
    """The file cannot be read. The message says why in a few words, not a sentence."""


def read(file: Path, largest: int | None = None):
    """The content of a file, on the CPU. largest: the most bytes that it may have, if known.

    Raises Unreadable where it cannot be read.
    """
    try:
        size = file.stat().st_size
        if largest is not None and size > largest:
            raise Unreadable(f"it has {size} bytes, but at most {largest} are expected")
        if zipfile.is_zipfile(file):
            check_members(file, size)
        # Before PyTorch 1.6 the format was not a zip file. Until 2.6, loading such a file could
        # run code from it (CVE-2025-32434).
        elif torch.torch_version.TorchVersion(torch.__version__) < (2, 6):
            raise Unreadable("it is in an old format, which only PyTorch 2.6 or later reads safely")
        return torch.load(file, map_location="cpu", weights_only=True)
    except Unreadable:
        raise
    except Exception:  # noqa: BLE001
        # torch has a dozen errors for a file that is cut short or in another format.
        raise Unreadable("it is cut short, damaged or in another format") from None


def check_members(file: Path, size: int) -> None:
    """Raises Unreadable where a zip file is damaged or would unpack to more than its size.

    torch.save does not compress, so a compressed part is not its own. The sum of sizes also finds
    parts that share their bytes.
    """
    with zipfile.ZipFile(file) as parts:
        members = parts.infolist()
        compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if compressed or sum(member.file_size for member in members) > size:
            raise Unreadable("its parts are compressed, which torch.save never does")
        plans = [m.file_size for m in members if m.filename.endswith(".pkl")]
        if plans and max(plans) > LARGEST_PLAN:
            raise Unreadable(f"its pickle has {max(plans)} bytes; at most {LARGEST_PLAN} are read")
        if parts.testzip() is not None:  # torch.load does not check the checksums
            raise Unreadable("it is damaged")
