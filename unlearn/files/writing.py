"""Atomic writing of files and folders.

Everything is written into a temporary folder beside its destination first, and then moved there in
one step. So a crash leaves the old content or the new one. A killed process leaves its temporary
folder behind; the next process that writes there removes it.
"""

from __future__ import annotations

import errno
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
"""The errors of writing: the disk is full or read-only, or the folder is gone."""
MARK = ".concept-unlearn-"
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@contextmanager
def whole_file(path: Path, over: bool = True) -> Iterator[Path]:
    """Yields a path to write to. At the end of the block that file replaces `path`.

    Parent folders are created. Raises OSError where that, or the move, fails; FileExistsError
    where something is at `path` and it may not be written over.
    """
    path = path.absolute()
    with _temporary_folder(path) as folder:
        new = folder / "new"
        yield new
        # Some libraries set other permissions, and none waits until the bytes are on the disk.
        new.chmod(_usual_mode(folder))
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        if over:
            new.replace(path)
        else:
            _move_to_free(new, path)


def _move_to_free(new: Path, path: Path) -> None:
    """Two processes may want the same name at once: a link is made by one of them alone."""
    try:
        os.link(new, path)
    except FileExistsError:
        raise
    except OSError:  # this file system has no links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        new.replace(path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Like `whole_file`, for a folder: it replaces the old folder and everything in it."""
    path = path.absolute()
    with _temporary_folder(path) as folder:
        new = folder / "new"
        new.mkdir()
        yield new
        mode = _usual_mode(folder)
        for file in new.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(mode)
        if path.exists():
            path.rename(folder / "old")
        try:
            new.rename(path)
        except OSError:
            if (folder / "old").exists():
                (folder / "old").rename(path)
            raise


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path`, so on the same disk; it is removed at the end of the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_rubbish(path.parent)
    folder = Path(tempfile.mkdtemp(prefix=f"{MARK}{_HOST}-{os.getpid()}-", dir=path.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear_rubbish(folder: Path) -> None:
    """Remove the temporary folders in `folder` that killed processes of this machine left."""
    with suppress(OSError):
        for leftover in folder.glob(f"{MARK}{_HOST}-*"):
            pid = leftover.name.removeprefix(f"{MARK}{_HOST}-").partition("-")[0]
            if pid.isdigit() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(leftover, ignore_errors=True)


def _usual_mode(folder: Path) -> int:
    """The permissions of a new file in the folder."""
    trial = folder / "mode"
    trial.touch()
    return trial.stat().st_mode & 0o777


def check_writable(path: Path) -> None:
    """Raises OSError where nothing can be written beside `path`. To be called before long work.

    It creates nothing that stays, parent folders included.
    """
    folder = _nearest(path)
    with tempfile.TemporaryDirectory(prefix=f"{MARK}{_HOST}-{os.getpid()}-", dir=folder):
        pass
    clear_rubbish(folder)


def free_bytes(path: Path) -> int:
    """The free bytes of the disk to which `path` is to be written."""
    return shutil.disk_usage(_nearest(path)).free


def _nearest(path: Path) -> Path:
    """The innermost parent of `path` that exists, even if it is a file by mistake."""
    absolute = path.absolute()
    # The root of a disk has no parent.
    return next((parent for parent in absolute.parents if os.path.lexists(parent)), absolute)


def reason(error: Exception) -> str:
    """Why a file could not be written, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = str(error).strip().partition("\n")[0]
    # safetensors puts the system's message inside its own.
    found = re.fullmatch(r".*I/O error: (.+) \(os error \d+\)", first)
    return found[1] if found else first or type(error).__name__
