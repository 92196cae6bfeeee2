"""Checks before a command writes its output, and the writing itself."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..core.erasure import Erasure, ErasureError
from ..files import writing

RECEIPT = "concept_unlearn.json"
"""A file in every folder that a command writes: the record of the erasure in it."""

LONGEST = 200  # bytes of a file's name; the file system allows 255, and suffixes need room


class Failure(Exception):
    """A command cannot do what was asked; the message is one sentence for the user."""


def check_output(path: Path, force: bool, is_folder: bool = False) -> None:
    """Raises Failure when `path` cannot be written or would replace something that must stay.

    Without --force everything must stay; with it, everything that this program did not write.
    is_folder: whether a folder will be written, and not a file.
    """
    check_writable(path)
    if not os.path.lexists(path):
        return
    if path.is_dir() != is_folder:
        kinds = ("a folder", "a file") if path.is_dir() else ("a file", "a folder")
        raise Failure(f"{path} is {kinds[0]}, but the output is {kinds[1]}; name another --output.")
    if not force:
        raise Failure(
            f"{path} already exists; name another --output, or add --force to replace it."
        )
    if not (path / RECEIPT).is_file() if path.is_dir() else not _is_ours(path):
        raise Failure(
            f"{path} already exists and was not written by this program, so --force does not "
            "replace it; name another --output."
        )


def check_apart(path: Path, inputs: Iterable[Path | None], option: str = "--output") -> None:
    """Raises Failure where the output at `path` would replace an input."""
    output = os.path.realpath(path)
    for file in inputs:
        if file is not None and Path(os.path.realpath(file)).is_relative_to(output):
            what = "is an input" if os.path.realpath(file) == output else f"holds {file.name}"
            raise Failure(f"{path} {what}, so it is not replaced; name another {option}.")


def _is_ours(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as content:
            return "concept_unlearn" in (content.metadata() or {})
    except (SafetensorError, OSError):
        return False


def check_writable(path: Path) -> None:
    """Raises Failure where nothing can be written beside `path`. To be called before long work."""
    if len(os.fsencode(path.name)) > LONGEST:
        raise Failure(
            f"The name {path.name[:20]}... is too long; use one of at most {LONGEST} bytes."
        )
    try:
        writing.check_writable(path)
    except OSError as error:
        raise Failure(
            f"{path} cannot be written ({writing.reason(error)}); name another place."
        ) from None


def check_space(path: Path, needed: int) -> None:
    """Raises Failure when the disk of `path` has fewer than `needed` bytes free."""
    free = writing.free_bytes(path)
    if free < needed:
        raise Failure(
            f"{path} needs {needed / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free there; "
            "free some space or name another --output."
        )


def check_finite(tensors: Iterable[torch.Tensor], precision: torch.dtype) -> None:
    """Raises Failure where a value is too large for the precision of the output."""
    for tensor in tensors:
        if not torch.isfinite(tensor.to(precision)).all():
            name = str(precision).removeprefix("torch.")
            wider = "--precision float32 or " if precision != torch.float32 else ""
            raise Failure(
                f"The erased weights are too large for {name}, so nothing was written; use "
                f"{wider}a --strength nearer to 0."
            )


def save(erasure: Erasure, path: Path, precision: torch.dtype, resumable: bool = False) -> None:
    """Write an erasure that took long to train; if `path` fails, to the temporary folder.

    resumable: whether the run's state is saved, so that the run can be continued. Raises Failure
    where `path` cannot be written; its message says where the erasure is.
    """
    try:
        erasure.save(path, precision)
    except (ErasureError, *writing.ERRORS) as error:
        aside = Path(tempfile.mkdtemp(prefix="concept-unlearn-")) / path.name
        what = f"{path} cannot be written ({writing.reason(error)})"
        try:
            erasure.save(aside, torch.float32 if isinstance(error, ErasureError) else precision)
        except writing.ERRORS:
            shutil.rmtree(aside.parent, ignore_errors=True)
            remedy = "the training is lost."
            if resumable:
                remedy = "free some space, and the same command continues from its last state."
            raise Failure(f"{what}, and neither can {aside.parent.parent}; {remedy}") from error
        raise Failure(f"{what}; the erasure is in {aside}.") from error


def rewrite(file: Path, change: Callable[[Erasure], Erasure]) -> None:
    """Replace an erasure file by `change` of its erasure, which changes the record only. The
    precision of its weights stays."""
    erasure = Erasure.load(file)
    dtypes = {t.dtype for delta in erasure.deltas.values() for t in delta.values()}
    precision = torch.float16 if dtypes <= {torch.float16} else torch.float32
    change(erasure).save(file, precision)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raises Failure where `path` cannot be written in the block."""
    try:
        yield
    except writing.ERRORS as error:
        if "No space left" in str(error):  # __main__ has a message for it
            raise
        raise Failure(
            f"{path} cannot be written ({writing.reason(error)}), so nothing was written; free "
            "some space or name another --output."
        ) from error


@contextmanager
def new_folder(path: Path, receipt: Mapping) -> Iterator[Path]:
    """`writing.whole_folder`, with `receipt` in it as RECEIPT."""
    with write_errors(path), writing.whole_folder(path) as new:
        yield new
        text = json.dumps(receipt, indent=1, sort_keys=True)
        (new / RECEIPT).write_text(text + "\n", encoding="utf-8")
