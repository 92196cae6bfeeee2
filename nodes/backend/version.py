"""ComfyUI's version, and the message for the user when this version cannot be trained."""

from __future__ import annotations

import linecache
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import comfy.model_management as management
import torch

TESTED = ("0.18.0", "0.30.0")
"""The oldest and the newest ComfyUI on which the tests ran (docs/hosts.md)."""

# What an unknown version's code may raise: errors of autograd and torch, of functions with other
# arguments, and of missing attributes and keys.
UNFORESEEN = (RuntimeError, TypeError, AttributeError, LookupError)
PACK = Path(__file__).parents[2]
OURS = tuple(str(PACK / folder) + os.sep for folder in ("nodes", "unlearn"))


def host_version() -> str:
    """ComfyUI's version; "of an unknown version" if it does not say."""
    try:
        from comfyui_version import __version__
    except ImportError:
        return "of an unknown version"
    return __version__


@contextmanager
def told_with_version(began: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turn an error of ComfyUI or PyTorch at the start of a run into a sentence with the version.

    began: whether a step has succeeded; later errors pass unchanged. So do out of memory, a cancel
    and this pack's own errors. Raises RuntimeError with the original error as its cause.
    """
    try:
        yield
    except UNFORESEEN as error:
        if began() or _is_memory(error) or _is_own(error.__traceback__):
            raise
        raise RuntimeError(sentence(error)) from error


def sentence(error: BaseException) -> str:
    found, (oldest, newest) = host_version(), TESTED
    what = str(error).strip().splitlines() or [""]
    advice = (
        "try it without other nodes' patches on the MODEL and the CLIP, and with files in 16 bits"
        if _numbers(oldest) <= _numbers(found) <= _numbers(newest)
        else "update this pack, or use one of those"
    )
    return (
        f"ComfyUI {found} cannot train through this MODEL and CLIP "
        f"({type(error).__name__}: {what[0][:200]}). This pack was tested on ComfyUI {oldest} to "
        f"{newest}: {advice}."
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _is_memory(error: BaseException) -> bool:
    # On a CPU, and in older hosts, it is an ordinary RuntimeError with "memory" in its text.
    asked = getattr(management, "is_oom", lambda error: False)
    return isinstance(error, torch.cuda.OutOfMemoryError) or "memory" in str(error) or asked(error)


def _is_own(traceback: TracebackType) -> bool:
    """Whether a `raise` statement of this pack raised the error."""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    file = traceback.tb_frame.f_code.co_filename
    line = linecache.getline(file, traceback.tb_lineno)
    return file.startswith(OURS) and line.lstrip().startswith("raise ")
