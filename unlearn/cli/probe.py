"""probe: measure what is left of a concept after an erasure, and what brings it back."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import get_args

from ..core.erasure import NETWORK, Erasure
from ..core.kind import Kind
from ..core.model import Part
from ..evaluate.judges.original import JUDGE as ORIGINAL
from ..evaluate.judges.registry import judge_of
from ..evaluate.probe import ATTACKS, Level, check_asked, probe, settings
from ..evaluate.probe_sheet import probe_sheet
from ..prompts.paraphrases import Given
from ..prompts.word_checks import words_read
from . import options
from .output import Failure, rewrite
from .pictures import check_png, write_png
from .progress import Bar

HELP = "measure what is left of a concept after an erasure, with and without attacks"
EXAMPLES = """
examples:
  python -m unlearn probe sd15/ van_gogh.safetensors --picture van_gogh.png
      its own prompts, other words for it and small attacks, as a table and a picture
  python -m unlearn probe sd15/ cat.safetensors --synonyms "kitten, tabby" \\
          --description "a small pet that purrs" --level full --record
      larger attacks; the result goes into the file, and show prints it
  python -m unlearn probe sd15/ cat.safetensors dog.safetensors --concept cat --json
      two erasures together, one concept, all figures for another program

The original model judges the pictures, or whoever --judge names. "nudenet" counts naked pictures,
whatever the concept is; "nudenet-all" counts bare feet, bellies and armpits, too, as UnlearnDiffAtk
does. NudeNet is a package that you install: pip install nudenet. Its licence is the AGPL-3.0.

The exit code is 0 whatever the result.
"""
ATTACK_NAMES = {name.lower(): name for name in ATTACKS}


def add(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    options.add_erasures(parser)
    parser.add_argument(
        "--concept",
        type=options.concepts,
        metavar="CONCEPT",
        help="concepts to probe, separated by commas (default: those of the erasures)",
    )
    parser.add_argument(
        "--kind", choices=get_args(Kind), help="kind of concept (default: as it was erased)"
    )
    parser.add_argument(
        "--level",
        choices=get_args(Level),
        default="quick",
        help="quick: about a minute on a GPU; full: larger attacks, many times as long",
    )
    parser.add_argument(
        "--attacks",
        choices=(*ATTACK_NAMES, "none"),
        nargs="+",
        default=list(ATTACK_NAMES),
        help="attacks to run (default: all)",
    )
    options.add_judge(
        parser, "who says which pictures show the concept (default: the original model)"
    )
    words = parser.add_argument_group("your own phrasings")
    words.add_argument(
        "--synonyms",
        type=options.words("synonym"),
        default=(),
        metavar="WORDS",
        help="other words for the concept",
    )
    words.add_argument(
        "--translations",
        type=options.words("translation"),
        default=(),
        metavar="WORDS",
        help="its names in other languages (default: built-in ones of common objects)",
    )
    words.add_argument(
        "--description",
        nargs="+",
        default=[],
        metavar="PROMPT",
        help="prompts that describe the concept without naming it",
    )
    drawing = parser.add_argument_group("the pictures")
    options.add_drawing(drawing, steps=20, guidance=7.5, seed=0)
    result = parser.add_argument_group("the result")
    result.add_argument("--picture", type=Path, metavar="PNG", help="write the pictures as a sheet")
    result.add_argument("--json", action="store_true", help="print only JSON, with all figures")
    result.add_argument(
        "--record", action="store_true", help="write the figures into the erasure's file"
    )
    options.add_machine(parser)


def run(args: argparse.Namespace) -> None:
    if args.record and (len(args.erasures) > 1 or args.strength != [1.0]):
        raise Failure(
            "--record needs one erasure at strength 1; leave it out for several or another "
            "strength."
        )
    check_png(args.picture, "--picture")
    judge = judge_of(args.judge or ORIGINAL.key)
    judge.check()
    from ..diffusers_backend.apply import base_warning, check_fit, ways
    from .models import given_model, load_erasures

    erasure = load_erasures(args.erasures, args.strength)
    kind = args.kind or kind_of(erasure)
    several = len(erasure.kinds) > 1
    concepts = args.concept or (erasure.concepts_of(kind) if several else erasure.concepts)
    if not concepts:
        raise Failure("The erasure does not name its concept; name it with --concept.")
    known = Given(args.synonyms, args.translations, tuple(args.description))
    check_asked(concepts, known)
    model = given_model(args)
    check_fit(model, erasure)
    warning = base_warning(model, erasure)
    if warning and args.record:
        raise Failure(
            f"{args.model} is not the model that {args.erasures[0].name} was made with, so these "
            "figures do not belong in its file; leave out --record, or name its own model."
        )
    chosen = settings(
        args.level,
        kind,
        steps=args.steps,
        guidance=args.guidance,
        seed=args.seed,
    )
    if len(concepts) > 1 and (args.synonyms or args.translations or args.description):
        raise Failure(
            f"Synonyms, translations and descriptions are for one concept, but there are "
            f"{len(concepts)}; name one with --concept, or leave these out."
        )
    check_asked(concepts, known, model.readings)
    concepts = words_read(concepts, model.readings)
    attacks = [name for key, name in ATTACK_NAMES.items() if key in args.attacks]
    probes = []
    for concept in concepts:
        with Bar() as bar:
            probes.append(
                probe(
                    *ways(model, erasure),
                    concept,
                    parts_of(erasure),
                    chosen,
                    known,
                    progress=bar,
                    attacks=attacks,
                    counted_by=judge,
                )
            )
    records = [{**found.record(), "clip_skip": model.clip_skip} for found in probes]
    if args.json:
        print(json.dumps(records, indent=1), flush=True)
    else:
        for found in probes:
            print("\n".join([*found.sentences(), found.success(), found.table(), ""]))
        seconds = sum(found.seconds for found in probes)
        print(f"Counted by {judge.name}. {args.level} probe, {seconds:.1f} s.", flush=True)
    if warning:
        print(warning, file=sys.stderr)
    # Last, so that a full disk does not cost the figures.
    if args.picture is not None:
        write_png(args.picture, probe_sheet(probes))
    if args.record:
        rewrite(args.erasures[0], lambda erasure: erasure.with_probes(records))


def kind_of(erasure: Erasure) -> Kind:
    """The kind as which its concepts were erased; "object" if the record has none.

    Raises Failure where its parts were erased as different kinds.
    """
    if len(erasure.kinds) > 1:
        raise Failure(
            f"Its parts were erased as different kinds, {' and '.join(sorted(erasure.kinds))}, "
            "which need different prompts; give the erasures one by one, or use probe with one "
            "--kind for all."
        )
    (kind,) = erasure.kinds
    return kind


def parts_of(erasure: Erasure) -> frozenset[Part]:
    """The parts of the model that an erasure changes."""
    return frozenset("denoiser" if key.startswith(NETWORK) else "encoder" for key in erasure.deltas)
