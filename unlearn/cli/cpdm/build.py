"""Draw pictures from each prompt of a set, as CPDM did, with any model and erasures."""

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

HELP = "draw pictures from the prompts of a set; an interrupted run goes on where it was"
AT_ONCE = 3  # pictures drawn together
RECEIPT = "drawn.json"


def add(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the set")
    parser.add_argument(
        "--captions",
        default="caption.csv",
        metavar="FILE",
        help="in the folder; columns image and prompt (default: caption.csv)",
    )
    parser.add_argument(
        "--generated",
        default="generated",
        metavar="NAME",
        help="the folder inside to draw into (default: generated)",
    )
    parser.add_argument(
        "--erasure", type=Path, nargs="+", default=[], metavar="FILE", help="put on the model first"
    )
    options.add_strength(parser)
    drawing = parser.add_argument_group(
        "the pictures (defaults: as in the paper, but for the sampler)"
    )
    drawing.add_argument(
        "--count",
        type=options.whole(1),
        default=COUNT,
        metavar="N",
        help=f"of each prompt (default: {COUNT})",
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
            # Pictures are numbered by their captions' place.
            "captions": digest([[caption.image, caption.prompt] for caption in captions]),
            # As they draw: another model or erasure is another run.
            "weights": digest({key: fingerprint(w) for key, w in every_weight(model).items()}),
        }
        check_run(target, run)
        with Bar() as bar:
            try:
                drawn = draw(model, captions, target, args, bar)
            except KeyboardInterrupt:
                print("\nInterrupted; the same command goes on from here.")
                raise SystemExit(130) from None
    print(
        f"{target}: {len(captions)} prompts, {args.count} pictures each, {drawn} of them new; "
        f"{args.steps} steps of DPM-Solver++(2M) where CPDM has DDIM, guidance {args.guidance}, "
        f"seed {args.seed}."
    )


def settings(args: argparse.Namespace, model) -> dict:
    """All but the captions and the weights that decides what is drawn."""
    names = ("count", "steps", "guidance", "seed", "clip_skip", "half")
    return {**{name: getattr(args, name) for name in names}, "size": list(model.size)}


def every_weight(model) -> dict[str, torch.Tensor]:
    """By name, the autoencoder's too."""
    return {**model.weights, **{f"vae.{k}": v for k, v in model.vae.state_dict().items()}}


def digest(values: dict | list) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def check_run(target: Path, run: dict) -> None:
    """Note in the folder how its pictures are drawn; raises Failure where it was otherwise."""
    file = target / RECEIPT
    if file.is_file():
        before = drawn_before(file)
        other = [name for name, value in run.items() if before.get(name) != value]
        if other:
            raise Failure(
                f"{target} was begun with other {', '.join(other)}; name another --generated, or "
                "delete that folder."
            )
    elif target.is_dir() and any(target.iterdir()):
        raise Failure(f"{target} holds what this program did not draw; name another --generated.")
    else:
        with whole_file(file) as temporary:
            temporary.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


def drawn_before(file: Path) -> dict:
    """What was noted of how a folder's pictures are drawn. Raises Failure where it is damaged."""
    try:
        before = json.loads(read_text(file))
    except (ValueError, RecursionError):
        before = None
    if not isinstance(before, dict):
        raise Failure(
            f"{file} does not say how the pictures beside it were drawn; name another --generated, "
            "or delete that folder."
        )
    return before


def draw(
    model, captions: Sequence[Caption], target: Path, args: argparse.Namespace, bar: Bar
) -> int:
    """Draw what is not there yet; returns how many pictures."""
    drawn, total = 0, len(captions) * args.count
    for row, caption in enumerate(captions):
        # Numbered over the whole set, as the released code does.
        first = row * args.count
        missing = [i for i in range(args.count) if not (target / caption.file(first + i)).exists()]
        bar(caption.name, first + args.count - len(missing), total)
        for i in range(0, args.count, AT_ONCE):
            some = range(i, min(i + AT_ONCE, args.count))
            # Together as in a run that is not interrupted: a batch decides on the last digits.
            if not set(some) & set(missing):
                continue
            x0 = model.sample(
                [caption.prompt] * len(some), args.seed + i, args.steps, args.guidance
            )
            for number, picture in zip(some, model.decode_latents(x0)):
                write_png(target / caption.file(first + number), picture[None])
            drawn += len(some)
            bar(caption.name, first + some.stop, total)
    return drawn
