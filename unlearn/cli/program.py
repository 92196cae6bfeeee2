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

from . import IN_PLACE, PROGRAM, apply, erase, export, identify, probe, show
from .cpdm import command as cpdm

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
understood, and 130 when it was interrupted, by Ctrl-C or by being told to end.
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, and where the help is."""

    def error(self, message: str) -> None:
        self.exit(2, f"{message.rstrip('.')}. See {self.prog} --help\n")


def named(text: str) -> str:
    """The text with the program's name as the user types it."""
    return text.replace(IN_PLACE, PROGRAM)


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    top = Parser(
        PROGRAM, description=named(__doc__), epilog=named(EPILOG), formatter_class=formatter
    )
    top.add_argument(
        "--traceback",
        action="store_true",
        help="before COMMAND: of an error show where in the program it was raised",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        added = commands.add_parser(
            name,
            help=command.HELP,
            description=command.__doc__,
            epilog=named(command.EXAMPLES),
            formatter_class=formatter,
        )
        command.add(added)
    return top
