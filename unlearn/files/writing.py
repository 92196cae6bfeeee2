"""Writing results so that nothing is lost: not what was there, not what a crash leaves behind.

All that is written comes first into a folder of our own beside its place. Then it is moved there in
one step. A process that is killed leaves that folder. The next one that writes there removes it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from safetensors import SafetensorError

ERRORS = (OSError, SafetensorError)
"""What writing raises where a disk is full or read-only, or a folder is gone."""
MARK = ".concept-unlearn-"
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a file that takes the place of `path` once the block is through.

    The parent folders are made. Raises OSError where that, or the move, is not possible.
    """
    path = path.absolute()
    with _beside(path) as room:
        new = room / "new"
        yield new
        # Libraries write with rights of their own choice, and leave the bytes to the system.
        new.chmod(_usual_mode(room))
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same of a folder: what it held is replaced as a whole."""
    path = path.absolute()
    with _beside(path) as room:
        new = room / "new"
        new.mkdir()
        yield new
        mode = _usual_mode(room)
        for file in new.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(mode)
        if path.exists():
            path.rename(room / "old")
        try:
            new.rename(path)
        except OSError:
            if (room / "old").exists():
                (room / "old").rename(path)
            raise


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A folder of our own on the disk of `path`, which is gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_rubbish(path.parent)
    room = Path(tempfile.mkdtemp(prefix=f"{MARK}{_HOST}-{os.getpid()}-", dir=path.parent))
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


def clear_rubbish(folder: Path) -> None:
    """Remove what killed processes of this machine left half written in a folder."""
    with suppress(OSError):
        for room in folder.glob(f"{MARK}{_HOST}-*"):
            pid = room.name.removeprefix(f"{MARK}{_HOST}-").partition("-")[0]
            if pid.isdigit() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(room, ignore_errors=True)


def _usual_mode(folder: Path) -> int:
    """The rights that a new file gets here."""
    trial = folder / "mode"
    trial.touch()
    return trial.stat().st_mode & 0o777


def check_writable(path: Path) -> None:
    """Raises OSError where nothing can be written beside `path`: before there is work to lose.

    Leaves nothing there, no folder either.
    """
    folder = _nearest(path)
    with tempfile.TemporaryDirectory(prefix=f"{MARK}{_HOST}-{os.getpid()}-", dir=folder):
        pass
    clear_rubbish(folder)


def free_bytes(path: Path) -> int:
    """Of the disk that `path` is to be written to."""
    return shutil.disk_usage(_nearest(path)).free


def _nearest(path: Path) -> Path:
    """The innermost folder around `path` that there is; a file in its way counts as one."""
    whole = path.absolute()
    # The root of a disk has no parent.
    return next((parent for parent in whole.parents if os.path.lexists(parent)), whole)


def reason(error: Exception) -> str:
    """Why something could not be written, in a few words."""
    if getattr(error, "strerror", None):
        return error.strerror
    first = str(error).strip().partition("\n")[0]
    # safetensors puts its own words around the system's.
    found = re.fullmatch(r".*I/O error: (.+) \(os error \d+\)", first)
    return found[1] if found else first or type(error).__name__
