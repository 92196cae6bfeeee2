"""Writing results so that nothing is lost: not what was there, not what a crash leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..erasure import Erasure

RECEIPT = "concept_unlearn.json"
"""In every folder that is written: what was put on, and where it came from."""


class Failure(Exception):
    """Something that a command cannot do; the message is one sentence for the user."""


def check_output(path: Path, force: bool, is_folder: bool = False) -> None:
    """Raises Failure when `path` cannot be written, or something is there that must stay: without
    --force all, with it all that no command of this program wrote.

    is_folder: what will be written, rather than a file.
    """
    check_writable(path)
    if not os.path.lexists(path):
        return
    if path.is_dir() != is_folder:
        kinds = ("a folder", "a file") if path.is_dir() else ("a file", "a folder")
        raise Failure(
            f"{path} is {kinds[0]}, and {kinds[1]} is to be written; name another --output."
        )
    if not force:
        raise Failure(f"{path} is there already; name another --output, or add --force to replace.")
    if not (path / RECEIPT).is_file() if path.is_dir() else not _is_ours(path):
        raise Failure(
            f"{path} is there already and was not written by this program, so --force does not "
            "replace it; name another --output."
        )


def _is_ours(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as content:
            return "concept_unlearn" in (content.metadata() or {})
    except (SafetensorError, OSError):
        return False


def check_writable(path: Path) -> None:
    """Raises Failure where nothing can be written beside `path`: before there is work to lose."""
    parents = path.absolute().parents
    folder = next(parent for parent in parents if os.path.lexists(parent))
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Failure(
            f"{path} cannot be written ({error.strerror} in {folder}); name another place."
        ) from None


def check_space(path: Path, needed: int) -> None:
    """Raises Failure when the disk of `path` has fewer than `needed` bytes free."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Failure(
            f"{path} will take {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free there; free "
            "some space or name another --output."
        )


def rewrite(file: Path, change: Callable[[Erasure], Erasure]) -> None:
    """Write what is changed of an erasure's record into its file, whose weights stay what they
    are."""
    erasure = Erasure.load(file)
    precisions = {t.dtype for delta in erasure.deltas.values() for t in delta.values()}
    precise = torch.float32 if torch.float32 in precisions else torch.float16
    change(erasure).save(file, precise)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block is through."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, receipt: Mapping) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place, with a receipt, when the block is
    through."""
    path = path.absolute()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        text = json.dumps(receipt, indent=1, sort_keys=True)
        (temporary / RECEIPT).write_text(text + "\n", encoding="utf-8")
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
