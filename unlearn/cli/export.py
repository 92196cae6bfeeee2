"""export: write an erasure for other programs, as text encoders or as a LoRA."""

from __future__ import annotations

import argparse
import sys

import torch

from ..core.erasure import NETWORK, Erasure, check_changes
from ..files.writing import whole_file
from . import options
from .output import (
    Failure,
    check_apart,
    check_finite,
    check_output,
    check_space,
    new_folder,
    write_errors,
)

HELP = "write erased text encoders, or a LoRA, for diffusers and peft"
EXAMPLES = """
examples:
  python -m unlearn export sd15/ cat.safetensors --as text-encoder -o encoder/
      CLIPTextModel.from_pretrained("encoder", subfolder="text_encoder")
  python -m unlearn export sd15/ cat.safetensors --as lora -o cat_lora.safetensors
      pipeline.load_lora_weights("cat_lora.safetensors")
  python -m unlearn export sd15/ cat.safetensors --as peft -o adapters/
      PeftModel.from_pretrained(pipeline.text_encoder, "adapters/text_encoder")

A LoRA of an erasure that was trained with --rank is exact. A full erasure is approximated by its
largest singular values: as many as --rank says, or as many as hold 99.99 % of the squared norm. If
the erasure changes biases, as those of key_step do, diffusers can load the LoRA but not fuse it
into the weights; use apply for that. ComfyUI needs no export: its Load LoRA node reads the erasure
file itself.
"""


def add(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    options.add_erasures(parser)
    parser.add_argument(
        "--as",
        dest="form",
        choices=("text-encoder", "lora", "peft"),
        default="text-encoder",
        help="text-encoder: a folder with text_encoder (and text_encoder_2); lora: one file for "
        "diffusers; peft: a folder of adapters (default: text-encoder)",
    )
    parser.add_argument(
        "--rank",
        type=options.whole(1),
        default=0,
        metavar="N",
        help="rank of a LoRA of a full erasure (default: what 99.99 %% of the change needs)",
    )
    options.add_output(parser, "the file (lora) or folder (text-encoder, peft) to write")
    options.add_precision(parser, "float32")


def run(args: argparse.Namespace) -> None:
    from ..diffusers_backend.apply import base_warning, check_fit
    from .models import load_erasures, load_model

    if args.form == "lora" and args.output.suffix != ".safetensors":
        raise Failure(
            f"{args.output} is not a file name that ends in .safetensors; name such an --output."
        )
    check_output(args.output, args.force, is_folder=args.form != "lora")
    check_apart(args.output, [args.model, args.config, *args.erasures])
    erasure = load_erasures(args.erasures, args.strength)
    if args.form == "text-encoder":
        _check_encoder_only(erasure)
    check_changes(erasure, "The given erasure")
    model = load_model(args.model, args.config)
    check_fit(model, erasure)
    warning = base_warning(model, erasure)
    if args.form == "text-encoder":
        _text_encoders(args, model, erasure)
    else:
        _lora(args, model, erasure)
    if warning:
        print(warning, file=sys.stderr)


def _check_encoder_only(erasure: Erasure) -> None:
    network = sum(key.startswith(NETWORK) for key in erasure.deltas)
    if network:
        raise Failure(
            f"{network} of {len(erasure.deltas)} changed weights are the denoiser's, which a text "
            "encoder does not hold; export it with --as lora, or use apply."
        )


def _text_encoders(args: argparse.Namespace, model, erasure: Erasure) -> None:
    from ..diffusers_backend.apply import applied
    from ..diffusers_backend.lora import PARTS
    from ..diffusers_backend.save import with_usual_names

    precision = getattr(torch, args.precision)
    count = sum(w.numel() for encoder, _ in model.encoders.values() for w in encoder.parameters())
    check_space(args.output, count * precision.itemsize)
    with applied(model, erasure), new_folder(args.output, erasure.record) as folder:
        check_finite((model.weights[key] for key in erasure.deltas), precision)
        for name, (encoder, _) in model.encoders.items():
            encoder.to(precision).save_pretrained(folder / PARTS[name], max_shard_size="20GB")
            with_usual_names(folder / PARTS[name])
    names = " and ".join(PARTS[name] for name in model.encoders)
    print(f"{args.output}: {names}, {', '.join(erasure.concepts)} erased.")


def _lora(args: argparse.Namespace, model, erasure: Erasure) -> None:
    from ..diffusers_backend.lora import loras, save_lora, save_peft

    precision = getattr(torch, args.precision)
    parts = [lora.to(precision) for lora in loras(model, erasure, args.rank)]
    check_finite((t for lora in parts for t in lora.tensors("").values()), precision)
    check_space(args.output, sum(lora.nbytes for lora in parts))
    if args.form == "lora":
        with write_errors(args.output), whole_file(args.output) as file:
            save_lora(parts, file, erasure.record)
    else:
        with new_folder(args.output, erasure.record) as folder:
            save_peft(parts, folder)
    for lora in parts:
        ranks = sorted({len(down) for down, _, _ in lora.layers.values()})
        print(
            f"{args.output}: {lora.part}, {len(lora.layers)} layers of rank "
            f"{ranks[0] if len(ranks) == 1 else f'{ranks[0]} to {ranks[-1]}'}, which keep "
            f"{lora.kept:.2%} of the change."
        )
