"""`python -m unlearn`: runs a command (cli/program.py) and reports an error in one sentence."""

from __future__ import annotations

import contextlib
import dis
import errno
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

INTERRUPT = signal.default_int_handler
# Ctrl-C, a request to end, and the closing of the terminal. Windows has no SIGHUP.
SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
INTERRUPTED = "\nInterrupted; nothing was written."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. argparse ends the program for --help and bad usage."""
    try:
        with _exit_on_interrupt():
            # This imports PyTorch, which takes seconds.
            from .cli.program import COMMANDS, parser
        args = parser().parse_args(arguments)
        try:
            COMMANDS[args.command].run(args)
            sys.stdout.flush()
        except Exception as error:  # noqa: BLE001 (every error becomes a sentence)
            if args.traceback:
                traceback.print_exc()
            print(_sentence(error, args.command), file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130
    return 0


def _sentence(error: Exception, command: str) -> str:
    from safetensors import SafetensorError

    from .cli import PROGRAM
    from .cli.output import Failure
    from .core.peak_memory import is_too_little
    from .diffusers_backend.model_folder import first_line

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
    return raised and Path(code.co_filename).is_relative_to(Path(__file__).parent)


@contextlib.contextmanager
def _exit_on_interrupt() -> Iterator[None]:
    """Inside the block Ctrl-C ends the process at once. During imports a KeyboardInterrupt could
    turn into another error."""

    def end(number: int, frame: object) -> None:
        os.write(2, f"{INTERRUPTED}\n".encode())
        os._exit(130)

    imported = f"{__package__}.cli.program" in sys.modules
    handled = [] if imported else [n for n in SIGNALS if signal.getsignal(n) is INTERRUPT]
    for number in handled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, INTERRUPT)


def _interrupt_on_signals() -> None:
    """Treat the signals like Ctrl-C, so that temporary files are removed."""
    for number in SIGNALS:
        # The caller may have set one to be ignored, as nohup does.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, INTERRUPT)


def script() -> int:
    """The entry point of the installed program `concept-unlearn`. Returns the exit code."""
    _interrupt_on_signals()
    return main()


if __name__ == "__main__":
    sys.exit(script())
