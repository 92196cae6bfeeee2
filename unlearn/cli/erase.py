"""erase: train an erasure and write it to a file."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..core.edit import Diverged, trained_values
from ..core.erasure import Erasure
from ..core.model import Part
from ..core.peak_memory import PeakMemory
from ..core.resume import Resume
from ..evaluate import verdict
from ..evaluate.anchor_check import drawable
from ..evaluate.picture_check import check_pictures
from ..evaluate.thumbnails import Thumbnails, may_be_shown
from ..files import writing
from ..methods.parts import hard_rounds, way_left
from ..methods.parts.method import Method
from ..methods.registry import METHODS
from ..prompts.anchor_choice import anchored, recorded, told
from ..prompts.other_names import told_names
from ..prompts.pairs import with_pairs
from ..prompts.word_checks import words_read
from . import method_options, options
from .output import Failure, check_output, check_space, save
from .pictures import AS_SEEN, batch, read_pictures
from .progress import Bar, StepBar

HELP = "train an erasure of one or several concepts and write it to a file"
EXAMPLES = """
examples:
  python -m unlearn erase sd15/ "Van Gogh" --kind style -o van_gogh.safetensors
      takes a style out of the text encoder; the model draws the four pictures itself
  python -m unlearn erase sd15.safetensors Zorvik --kind character --images photos/ --rank 8 \\
          -o zorvik.safetensors
      from your own pictures, as a small file
  python -m unlearn erase sd15/ "cat, dog" --images 1.png 2.png 3.png 4.png -o cat_dog.safetensors
      two concepts at once: the first half of the pictures shows cats, the second dogs
  python -m unlearn erase sd15/ "fox -> koala, owl" --method closed_form -o fox_owl.safetensors
      in seconds, without pictures; a koala is drawn in the fox's place, for the owl one is chosen
  python -m unlearn erase sd15/ mushroom --method key_step -o mushroom.safetensors
      takes it out of the denoiser instead; an interrupted run goes on where it was

The file loads in ComfyUI (Load Erased CLIP, Load Erased Model, Load LoRA) and with apply and
export. What is left out takes the method's own value, which show prints afterwards. The last line
says what is left of the concepts in four pictures of each, as the original model judges them.
"""
USUAL = "few_shot"  # the method where none is named


def add(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument(
        "concepts",
        type=options.pairs,
        metavar="CONCEPT",
        help="the word or name to unlearn, in plain words; several, separated by commas, go into "
        "one erasure; one with a comma in it stands in quotation marks; 'fox -> koala' names its "
        "anchor, too; @FILE has a line for each",
    )
    options.add_output(parser, "the erasure's file, ending in .safetensors")
    parser.add_argument(
        "--method",
        choices=tuple(METHODS),
        default=USUAL,
        help=f"{of_part('encoder')} in the text encoder, {of_part('denoiser')} in the denoiser "
        f"(default: {USUAL})",
    )
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        metavar="PATH",
        help=f"{', '.join(name for name, method in METHODS.items() if method.takes_pictures)}: "
        "pictures of the concept, or folders of them; without any the model draws them. Of several "
        f"concepts the same number each, in their order. {AS_SEEN}",
    )
    options.add_size(parser)
    method_options.add(parser.add_argument_group("the method's settings"), METHODS)
    parser.add_argument(
        "--no-verdict",
        dest="verdict",
        action="store_false",
        help="do not look beforehand if the pictures show the concept, and not afterwards what is "
        "left of it",
    )
    options.add_machine(parser)
    options.add_precision(parser, "float16")


def of_part(part: Part) -> str:
    """The methods that train a part, in words."""
    names = [name for name, method in METHODS.items() if method.part == part]
    return " and ".join(names) + (" works" if len(names) == 1 else " work")


@dataclass(frozen=True)
class Chosen:
    """What is run: a method and the settings that were asked for."""

    method: Method
    settings: Any


def run(args: argparse.Namespace) -> None:
    from .models import given_model

    erased(args, given_model)


def erased(args: argparse.Namespace, load: Callable[[argparse.Namespace], Any]) -> None:
    """Train what the arguments ask for and write it to args.output.

    load: opens the model that they name. Raises Failure or ValueError for what cannot be used.
    """
    asked = chosen(args)
    method, settings = asked.method, asked.settings
    if args.output.suffix != ".safetensors":
        raise Failure(
            f"{args.output} must end in .safetensors, with a name before it; name such an --output."
        )
    check_output(args.output, args.force)
    pictures = read_pictures(args.images) if args.images else None
    shown = None if pictures is None else torch.zeros(len(pictures), 1, 1, 3)
    method.check_inputs(args.concepts, settings, shown)

    model = load(args)
    method.check_inputs(args.concepts, settings, shown, model.readings)
    args.concepts = words_read(args.concepts, model.readings)
    weights = model.selected(method.part, settings.fitted(model).weights)
    count = trained_values(weights, settings.rank)
    check_space(args.output, 2 * count * getattr(torch, args.precision).itemsize)
    images = None if pictures is None else batch(pictures, model.size)
    doubts = looked_at(args, settings, model, images)
    began = time.monotonic()
    resume = Resume(resume_file(args, asked, model)) if method.resumes else Resume()
    if resume.file:
        line = f"Going on with an interrupted run ({resume.file.name})."
        resume.on_use = lambda: tqdm.write(line, file=sys.stderr)
    try:
        with PeakMemory(model.device) as memory:
            erasure = train(args, asked, model, images, resume)
    except KeyboardInterrupt:
        if not resume.began():
            raise
        print("\nInterrupted; the same command goes on from here.", file=sys.stderr)
        raise SystemExit(130) from None
    made_with = {**erasure.record, "architecture": type(model.pipeline).__name__}
    erasure = replace(erasure, record=made_with).with_measured(
        seconds=round(resume.before + time.monotonic() - began, 2),
        peak_mb=memory.peak >> 20,
        recomputed=args.save_memory,
        **({"doubts": doubts} if doubts else {}),
    )
    precision = getattr(torch, args.precision)
    save(erasure, args.output, precision, resume.began())
    resume.close()
    record = erasure.record
    print(
        f"{args.output}: {', '.join(erasure.concepts)}, {record['steps']} {method.counts}, "
        f"{record['measured']['seconds']:.1f} s, peak memory {memory.peak >> 20} MiB, "
        f"file {args.output.stat().st_size / 1e6:.1f} MB.",
        flush=True,
    )
    said = ""
    if args.verdict:
        erasure, said = judged(args, settings, model, erasure)
        try:
            erasure.save(args.output, precision)
        except writing.ERRORS:
            said += " It could not be written into the file."
    facts = (
        told(record),
        told_names(record),
        way_left.told(record),
        hard_rounds.told(record),
        said,
        verdict.advice(erasure.record),
    )
    print(" ".join(filter(None, facts)))


def looked_at(args: argparse.Namespace, settings: Any, model, images) -> list[str]:
    """What is doubtful of the pictures, told on stderr, too. Raises Failure where they clearly
    show another thing than the concept."""
    if not args.verdict or images is None:
        return []
    kind = settings.named_as
    try:
        with Bar() as bar:
            doubts = check_pictures(model, args.concepts, images, kind, "add --no-verdict", bar)
    except ValueError as error:
        raise Failure(str(error)) from error
    for doubt in doubts:
        print(doubt, file=sys.stderr)
    return doubts


def judged(args: argparse.Namespace, settings: Any, model, erasure: Erasure) -> tuple[Erasure, str]:
    """The erasure with the verdict in its record, and a line that tells it.

    Its file is there already, and stays where this fails.
    """
    from ..diffusers_backend.apply import ways

    look = Thumbnails()
    try:
        with Bar() as bar:
            found = verdict.measured(
                *ways(model, erasure),
                args.concepts,
                settings.named_as,
                recorded(erasure.record),
                settings.seed,
                bool(args.images),
                bar,
                keep=look if may_be_shown(settings) else None,
            )
    except verdict.NOT_MEASURED as error:
        return erasure, verdict.not_measured(error)
    except KeyboardInterrupt:
        print(
            f"\nInterrupted; {args.output} is written, and what is left was not measured.",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    erasure = replace(erasure.with_measured(verdict=found), pictures=look.found)
    return erasure, verdict.told(erasure.record)


def chosen(args: argparse.Namespace) -> Chosen:
    """The method and its settings. Raises Failure for options that do not go together."""
    method, settings = method_options.chosen(METHODS, args)
    args.concepts, anchors = args.concepts
    try:
        settings = with_pairs(settings, args.concepts, anchors)
    except ValueError as error:
        raise Failure(str(error)) from error
    if args.images and not method.takes_pictures:
        raise Failure(f"{args.method} takes no pictures, it draws its own; leave out --images.")
    if args.images and args.shots is not None:
        raise Failure("--shots is for pictures that the model draws; leave out it or --images.")
    return Chosen(method, settings)


def with_anchors(args: argparse.Namespace, settings: Any, model, bar: StepBar) -> tuple[Any, dict]:
    """The settings with the anchors that are chosen, and what the record says of it.

    Pictures of the candidates are looked at. With --no-verdict, or where that fails, the method
    chooses by the text encoder alone.
    """
    if not args.verdict:
        return settings, {}
    try:
        draws = drawable(model, settings.named_as, settings.seed, bar)
        return anchored(model, args.concepts, settings, draws, bar)
    except verdict.NOT_MEASURED:
        return settings, {}


def train(args: argparse.Namespace, asked: Chosen, model, images, resume: Resume) -> Erasure:
    """The erasure; of a loss that diverged, what was good is kept beside the output."""
    with StepBar(f"unlearning {', '.join(args.concepts)}") as bar:
        try:
            settings, chosen = with_anchors(args, asked.settings, model, bar)
            erasure = asked.method.run(model, args.concepts, settings, images, bar, resume)
            return replace(erasure, record={**erasure.record, **chosen})
        except Diverged as error:
            resume.close()
            if not error.history or error.erasure is None:
                raise Failure(
                    f"{error} Nothing was learnt, so nothing is kept. If it is so at every try, "
                    "what the denoiser predicts is not finite: leave out --half."
                ) from error
            aside = args.output.with_name(f"{args.output.stem}_unfinished.safetensors")
            save(error.erasure, aside, torch.float16)
            raise Failure(
                f"{error} What was reached after step {len(error.history)} is kept in {aside}."
            ) from error


def resume_file(args: argparse.Namespace, asked: Chosen, model) -> Path:
    """Where a long run keeps its state: one file for each set of inputs."""
    inputs = {
        "method": asked.method.name,
        "settings": asdict(asked.settings),
        "concepts": args.concepts,
        "size": model.size,
        "clip_skip": model.clip_skip,
        "dtype": str(model.network.dtype),
        "base": model.fingerprints(model.weights),
    }
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:8]
    return args.output.with_name(f"{args.output.stem}_{key}.resume")
