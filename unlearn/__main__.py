"""`python -m unlearn`: runs a command (see program.py) and says in one sentence what went wrong."""

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
# Ctrl-C, being told to end, and the end of the terminal, which Windows does not tell.
SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
INTERRUPTED = "\nInterrupted; nothing was written."


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code; argparse itself ends the program on --help and bad usage."""
    try:
        with _at_once():
            # It imports PyTorch, which takes seconds.
            from .cli.program import COMMANDS, parser
        args = parser().parse_args(arguments)
        try:
            COMMANDS[args.command].run(args)
            sys.stdout.flush()
        except Exception as error:  # noqa: BLE001 (the last resort)
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
        # Nobody reads what is printed; what Python has yet to print goes nowhere, too.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "Nobody reads the output any more, so nothing more was done."
    if isinstance(error, (OSError, SafetensorError)):
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            return "The disk is full; free some space, nothing was written."
        name = getattr(error, "filename", None)
        text = f"{error.strerror}: {name}" if name else first_line(error)
        return f"{text}."
    return (
        f"{command} failed in a way that was not foreseen ({type(error).__name__}: "
        f'{first_line(error)}); "{PROGRAM} --traceback {command} ..." shows where.'
    )


def _is_ours(error: Exception) -> bool:
    """Whether a line of this package raised it, which says what is wrong in a sentence; a library's
    and Python's own are for programmers."""
    last = error.__traceback__
    while last.tb_next:
        last = last.tb_next
    code = last.tb_frame.f_code
    raised = code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return raised and Path(code.co_filename).is_relative_to(Path(__file__).parent)


@contextlib.contextmanager
def _at_once() -> Iterator[None]:
    """Ctrl-C ends the program at once in the block: in the midst of imports an exception would come
    out as another."""

    def end(number: int, frame: object) -> None:
        os.write(2, f"{INTERRUPTED}\n".encode())
        os._exit(130)

    imported = f"{__package__}.cli.program" in sys.modules
    heard = [] if imported else [n for n in SIGNALS if signal.getsignal(n) is INTERRUPT]
    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, INTERRUPT)


def _hear() -> None:
    """Being told to end is like Ctrl-C: what is half written is taken away."""
    for number in SIGNALS:
        # Who started the program may have made it deaf to one, as nohup does.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, INTERRUPT)


def script() -> int:
    """What the installed program `concept-unlearn` calls. Returns the exit code."""
    _hear()
    return main()


if __name__ == "__main__":
    sys.exit(script())
