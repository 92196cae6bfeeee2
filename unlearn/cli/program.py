"""Take concepts out of a text-to-image model without ComfyUI.

    python -m unlearn identify MODEL PICTURE...       find the model's word for pictures
    python -m unlearn erase MODEL CONCEPT -o FILE     train an erasure
    python -m unlearn show FILE                       print what is in it
    python -m unlearn probe MODEL FILE                measure what is left of the concept
    python -m unlearn cpdm build|measure ...          measure how close a model draws to originals
    python -m unlearn apply MODEL FILE -o FOLDER      write a model with the erasure in its weights
    python -m unlearn export MODEL FILE -o PATH       write text encoders or a LoRA
    python -m unlearn sweep PLAN -o FOLDER            train the erasures of a plan on many workers

An erasure is a small file of weight deltas. It works here and in ComfyUI, and the model that it was
made with is never changed. MODEL is a diffusers folder or a checkpoint file of Stable Diffusion
1.x, 2.x or XL, or AnimateDiff on one of these.
"""

from __future__ import annotations

import argparse
from typing import NoReturn

from . import IN_PLACE, PROGRAM, apply, erase, export, identify, probe, show
from .cpdm import command as cpdm
from .sweep import command as sweep

COMMANDS = {
    "identify": identify,
    "erase": erase,
    "show": show,
    "probe": probe,
    "cpdm": cpdm,
    "apply": apply,
    "export": export,
    "sweep": sweep,
}
EPILOG = """
"python -m unlearn COMMAND --help" explains a command with examples. The exit code is 0 for success,
1 for an error, with one sentence on stderr, 2 for a wrong command line, and 130 after an
interruption by Ctrl-C or a signal to end.
"""


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one sentence that names --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message.rstrip('.')}. See {self.prog} --help\n")


def named(text: str) -> str:
    """The text with the command by which the user starts the program."""
    return text.replace(IN_PLACE, PROGRAM)


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    top = Parser(
        PROGRAM, description=named(__doc__ or ""), epilog=named(EPILOG), formatter_class=formatter
    )
    top.add_argument(
        "--traceback",
        action="store_true",
        help="before COMMAND: show where in the program an error was raised",
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
