"""apply: write a whole model with erasures in its weights."""

from __future__ import annotations

import argparse
import sys

import torch

from ..core.erasure import check_changes
from . import options
from .output import check_apart, check_finite, check_output, check_space, new_folder

HELP = "write a whole model, as a diffusers folder, with erasures in its weights"
EXAMPLES = """
examples:
  python -m unlearn apply sd15/ van_gogh.safetensors -o sd15_without_van_gogh/
      then, in Python: DiffusionPipeline.from_pretrained("sd15_without_van_gogh")
  python -m unlearn apply sd15/ cat.safetensors dog.safetensors --strength 1 0.5 -o both/
      two erasures, the second at half strength
"""


def add(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    options.add_erasures(parser)
    options.add_output(parser, "the folder to write")
    options.add_precision(parser, "float32")


def run(args: argparse.Namespace) -> None:
    from ..diffusers_backend.apply import applied, base_warning, check_fit
    from ..diffusers_backend.lora import PARTS
    from ..diffusers_backend.save import with_usual_names
    from .models import load_erasures, load_model

    check_output(args.output, args.force, is_folder=True)
    check_apart(args.output, [args.model, args.config, *args.erasures])
    erasure = load_erasures(args.erasures, args.strength)
    check_changes(erasure, "The given erasure")
    model = load_model(args.model, args.config, whole=True)
    check_fit(model, erasure)
    precision = getattr(torch, args.precision)
    parts = [part for part in model.pipeline.components.values() if hasattr(part, "parameters")]
    count = sum(weight.numel() for part in parts for weight in part.parameters())
    check_space(args.output, count * precision.itemsize)
    warning = base_warning(model, erasure)
    with applied(model, erasure), new_folder(args.output, erasure.record) as folder:
        check_finite((model.weights[key] for key in erasure.deltas), precision)
        model.pipeline.to(dtype=precision).save_pretrained(folder)
        for name in model.encoders:
            with_usual_names(folder / PARTS[name])
    if warning:
        print(warning, file=sys.stderr)
    print(f"{args.output}: {', '.join(erasure.concepts)} erased at strength {_text(args)}.")


def _text(args: argparse.Namespace) -> str:
    return ", ".join(f"{strength:g}" for strength in args.strength)
