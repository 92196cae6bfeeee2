"""erase: train an erasure and write it to a file."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch
from tqdm import tqdm

from ..core.edit import Diverged, Edit
from ..core.erasure import Erasure
from ..core.gradient_projection import Projection
from ..core.kind import Kind
from ..core.model import Part
from ..core.peak_memory import PeakMemory
from ..core.resume import Resume
from ..core.token_reading import Read
from ..core.trainable import NetworkTrainable, Trainable
from ..evaluate import verdict
from ..evaluate.picture_check import check_pictures
from ..files import writing
from ..methods.domain_correction import DomainCorrectionSettings, domain_correction
from ..methods.domain_correction import check_settings as check_domain_correction
from ..methods.few_shot import FewShotSettings, few_shot
from ..methods.few_shot import check_settings as check_few_shot
from ..methods.key_step import KeyStepSettings, key_step
from ..methods.key_step import check_settings as check_key_step
from ..methods.parts.adversarial import SECONDS
from ..prompts.word_checks import words_read
from . import options
from .output import Failure, check_output, check_space, save
from .pictures import AS_SEEN, batch, read_pictures
from .progress import Bar

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
  python -m unlearn erase sd15/ mushroom --method key_step -o mushroom.safetensors
      takes it out of the image network instead; an interrupted run goes on where it was

The file loads in ComfyUI (Load Erased CLIP, Load Erased Model, Load LoRA) and with apply and
export. What is left out takes the method's own value, which show prints afterwards. The last line
says what is left of the concepts in four pictures of each, as the original model judges them.
"""
# The name of each option in the method's settings.
SHARED = ("mode", "rank", "seed", "projection", "trainable", "anchor", "protect", "batch")
SETTINGS: dict[str, dict[str, str]] = {
    "few_shot": {
        **{name: name for name in (*SHARED, "kind", "shots", "epochs", "harden")},
        "steps": "max_steps",
    },
    "key_step": {
        **{name: name for name in (*SHARED, "start", "harden")},
        **{"kind": "task", "steps": "iterations"},
    },
    "domain_correction": {
        **{name: name for name in (*SHARED, "kind")},
        **{"shots": "pictures", "steps": "iterations"},
    },
}
CLASSES = {
    "few_shot": FewShotSettings,
    "key_step": KeyStepSettings,
    "domain_correction": DomainCorrectionSettings,
}
TASKS = {"object": "object", "style": "style", "character": "instance"}
# Settings that a mode of a method has no use for, and the mode that has.
UNUSED = {
    ("few_shot", "balanced"): (("epochs",), "paper"),
    ("few_shot", "paper"): (("anchor", "protect", "steps", "harden"), "balanced"),
    ("key_step", "paper"): (("protect", "batch", "harden"), "balanced"),
    ("domain_correction", "paper"): (("protect",), "balanced"),
}


def add(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument(
        "concepts",
        type=options.concepts,
        metavar="CONCEPT",
        help="the word or name to unlearn, in plain words; several, separated by commas, go into "
        "one erasure; one with a comma in it stands in quotation marks",
    )
    options.add_output(parser, "the erasure's file, ending in .safetensors")
    parser.add_argument(
        "--method",
        choices=tuple(SETTINGS),
        default="few_shot",
        help="few_shot changes the text encoder, the others the image network (default: few_shot)",
    )
    parser.add_argument(
        "--kind", choices=get_args(Kind), help="what the concept is (default: object)"
    )
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="few_shot: pictures of the concept, or folders of them; without any the model draws "
        "them. Of several concepts the same number each, in their order. " + AS_SEEN,
    )
    options.add_size(parser)
    method = parser.add_argument_group("the method's settings")
    method.add_argument(
        "--mode", choices=("balanced", "paper"), help="ours, or as published (default: balanced)"
    )
    method.add_argument(
        "--shots",
        type=options.whole(1),
        metavar="N",
        help="few_shot, domain_correction: pictures that the model draws (default: 4; 32, in mode "
        "paper 1000)",
    )
    method.add_argument(
        "--steps",
        type=options.whole(1),
        metavar="N",
        help="it stops here at the latest (default: few_shot 120 for each concept, the others 240; "
        "in mode paper the papers' own)",
    )
    method.add_argument(
        "--epochs",
        type=options.whole(1),
        metavar="N",
        help="few_shot, mode paper: passes over the pictures (default: 4)",
    )
    method.add_argument(
        "--start",
        type=options.start,
        metavar="S",
        help="key_step: the first step that is trained, or auto (default: by kind)",
    )
    method.add_argument(
        "--rank",
        type=options.whole(0),
        metavar="N",
        help="4 to 32: a small file (default: 0, full changes)",
    )
    method.add_argument(
        "--trainable",
        choices=(*get_args(Trainable), *get_args(NetworkTrainable)),
        help="which weights; the first four are an encoder's, the others the network's",
    )
    method.add_argument(
        "--anchor",
        type=options.anchor,
        metavar="WORD",
        help="what the concept is drawn towards",
    )
    method.add_argument(
        "--protect",
        type=options.words("protected word"),
        metavar="WORDS",
        help="words that must stay what they are",
    )
    method.add_argument(
        "--harden",
        type=options.seconds,
        nargs="?",
        const=SECONDS,
        metavar="SECONDS",
        help="train on for so long against words that would bring it back; without a number: "
        f"{SECONDS:g}",
    )
    method.add_argument(
        "--projection",
        choices=get_args(Projection),
        help="take out of each step what would harm other prompts: orthogonal, or as_released, as "
        "DoCo's code does it, which takes too much (default: off; domain_correction: orthogonal)",
    )
    method.add_argument(
        "--batch",
        type=options.whole(1),
        metavar="N",
        help="latents at once (default: few_shot and key_step 2, domain_correction 4, in mode "
        "paper 8)",
    )
    method.add_argument("--seed", type=options.whole(0), metavar="N", help="default: 0")
    parser.add_argument(
        "--no-verdict",
        dest="verdict",
        action="store_false",
        help="do not look beforehand if the pictures show the concept, and not afterwards what is "
        "left of it",
    )
    options.add_machine(parser)
    options.add_precision(parser, "float16")


@dataclass(frozen=True)
class Method:
    """What is run: its name, settings, and which weights they ask for."""

    name: str
    settings: FewShotSettings | KeyStepSettings | DomainCorrectionSettings

    @property
    def part(self) -> Part:
        return "encoder" if self.name == "few_shot" else "denoiser"

    @property
    def select(self) -> str:
        return getattr(self.settings, "weights", None) or self.settings.trainable


def run(args: argparse.Namespace) -> None:
    method = chosen(args)
    if args.output.suffix != ".safetensors":
        raise Failure(
            f"{args.output} must end in .safetensors, with a name before it; name such an --output."
        )
    check_output(args.output, args.force)
    pictures = read_pictures(args.images) if args.images else None
    shown = None if pictures is None else len(pictures)
    check(method, args.concepts, shown)

    from .models import given_model

    model = given_model(args)
    check(method, args.concepts, shown, model.readings)
    args.concepts = words_read(args.concepts, model.readings)
    weights = model.selected(method.part, method.select)
    rank = method.settings.rank
    count = sum(
        rank * (weight.shape[0] + weight[0].numel()) if rank and weight.ndim > 1 else weight.numel()
        for weight in weights.values()
    )
    check_space(args.output, 2 * count * getattr(torch, args.precision).itemsize)
    images = None if pictures is None else batch(pictures, model.size)
    doubts = looked_at(args, method, model, images)
    began = time.monotonic()
    resume = Resume() if method.name == "few_shot" else Resume(resume_file(args, method, model))
    if resume.file:
        line = f"Going on with an interrupted run ({resume.file.name})."
        resume.on_use = lambda: tqdm.write(line, file=sys.stderr)
    try:
        with PeakMemory(model.device) as memory:
            erasure = trained(args, method, model, images, resume)
    except KeyboardInterrupt:
        if not resume.began():
            raise
        print("\nInterrupted; the same command goes on from here.", file=sys.stderr)
        raise SystemExit(130) from None
    erasure = erasure.with_measured(
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
        f"{args.output}: {', '.join(erasure.concepts)}, {record['steps']} steps, "
        f"{record['measured']['seconds']:.1f} s, peak memory {memory.peak >> 20} MiB, "
        f"file {args.output.stat().st_size / 1e6:.1f} MB.",
        flush=True,
    )
    said = ""
    if args.verdict:
        erasure, said = judged(args, method, model, erasure)
        try:
            erasure.save(args.output, precision)
        except writing.ERRORS:
            said += " It could not be written into the file."
    print(" ".join(filter(None, (said, verdict.advice(erasure.record)))))


def looked_at(args: argparse.Namespace, method: Method, model, images) -> list[str]:
    """What is doubtful of the pictures, told on stderr, too. Raises Failure where they clearly
    show another thing than the concept."""
    if not args.verdict or images is None:
        return []
    kind = method.settings.kind
    try:
        with Bar() as bar:
            doubts = check_pictures(model, args.concepts, images, kind, "add --no-verdict", bar)
    except ValueError as error:
        raise Failure(str(error)) from error
    for doubt in doubts:
        print(doubt, file=sys.stderr)
    return doubts


def judged(
    args: argparse.Namespace, method: Method, model, erasure: Erasure
) -> tuple[Erasure, str]:
    """The erasure with the verdict in its record, and a line that tells it.

    Its file is there already, and stays where this fails.
    """
    from ..diffusers_backend.apply import ways

    s = method.settings
    try:
        with Bar() as bar:
            found = verdict.measured(
                *ways(model, erasure),
                args.concepts,
                s.kind,
                s.anchor,
                s.seed,
                bool(args.images),
                bar,
            )
    except verdict.NOT_MEASURED as error:
        return erasure, verdict.not_measured(error)
    except KeyboardInterrupt:
        print(
            f"\nInterrupted; {args.output} is written, and what is left was not measured.",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    erasure = erasure.with_measured(verdict=found)
    return erasure, verdict.told(erasure.record)


def chosen(args: argparse.Namespace) -> Method:
    """The method with the settings that were given; the others are its own.

    Raises Failure for an option that this method or mode has no use for.
    """
    names = SETTINGS[args.method]
    every = dict.fromkeys(name for settings in SETTINGS.values() for name in settings)
    values = {name: getattr(args, name) for name in every if getattr(args, name) is not None}
    for name in values:
        if name not in names:
            raise Failure(f"{args.method} has no setting --{name}; leave it out.")
    unused, other = UNUSED.get((args.method, args.mode or "balanced"), ((), ""))
    for name in unused:
        if name in values:
            raise Failure(f"--{name} is a setting of mode {other}; leave it or change --mode.")
    known = get_args(Trainable if args.method == "few_shot" else NetworkTrainable)
    if values.get("trainable", known[0]) not in known:
        raise Failure(f"{args.method} trains one of {', '.join(known)}; correct --trainable.")
    if args.images and args.method != "few_shot":
        raise Failure(f"{args.method} takes no pictures, it draws its own; leave out --images.")
    if args.images and "shots" in values:
        raise Failure("--shots is for pictures that the model draws; leave out it or --images.")
    if args.method == "key_step" and "kind" in values:
        values["kind"] = TASKS[values["kind"]]
    settings = CLASSES[args.method](**{names[name]: value for name, value in values.items()})
    return Method(args.method, settings)


def check(
    method: Method, concepts: list[str], pictures: int | None, read: Read | None = None
) -> None:
    """Raises ValueError with one sentence for what the method cannot work on. read: the model's."""
    if method.name == "key_step":
        check_key_step(concepts, method.settings, read)
    elif method.name == "domain_correction":
        check_domain_correction(concepts, method.settings, read)
    else:
        images = None if pictures is None else torch.zeros(pictures, 1, 1, 3)
        check_few_shot(concepts, images, method.settings, read)


def trained(args: argparse.Namespace, method: Method, model, images, resume: Resume) -> Erasure:
    """The erasure; of a loss that diverged, what was good is kept beside the output."""
    with tqdm(desc=f"unlearning {', '.join(args.concepts)}", disable=None, unit="step") as bar:

        def on_step(step: int, total: int, loss: float, edit: Edit) -> None:
            bar.total = total
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update(step - bar.n)

        on_step.preparing = lambda what, done, total: bar.set_postfix_str(f"{what}: {done}/{total}")
        try:
            if method.name == "few_shot":
                return few_shot(model, args.concepts, images, method.settings, on_step)
            learn = key_step if method.name == "key_step" else domain_correction
            return learn(model, args.concepts, method.settings, on_step, resume)
        except Diverged as error:
            resume.close()
            if not error.history:
                raise Failure(
                    f"{error} Nothing was learnt, so nothing is kept. If it is so at every try, "
                    "what the network predicts is not finite: leave out --half."
                ) from error
            aside = args.output.with_name(f"{args.output.stem}_unfinished.safetensors")
            save(error.erasure, aside, torch.float16)
            raise Failure(
                f"{error} What was reached after step {len(error.history)} is kept in {aside}."
            ) from error


def resume_file(args: argparse.Namespace, method: Method, model) -> Path:
    """Where a long run keeps its state: one file for each set of inputs."""
    inputs = {
        "method": method.name,
        "settings": asdict(method.settings),
        "concepts": args.concepts,
        "size": model.size,
        "clip_skip": model.clip_skip,
        "dtype": str(model.network.dtype),
        "base": model.fingerprints(model.weights),
    }
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:8]
    return args.output.with_name(f"{args.output.stem}_{key}.resume")
