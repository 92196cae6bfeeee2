"""identify: find the word that a model itself uses for pictures, which is the word to unlearn."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from ..core.erasure import NETWORK, Erasure, check_changes
from ..core.kind import Kind
from ..evaluate.classifier import Ranking, check_candidates, identify, parse_words
from ..evaluate.classifier_report import bars, cost, table, verdict
from ..evaluate.collateral import Neighbour, neighbours, proposal, to_protect
from ..prompts.typed import split_words
from ..prompts.word_checks import check_words, words_read
from . import options
from .output import Failure
from .pictures import AS_SEEN, batch, check_png, picture_files, read_pictures, write_png
from .progress import Bar
from .texts import read_text

HELP = "find the word that a model uses for the content of pictures: the word to unlearn"
EXAMPLES = """
examples:
  python -m unlearn identify sd15/ 1.png 2.png 3.png 4.png
      among 254 everyday words, best first; four pictures are better than one
  python -m unlearn identify sd15/ photos/ --words "fox, red panda, raccoon" --chart fox.png
      among your own words, also as a bar chart
  python -m unlearn identify sd15/ paintings/ --kind style --words-file painters.txt --json
      a style, among the words of a file, all figures for another program
  python -m unlearn identify sd15/ photos/ --erasure fox.safetensors
      also lists the words that an erasure of a text encoder moved, for erase --protect

With the right word the denoiser predicts the noise in the pictures best (Li et al., arXiv
2303.16203). "explains 12%" means that its error is 12% smaller than with an empty prompt. The
confidence is the probability that the first word would stay first with endlessly many draws, among
the words of the last round and for these pictures. Nothing is trained, and the model is not
changed.
"""


def add(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument(
        "pictures",
        type=Path,
        nargs="+",
        metavar="PICTURE",
        help="pictures of one object or in one style, or folders of them. " + AS_SEEN,
    )
    parser.add_argument(
        "--kind",
        choices=get_args(Kind),
        default="object",
        help="kind of concept: it decides the prompts and the built-in words (default: object)",
    )
    candidates = parser.add_mutually_exclusive_group()
    candidates.add_argument(
        "--words",
        metavar="WORDS",
        help="the words to choose from, separated by commas (default: built-in ones)",
    )
    candidates.add_argument(
        "--words-file",
        type=Path,
        metavar="FILE",
        help="a text file of words, separated by commas or lines",
    )
    parser.add_argument(
        "--erasure",
        type=Path,
        metavar="FILE",
        help="an erasure of a text encoder: also list the words that it moved",
    )
    parser.add_argument(
        "--draws",
        type=options.whole(12),
        default=64,
        metavar="N",
        help="draws of noise for each word in the last round (default: 64)",
    )
    parser.add_argument(
        "--seed",
        type=options.whole(0),
        default=0,
        metavar="N",
        help="noise seed (default: 0)",
    )
    parser.add_argument(
        "--size",
        type=options.whole(64, step=8),
        metavar="PIXELS",
        help="side to which the pictures are resized (default: the model's own)",
    )
    result = parser.add_argument_group("the result")
    result.add_argument("--chart", type=Path, metavar="PNG", help="write a bar chart of the words")
    result.add_argument("--json", action="store_true", help="print only JSON, with all figures")
    options.add_machine(parser)


def run(args: argparse.Namespace) -> None:
    check_png(args.chart, "--chart", picture_files(args.pictures))
    words = candidates(args)
    pictures = read_pictures(args.pictures)
    erasure = None if args.erasure is None else encoder_erasure(args.erasure)

    from ..diffusers_backend.apply import base_warning, check_fit
    from .models import given_model

    model = given_model(args)
    if erasure is not None:
        check_fit(model, erasure)
        if warning := base_warning(model, erasure):
            print(warning, file=sys.stderr)
    if (args.words, args.words_file) != (None, None):
        check_words(words, "candidate", model.readings)
        words = check_candidates(words_read(words, model.readings))
    images = batch(pictures, model.size)
    began = time.monotonic()
    with Bar() as bar:
        ranking = identify(
            model,
            images,
            words,
            args.kind,
            args.draws,
            args.seed,
            bar.named("comparing"),
        )
    found = None if erasure is None else moved_along(model, erasure, words, args.kind, ranking)
    seconds = time.monotonic() - began
    if args.json:
        print(json.dumps(figures(args, ranking, found, len(images), seconds), indent=1), flush=True)
    else:
        print("\n".join([verdict(ranking), "", table(ranking), ""]))
        if found is not None:
            print(proposal(to_protect(found)))
        print(f"{cost(ranking, len(images))[:-1]}, {seconds:.1f} s.", flush=True)
    # Last, so that a full disk does not cost the figures.
    if args.chart is not None:
        write_png(args.chart, bars(ranking))


LARGEST = 2**18  # the most bytes of a file of words


def candidates(args: argparse.Namespace) -> list[str]:
    """The words that the user gave, or the built-in ones.

    Raises Failure for a file that cannot be read or holds no words, ValueError for a single word.
    """
    text, source = args.words, "--words"
    if args.words_file is not None:
        source = args.words_file
        try:
            text = read_text(source, LARGEST).replace("\r", "\n")
        except ValueError:
            raise Failure(
                f"{source} is not a UTF-8 text file of less than {LARGEST >> 10} KB; name such a "
                "--words-file."
            ) from None
    if text is not None and not split_words(text, "candidate"):
        raise Failure(
            f"{source} holds no words; give at least two, or leave the option out for the built-in "
            "words."
        )
    return parse_words(text or "", args.kind)


def encoder_erasure(file: Path) -> Erasure:
    """The erasure in a file. Raises Failure if it changes only the denoiser, so moves no
    conditioning, and ErasureError if it changes nothing."""
    erasure = Erasure.load(file)
    if erasure.deltas and all(key.startswith(NETWORK) for key in erasure.deltas):
        raise Failure(
            f"{file.name} changes only the denoiser, so it moves no word; name an erasure of a "
            "text encoder, or leave --erasure out."
        )
    check_changes(erasure, file.name)
    return erasure


def moved_along(
    model, erasure: Erasure, words: list[str], kind: Kind, ranking: Ranking
) -> list[Neighbour]:
    """The words, without those of the concept, by how far the erasure moves them."""
    from ..diffusers_backend.apply import applied

    def after(prompts):
        with applied(model, erasure):
            return model.encode(prompts)

    return neighbours(model.encode, after, words, kind, [*erasure.concepts, ranking.best])


def figures(
    args: argparse.Namespace,
    ranking: Ranking,
    found: list[Neighbour] | None,
    pictures: int,
    seconds: float,
) -> dict:
    """All figures as JSON. The error of a single draw is unknown, so it is null."""
    words = [asdict(word) for word in ranking.words]
    for word in words:
        word["error"] = word["error"] if math.isfinite(word["error"]) else None
    return {
        "word": ranking.best,
        "confidence": ranking.confidence,
        "kind": args.kind,
        "pictures": pictures,
        "draws": args.draws,
        "seed": args.seed,
        "evaluations": ranking.evaluations,
        "seconds": round(seconds, 2),
        "words": words,
        "neighbours": None if found is None else [asdict(neighbour) for neighbour in found],
        "protect": None if found is None else [moved.word for moved in to_protect(found)],
    }
