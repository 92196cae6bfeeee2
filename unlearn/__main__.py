"""Take concepts out of a text-to-image model without ComfyUI.

    python -m unlearn identify MODEL PICTURE...       what the model calls the thing in pictures
    python -m unlearn erase MODEL CONCEPT -o FILE     train an erasure
    python -m unlearn show FILE                       what is in it
    python -m unlearn probe MODEL FILE                what is left of the concept
    python -m unlearn cpdm build|measure ...          how near to originals a model draws
    python -m unlearn apply MODEL FILE -o FOLDER      a model with the erasure in its weights
    python -m unlearn export MODEL FILE -o PATH       a text encoder or a LoRA for other programs

An erasure is a small file of weight changes. It works here and in ComfyUI alike, and the model it
was made with is never changed. MODEL is a diffusers folder or a checkpoint file of Stable Diffusion
1.x, 2.x or XL, or AnimateDiff on one of these.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence

from safetensors import SafetensorError

from .commands import apply, cpdm, erase, export, identify, probe, show
from .commands.output import Failure

COMMANDS = {
    "identify": identify,
    "erase": erase,
    "show": show,
    "probe": probe,
    "cpdm": cpdm,
    "apply": apply,
    "export": export,
}
EPILOG = """
"python -m unlearn COMMAND --help" explains a command with examples. The exit code is 0 when all
went well, 1 when something failed, with one sentence on stderr, 2 for a command line that cannot be
understood, and 130 when it was interrupted.
"""
NO_MEMORY = ("out of memory", "allocate memory", "not enough memory")
TOO_LITTLE = (
    "The device has too little memory; try --half, --save-memory, --rank 8 or a smaller --size."
)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, and where the help is."""

    def error(self, message: str) -> None:
        self.exit(2, f"{message}. See {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    top = Parser("python -m unlearn", description=__doc__, epilog=EPILOG, formatter_class=formatter)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        added = commands.add_parser(
            name,
            help=command.HELP,
            description=command.__doc__,
            epilog=command.EXAMPLES,
            formatter_class=formatter,
        )
        command.add(added)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code; argparse itself ends the program on --help and bad usage."""
    given = parser().parse_args(arguments)
    try:
        COMMANDS[given.command].run(given)
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was written.", file=sys.stderr)
        return 130
    except (Failure, ValueError, MemoryError) as error:
        print(str(error) or TOO_LITTLE, file=sys.stderr)
        return 1
    except RuntimeError as error:
        # Neither the CPU, which has two sentences for it, nor Apple's devices have an error of
        # their own.
        if not any(part in str(error) for part in NO_MEMORY):
            raise
        print(TOO_LITTLE, file=sys.stderr)
        return 1
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        text = "The disk is full; free some space, nothing was written" if full else str(error)
        print(f"{text}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
