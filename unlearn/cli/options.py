"""Command-line options that several commands have, and how their text is read."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..prompts.typed import one_word, split_concepts, split_words

T = TypeVar("T")
DEVICES = ("auto", "cpu", "cuda", "mps")


LARGEST = 2**63 - 1  # what a seed can be


def whole(smallest: int, step: int = 1) -> Callable[[str], int]:
    """A reader of whole numbers from `smallest` on, in multiples of `step`."""

    def read(text: str) -> int:
        number = int(text) if text.lstrip("-").isdigit() else smallest - 1
        if number > LARGEST:
            raise argparse.ArgumentTypeError(f"it must be at most {LARGEST}, not {text!r}")
        if number < smallest or number % step:
            steps = f" and a multiple of {step}" if step > 1 else ""
            raise argparse.ArgumentTypeError(
                f"it must be a whole number, at least {smallest}{steps}, not {text!r}"
            )
        return number

    return read


def typed(read: Callable[[str], T]) -> Callable[[str], T]:
    """A reader whose sentences argparse tells."""

    def told(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return told


concepts = typed(split_concepts)
anchor = typed(one_word)


def words(what: str) -> Callable[[str], tuple[str, ...]]:
    """A reader of words, separated by commas. what: how one of them is called."""
    return typed(lambda text: tuple(split_words(text, what)))


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"it must be a number, not {text!r}")
    return value


def seconds(text: str) -> float:
    try:
        value = number(text)
    except argparse.ArgumentTypeError:
        value = -1.0
    if value < 0:
        raise argparse.ArgumentTypeError(f"it must be a number of seconds, not {text!r}")
    return value


def start(text: str) -> int | str:
    return "auto" if text == "auto" else whole(0)(text)


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="a diffusers folder, or a .safetensors or .ckpt checkpoint; it is only read",
    )
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FOLDER",
        help="for a checkpoint file: a diffusers folder of the same kind of model, for its "
        "configuration and tokenizer; without it these small files come from the Hugging Face Hub",
    )


def add_erasures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "erasures",
        type=Path,
        nargs="+",
        metavar="ERASURE",
        help="files that erase or the nodes wrote; several are added up",
    )
    add_strength(parser)


def add_strength(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strength",
        type=number,
        nargs="+",
        default=[1.0],
        metavar="S",
        help="1 is the erasure as trained, 0 the original, -1 undoes it; one for all, or one each",
    )


def add_size(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--size",
        type=whole(64, step=8),
        metavar="PIXELS",
        help="side of the pictures (default: the model's own)",
    )


def add_drawing(parser: argparse._ActionsContainer, steps: int, guidance: float, seed: int) -> None:
    """How pictures are drawn, with the defaults of the command."""
    add_size(parser)
    parser.add_argument(
        "--steps",
        type=whole(1),
        default=steps,
        metavar="N",
        help=f"of drawing a picture (default: {steps})",
    )
    parser.add_argument(
        "--guidance",
        type=number,
        default=guidance,
        metavar="G",
        help=f"scale of classifier-free guidance (default: {guidance:g})",
    )
    parser.add_argument(
        "--seed",
        type=whole(0),
        default=seed,
        metavar="N",
        help=f"of each group's first picture, the next one's is one higher (default: {seed})",
    )


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PATH", help=what)
    parser.add_argument(
        "--force", action="store_true", help="replace what an earlier run wrote there"
    )


def add_precision(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--precision",
        choices=("float16", "float32"),
        default=default,
        help=f"of the numbers that are written (default: {default})",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Where a model runs and how: see models.given_model."""
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--device", choices=DEVICES, default="auto")
    machine.add_argument(
        "--half",
        action="store_true",
        help="the image network in half precision, for half its memory; most desktop processors "
        "are many times slower in it",
    )
    machine.add_argument(
        "--save-memory", action="store_true", help="compute activations again: less memory, slower"
    )
    machine.add_argument(
        "--clip-skip",
        type=whole(0),
        default=0,
        metavar="N",
        help="last layers of the text encoder that are passed over, as diffusers counts them",
    )
