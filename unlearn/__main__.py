"""`python -m unlearn`: runs a command (cli/program.py) and reports an error in one sentence."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence

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
            from .cli.sentences import sentence_of
        args = parser().parse_args(arguments)
        try:
            COMMANDS[args.command].run(args)
            sys.stdout.flush()
        except Exception as error:  # noqa: BLE001 (every error becomes a sentence)
            if args.traceback:
                traceback.print_exc()
            print(sentence_of(error, args.command), file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130
    return 0


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
