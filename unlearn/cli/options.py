"""Options that several commands share, and the parsers of their values."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ..evaluate.judges.registry import keys
from ..prompts.pairs import split_pairs
from ..prompts.typed import one_word, split_concepts, split_words

T = TypeVar("T")
DEVICES = ("auto", "cpu", "cuda", "mps")


LARGEST = 2**63 - 1  # the largest seed


def whole(smallest: int, step: int = 1) -> Callable[[str], int]:
    """A parser of whole numbers from `smallest` on, in multiples of `step`."""

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
    """The parser `read` with its ValueErrors in the form whose message argparse prints."""

    def parse(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


concepts = typed(split_concepts)
anchor = typed(one_word)


@typed
def pairs(text: str) -> tuple[list[str], dict[str, str]]:
    """The parser of concepts of which some name their anchors; @FILE has a line for each."""
    if text.startswith("@") and len(text) > 1:
        try:
            text = Path(text[1:]).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{text[1:]} cannot be read as a list of words ({error}).") from None
    return split_pairs(text)


def words(what: str) -> Callable[[str], tuple[str, ...]]:
    """A parser of words separated by commas. what: their name in messages."""
    return typed(lambda text: tuple(split_words(text, what)))


def number(text: str) -> float:
    """The parser of a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"it must be a number, not {text!r}")
    return value


def seconds(text: str) -> float:
    """The parser of a number of seconds."""
    try:
        value = number(text)
    except argparse.ArgumentTypeError:
        value = -1.0
    if value < 0:
        raise argparse.ArgumentTypeError(f"it must be a number of seconds, not {text!r}")
    return value


def whole_or(choices: Sequence[str], smallest: int) -> Callable[[str], int | str]:
    """A reader of whole numbers, or of words that may stand in their place."""
    return lambda text: text if text in choices else whole(smallest)(text)


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="a diffusers folder, or a .safetensors or .ckpt checkpoint; it is never changed",
    )
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FOLDER",
        help="for a checkpoint file: a diffusers folder of the same kind of model, whose "
        "configuration and tokenizer are used (default: those of the Hugging Face Hub)",
    )


def add_judge(parser: argparse._ActionsContainer, help: str) -> None:
    parser.add_argument("--judge", choices=keys(), help=help)


def add_erasures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "erasures",
        type=Path,
        nargs="+",
        metavar="ERASURE",
        help="erasure files of erase or of the nodes; several are added up",
    )
    add_strength(parser)


def add_strength(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strength",
        type=number,
        nargs="+",
        default=[1.0],
        metavar="S",
        help="1 is the erasure as trained, 0 is the original model, -1 undoes an erasure; one for "
        "all, or one for each",
    )


def add_size(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--size",
        type=whole(64, step=8),
        metavar="PIXELS",
        help="side of the pictures (default: the model's own)",
    )


def add_drawing(parser: argparse._ActionsContainer, steps: int, guidance: float, seed: int) -> None:
    """The options for drawing pictures, with the command's defaults."""
    add_size(parser)
    parser.add_argument(
        "--steps",
        type=whole(1),
        default=steps,
        metavar="N",
        help=f"sampling steps of a picture (default: {steps})",
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
        help=f"seed of each group's first picture; each next one is one higher (default: {seed})",
    )


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PATH", help=what)
    parser.add_argument("--force", action="store_true", help="replace the output of an earlier run")


def add_precision(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--precision",
        choices=("float16", "float32"),
        default=default,
        help=f"number format of the output (default: {default})",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """The options for where and how a model runs; see models.given_model."""
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--device", choices=DEVICES, default="auto")
    machine.add_argument(
        "--half",
        action="store_true",
        help="denoiser in half precision: half its memory, but most desktop CPUs are many times "
        "slower in it",
    )
    machine.add_argument(
        "--save-memory", action="store_true", help="recompute activations: less memory, slower"
    )
    machine.add_argument(
        "--clip-skip",
        type=whole(0),
        default=0,
        metavar="N",
        help="last layers of the text encoder to skip, counted as in diffusers (default: 0)",
    )
