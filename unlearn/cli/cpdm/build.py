"""Draw pictures from each prompt of a set, as in CPDM, with any model and erasures."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from ...core.erasure import fingerprint
from ...files.writing import whole_file
from .. import options
from ..output import Failure
from ..pictures import write_png
from ..progress import Bar
from ..texts import read_text
from .dataset import COUNT, Caption, read_captions

HELP = "draw pictures from the prompts of a set; an interrupted run can be continued"
AT_ONCE = 3  # pictures drawn in one batch
RECEIPT = "drawn.json"


def add(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the set's folder")
    parser.add_argument(
        "--captions",
        default="caption.csv",
        metavar="FILE",
        help="a file in the folder with the columns image and prompt (default: caption.csv)",
    )
    parser.add_argument(
        "--generated",
        default="generated",
        metavar="NAME",
        help="the folder inside it for the pictures (default: generated)",
    )
    parser.add_argument(
        "--erasure",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="erasures to apply to the model first",
    )
    options.add_strength(parser)
    drawing = parser.add_argument_group(
        "the pictures (defaults: those of the paper, except the sampler)"
    )
    drawing.add_argument(
        "--count",
        type=options.whole(1),
        default=COUNT,
        metavar="N",
        help=f"pictures of each prompt (default: {COUNT})",
    )
    options.add_drawing(drawing, steps=50, guidance=9.0, seed=23)
    options.add_machine(parser)


def run(args: argparse.Namespace) -> None:
    captions = read_captions(args.folder / args.captions)
    from ...diffusers_backend.apply import applied, base_warning, check_fit
    from ..models import given_model, load_erasures

    erasure = load_erasures(args.erasure, args.strength) if args.erasure else None
    model = given_model(args)
    if erasure is not None:
        check_fit(model, erasure)
    target = args.folder / args.generated
    with ExitStack() as stack:
        if erasure is not None:
            if warning := base_warning(model, erasure):
                print(warning)
            stack.enter_context(applied(model, erasure))
        run = {
            **settings(args, model),
            # A caption's position decides the numbers of its pictures.
            "captions": digest([[caption.image, caption.prompt] for caption in captions]),
            # With the erasure: another model or erasure is another run.
            "weights": digest({key: fingerprint(w) for key, w in every_weight(model).items()}),
        }
        check_run(target, run)
        with Bar() as bar:
            try:
                drawn = draw(model, captions, target, args, bar)
            except KeyboardInterrupt:
                print("\nInterrupted; run the same command again to continue.")
                raise SystemExit(130) from None
    print(
        f"{target}: {len(captions)} prompts, {args.count} pictures each, {drawn} of them new; "
        f"{args.steps} steps of DPM-Solver++(2M) (CPDM uses DDIM), guidance {args.guidance}, "
        f"seed {args.seed}."
    )


def settings(args: argparse.Namespace, model) -> dict:
    """The settings that decide the pictures, beside the captions and the weights."""
    names = ("count", "steps", "guidance", "seed", "clip_skip", "half")
    return {**{name: getattr(args, name) for name in names}, "size": list(model.size)}


def every_weight(model) -> dict[str, torch.Tensor]:
    """The model's weights by name, with the autoencoder's."""
    return {**model.weights, **{f"vae.{k}": v for k, v in model.vae.state_dict().items()}}


def digest(values: dict | list) -> str:
    """A hash of values that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def check_run(target: Path, run: dict) -> None:
    """Record in the folder how its pictures are drawn. Raises Failure if it holds pictures that
    were drawn in another way."""
    file = target / RECEIPT
    if file.is_file():
        before = drawn_before(file)
        other = [name for name, value in run.items() if before.get(name) != value]
        if other:
            raise Failure(
                f"The pictures in {target} were drawn with other {', '.join(other)}; name another "
                "--generated, or delete that folder."
            )
    elif target.is_dir() and any(target.iterdir()):
        raise Failure(
            f"{target} holds files that this program did not write; name another --generated."
        )
    else:
        with whole_file(file) as temporary:
            temporary.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


def drawn_before(file: Path) -> dict:
    """The record of how a folder's pictures are drawn. Raises Failure where it is damaged."""
    try:
        before = json.loads(read_text(file))
    except (ValueError, RecursionError):
        before = None
    if not isinstance(before, dict):
        raise Failure(
            f"{file} is damaged, so it does not say how the pictures beside it were drawn; name "
            "another --generated, or delete that folder."
        )
    return before


def draw(
    model, captions: Sequence[Caption], target: Path, args: argparse.Namespace, bar: Bar
) -> int:
    """Draw the missing pictures; returns how many were drawn."""
    drawn, total = 0, len(captions) * args.count
    for row, caption in enumerate(captions):
        # Numbers run over the whole set, as in the released code.
        first = row * args.count
        missing = [i for i in range(args.count) if not (target / caption.file(first + i)).exists()]
        bar.stage(caption.name, first + args.count - len(missing), total)
        for i in range(0, args.count, AT_ONCE):
            numbers = range(i, min(i + AT_ONCE, args.count))
            # A batch is drawn whole, as without an interruption: its size changes the rounding.
            if not set(numbers) & set(missing):
                continue
            x0 = model.sample(
                [caption.prompt] * len(numbers), args.seed + i, args.steps, args.guidance
            )
            for number, picture in zip(numbers, model.decode_latents(x0)):
                write_png(target / caption.file(first + number), picture[None])
            drawn += len(numbers)
            bar.stage(caption.name, first + numbers.stop, total)
    return drawn
