"""One sentence for every error that ends a command."""

from __future__ import annotations

import contextlib
import dis
import errno
import os
import sys
from pathlib import Path

from safetensors import SafetensorError

from ..core.peak_memory import is_too_little
from ..diffusers_backend.model_folder import first_line
from . import PROGRAM
from .output import Failure

PACKAGE = Path(__file__).parents[1]


def sentence_of(error: Exception, command: str) -> str:
    """What went wrong and what to do. command: what the user ran, for what nobody foresaw."""
    if is_too_little(error):
        return (
            "The device has too little memory; try --half, --save-memory, --rank 8 or a smaller "
            "--size."
        )
    if isinstance(error, Failure) or (isinstance(error, ValueError) and _is_ours(error)):
        return str(error)
    if isinstance(error, BrokenPipeError):
        # The reader of the pipe is gone. Python flushes stdout at the end, so send that nowhere.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "The program that read the output has ended, so this one stopped, too."
    if isinstance(error, (OSError, SafetensorError)):
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            return "The disk is full; free some space, nothing was written."
        if isinstance(error, OSError) and error.filename:
            return f"{error.strerror}: {error.filename}."
        return f"{first_line(error)}."
    return (
        f"{command} failed with an unexpected error ({type(error).__name__}: "
        f'{first_line(error)}); "{PROGRAM} --traceback {command} ..." shows where.'
    )


def _is_ours(error: Exception) -> bool:
    """Whether a `raise` in this package raised it, so its message is a sentence for the user. The
    messages of libraries and of Python itself are for programmers."""
    last = error.__traceback__
    if last is None:
        return False
    while last.tb_next:
        last = last.tb_next
    code = last.tb_frame.f_code
    raised = code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return raised and Path(code.co_filename).is_relative_to(PACKAGE)
