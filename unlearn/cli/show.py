"""show: print an erasure's record, and measure its figures again."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from ..core.erasure import Erasure
from ..evaluate.judges.judge import Judge
from ..evaluate.judges.original import JUDGE as ORIGINAL
from ..evaluate.judges.registry import judge_of
from ..evaluate.probe import settings
from ..evaluate.receipt import Figure, measured_again, probed_again, receipt, recorded
from ..evaluate.record_text import figure_text, lines, measured_lines
from ..render.text_table import columns
from . import options
from .output import Failure, rewrite
from .probe import kind_of
from .progress import Bar

HELP = "print what an erasure is, how it was made and what was measured; measure it again"
EXAMPLES = """
examples:
  python -m unlearn show cat.safetensors
  python -m unlearn show cat.safetensors --json
      the whole record, for another program
  python -m unlearn show cat.safetensors --base sd15/
      compares fingerprints; the exit code is 1 if this is not the model that it was made with
  python -m unlearn show cat.safetensors --base sd15/ --record
      draws pictures before and after, and writes the figures into the file: its receipt
  python -m unlearn show cat.safetensors --base sd15/ --measure
      draws and judges them again, and those of "probe --record"; the exit code is 1 if the result
      is not what the file says
  python -m unlearn show nudity.safetensors --base sd15/ --record --judge nudenet
      NudeNet counts naked pictures; --measure then lets it count again. With --judge behind
      --measure another judge counts the same pictures, beside the record's figures

Machines round differently. So a count may differ by one picture in eight, a share of the loss by
0.02 and a change of pixels by 0.01; --measure prints this tolerance beside each figure.
"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="an erasure")
    parser.add_argument(
        "--base", type=Path, metavar="MODEL", help="the model that it was made with, to check it"
    )
    options.add_reading(parser)
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--measure", action="store_true", help="with --base: measure the record's figures again"
    )
    again.add_argument(
        "--record", action="store_true", help="with --base: measure, and write into the file"
    )
    options.add_judge(
        parser,
        "with --record or --measure: who says which pictures show the concept (default: who did "
        "when it was recorded, or the original model)",
    )
    parser.add_argument("--json", action="store_true", help="print only the record, as JSON")
    options.add_machine(parser)


def run(args: argparse.Namespace) -> None:
    option = "--measure" if args.measure else "--record" if args.record else ""
    if option and args.base is None:
        raise Failure(f"{option} needs the model of the erasure; name it with --base.")
    if args.judge and not option:
        raise Failure("--judge needs --record or --measure, which let somebody judge.")
    judge = judge_of(args.judge) if args.judge else None
    if judge:
        judge.check()
    erasure = Erasure.load(args.file)
    check_record(args, erasure)
    if args.json and not option:
        print(json.dumps(erasure.record, indent=1, sort_keys=True))
        if erasure.remark:
            print(erasure.remark, file=sys.stderr)
    elif not args.json:
        print("\n".join(lines(erasure, args.file.name, args.file.stat().st_size)), flush=True)
    if args.base is None:
        return
    model = base_model(args, erasure)
    if args.record:
        write_receipt(args, model, erasure, judge or ORIGINAL)
    elif args.measure:
        compare(args, model, erasure, judge)


def check_record(args: argparse.Namespace, erasure: Erasure) -> None:
    """Raises Failure where there is nothing to measure again, or already a receipt."""
    found = recorded(erasure)
    if args.measure and not found:
        raise Failure(
            f"{args.file.name} has no figures that can be measured again; use --record instead of "
            f"--measure to write some. {erasure.remark}".strip()
        )
    if args.record and "receipt" in dict(found):
        raise Failure(
            f"{args.file.name} already has a receipt; check it with --measure instead of --record."
        )
    if args.record and not erasure.concepts:
        raise Failure(
            f"{args.file.name} does not name its concept, so nothing can be measured; use probe "
            "with --concept."
        )


def base_model(args: argparse.Namespace, erasure: Erasure):
    """The model of --base. Raises Failure if the erasure was trained on another."""
    from ..diffusers_backend.apply import check_fit, differing
    from .models import load_model

    model = load_model(
        args.base, args.config, clip_skip=args.clip_skip, checkpointing=args.save_memory
    )
    check_fit(model, erasure)
    wrong, known = differing(model, erasure)
    if not known:
        raise Failure(
            f"{args.file.name} has no fingerprints, so its base cannot be checked; leave out "
            "--base."
        )
    if wrong:
        raise Failure(
            f"{args.base} is not the model that {args.file.name} was made with: {wrong} of "
            f"{known} weights differ, so what was measured may not hold for it."
        )
    if not args.json:
        text = f"\n{args.base} is its base: all {known} recorded fingerprints match."
        print(text, flush=True)
    return model


def write_receipt(args: argparse.Namespace, model, erasure: Erasure, judge: Judge) -> None:
    """Measure, and write the receipt into the file."""
    from .models import device_of, place

    place(model, device_of(args.device), args.half)
    found = receipt_of(model, erasure, judge)
    if args.json:
        written = erasure.with_measured(receipt=found).record
        print(json.dumps(written, indent=1, sort_keys=True), flush=True)
    else:
        print("\n".join(["", *measured_lines({"receipt": found})]), flush=True)
    rewrite(args.file, lambda erasure: erasure.with_measured(receipt=found))
    if not args.json:
        print(f"Written into {args.file.name}.")


def receipt_of(model, erasure: Erasure, judge: Judge = ORIGINAL) -> dict:
    """A receipt of an erasure: figures of pictures that its own base draws before and after."""
    from ..diffusers_backend.apply import ways

    protect = erasure.record.get("settings", {}).get("protect", ())
    with Bar() as bar:
        found = receipt(
            *ways(model, erasure),
            erasure.concepts,
            settings("quick", kind_of(erasure)),
            protect,
            bar,
            judge,
        )
    return {**found, "clip_skip": model.clip_skip}


def compare(args: argparse.Namespace, model, erasure: Erasure, judge: Judge | None) -> None:
    """Measure the recorded figures again and print both. Raises Failure where they differ too
    much. judge: who counts; None takes those of the record."""
    from ..diffusers_backend.apply import ways
    from .models import device_of, place

    place(model, device_of(args.device), args.half)
    own_size = model.size
    figures: list[Figure] = []
    with Bar() as bar:
        for what, record in recorded(erasure):
            model.size = tuple(record.get("size", own_size))
            model.clip_skip = record.get("clip_skip", args.clip_skip)
            model.check_clip_skip()
            again = measured_again if what == "receipt" else probed_again
            figures += again(*ways(model, erasure), record, bar, judge)
    wrong = sum(not figure.agrees for figure in figures)
    if args.json:
        found = [{**asdict(figure), "agrees": figure.agrees} for figure in figures]
        print(
            json.dumps({**erasure.record, "measured_again": found}, indent=1, sort_keys=True),
            flush=True,
        )
    else:
        print(f"\n{table(figures)}\n", flush=True)
    if wrong:
        raise Failure(
            f"{wrong} of {len(figures)} figures differ by more than the tolerance, so the record "
            f"of {args.file.name} is wrong; probe it again before you rely on it."
        )
    if not args.json:
        compared = sum(figure.recorded is not None for figure in figures)
        print(f"All {compared} figures agree." if compared else "There was nothing to compare.")


def table(figures: list[Figure]) -> str:
    """The figures as a text table."""
    rows = [["", "recorded", "measured", "tolerance", ""]]
    for figure in figures:
        both = (
            "" if value is None else figure_text(value, figure.of)
            for value in (figure.recorded, figure.measured)
        )
        tolerance = f"{figure.tolerance:g}" if figure.of else f"{figure.tolerance:.1%}"
        rows.append([figure.name, *both, tolerance, "" if figure.agrees else "differs"])
    return columns(rows)
