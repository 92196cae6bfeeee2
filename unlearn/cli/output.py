"""Writing results so that nothing is lost: not what was there, not what a crash leaves behind."""

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
"""In every folder that is written: what was put on, and where it came from."""

LONGEST = 200  # bytes of a name: what is written has a longer one at first


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


def check_apart(path: Path, inputs: Iterable[Path | None], option: str = "--output") -> None:
    """Raises Failure where what is read would be replaced by what is written."""
    place = os.path.realpath(path)
    for one in inputs:
        if one is not None and Path(os.path.realpath(one)).is_relative_to(place):
            what = "is read here" if os.path.realpath(one) == place else f"holds {one.name}"
            raise Failure(f"{path} {what} and is not replaced; name another {option}.")


def _is_ours(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as content:
            return "concept_unlearn" in (content.metadata() or {})
    except (SafetensorError, OSError):
        return False


def check_writable(path: Path) -> None:
    """Raises Failure where nothing can be written beside `path`: before there is work to lose."""
    if len(os.fsencode(path.name)) > LONGEST:
        raise Failure(
            f"{path.name[:20]}... is too long a name; use one of at most {LONGEST} bytes."
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
            f"{path} will take {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free there; free "
            "some space or name another --output."
        )


def check_finite(tensors: Iterable[torch.Tensor], precision: torch.dtype) -> None:
    """Raises Failure where what is to be written is too large for its precision."""
    for tensor in tensors:
        if not torch.isfinite(tensor.to(precision)).all():
            name = str(precision).removeprefix("torch.")
            wider = "--precision float32 or " if precision != torch.float32 else ""
            raise Failure(
                f"The erased weights are too large for {name}, so nothing was written; choose "
                f"{wider}a --strength nearer to 0."
            )


def save(erasure: Erasure, path: Path, precision: torch.dtype, resumable: bool = False) -> None:
    """Write an erasure that took long to train: if not there, then somewhere.

    resumable: whether the run's state is kept, so that it need not begin anew. Raises Failure where
    `path` cannot be written; it says what became of the erasure.
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
            lost = "free some space, and the same command goes on from its last state."
            lost = lost if resumable else "what was trained is lost."
            raise Failure(f"{what}, nor can {aside.parent.parent}: {lost}") from error
        raise Failure(f"{what}; the erasure is kept in {aside}.") from error


def rewrite(file: Path, change: Callable[[Erasure], Erasure]) -> None:
    """Write what is changed of an erasure's record into its file, whose weights stay what they
    are."""
    erasure = Erasure.load(file)
    precisions = {t.dtype for delta in erasure.deltas.values() for t in delta.values()}
    precise = torch.float16 if precisions <= {torch.float16} else torch.float32
    change(erasure).save(file, precise)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Raises Failure where `path` cannot be written in the block."""
    try:
        yield
    except writing.ERRORS as error:
        if "No space left" in str(error):  # which __main__ tells
            raise
        raise Failure(
            f"{path} cannot be written ({writing.reason(error)}), so nothing was; free some space "
            "or name another --output."
        ) from error


@contextmanager
def new_folder(path: Path, receipt: Mapping) -> Iterator[Path]:
    """`writing.whole_folder`, with a receipt in it."""
    with told(path), writing.whole_folder(path) as new:
        yield new
        text = json.dumps(receipt, indent=1, sort_keys=True)
        (new / RECEIPT).write_text(text + "\n", encoding="utf-8")
