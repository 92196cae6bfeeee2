"""Measure how far what a model drew is from a set of works: CPDM's metric."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...evaluate.cpdm.metric import Embed, Metric, Pair
from ...evaluate.cpdm.report import Report
from ...evaluate.cpdm.sheet import SHOWN, cpdm_sheet
from .. import options
from ..output import Failure
from ..pictures import batch, check_png, read_pictures, write_png
from ..progress import Bar
from ..texts import read_text
from .dataset import Work, check_same, read_works

if TYPE_CHECKING:
    from ...evaluate.cpdm.inception import Inception

HELP = "measure how far generated pictures are from the works of a set"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the set")
    parser.add_argument(
        "--clip",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="CLIP's image encoder, as transformers has it: openai/clip-vit-large-patch14",
    )
    parser.add_argument(
        "--inception",
        type=Path,
        required=True,
        metavar="FILE",
        help="Inception v3's weights, pytorch-fid's or torchvision's; as .pth or .safetensors",
    )
    parser.add_argument(
        "--anchors", default="anchors", metavar="NAME", help="folder of the works inside the set"
    )
    parser.add_argument(
        "--generated", default="generated", metavar="NAME", help="what was drawn of them"
    )
    parser.add_argument("--after", metavar="NAME", help="the same, drawn after an erasure")
    result = parser.add_argument_group("the result")
    result.add_argument("--picture", type=Path, metavar="PNG", help="write the first pairs")
    result.add_argument("--json", action="store_true", help="all figures, and nothing else")
    parser.add_argument("--device", choices=options.DEVICES, default="auto")


def run(args: argparse.Namespace) -> None:
    sides = [args.generated, *([args.after] if args.after else [])]
    works = [read_works(args.folder / args.anchors, args.folder / side) for side in sides]
    if args.after:
        check_same(*works)
    files = (file for side in works for work in side for file in (work.anchor, *work.generated))
    check_png(args.picture, "--picture", files)

    embed, inception = networks(args)
    metric = Metric(embed, inception)
    shown: list[list[Pair]] = [[] for _ in sides]

    def looked_at(side: int, bar: Bar) -> Iterator[Pair]:
        total = sum(len(work.generated) for work in works[side])
        for number, pair in enumerate(pairs(works[side])):
            bar(f"comparing {sides[side]}", number, total)
            shown[side] += [pair] if number < SHOWN else []
            yield pair

    with Bar() as bar:
        found = [list(metric.measure(looked_at(side, bar))) for side in range(len(sides))]
    names = [file.stem for work in works[0] for file in work.generated]
    report = Report(names, *found, width=metric.width, is_fid=inception.is_fid)
    if args.json:
        print(json.dumps(report.record(), indent=1), flush=True)
    else:
        print("\n".join([report.table(), "", *report.sentences()]), flush=True)
        if without := sum(not work.generated for work in works[0]):
            print(
                f"Of {without} of the {len(works[0])} works nothing was generated; they are left "
                "out."
            )
    # After the figures are told: a disk may be full.
    if args.picture is not None:
        write_png(args.picture, cpdm_sheet(report, *shown))


def pairs(works: Sequence[Work]) -> Iterator[Pair]:
    """Each generated picture with its work, read as they are asked for."""
    for work in works:
        original = read(work.anchor) if work.generated else None
        for file in work.generated:
            yield Pair(work.name, file.stem, original, read(file))


def read(file: Path) -> torch.Tensor:
    """(H, W, 3) in 0..1, in the picture's own size."""
    (picture,) = read_pictures([file])
    return batch([picture], picture.size[::-1])[0]


def networks(args: argparse.Namespace) -> tuple[Embed, Inception]:
    """The two networks that look. Raises Failure or ValueError where one cannot be had."""
    try:
        import torchvision  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise Failure(
            f'{error.name} is not installed; run: pip install ".[diffusers]" in the folder of this '
            "program."
        ) from None
    from ...evaluate.cpdm.inception import load_inception
    from ..models import device_of

    device = device_of(args.device)
    return load_clip(args.clip, device), load_inception(args.inception).to(device)


def load_clip(folder: Path, device: torch.device) -> Embed:
    """CLIP's image encoder of a folder. Raises Failure or ModelError where there is none."""
    from ...diffusers_backend.load import silence_libraries
    from ...diffusers_backend.model_folder import check_part

    if not (folder / "config.json").is_file():
        raise Failure(
            f"{folder} holds no config.json; name a folder of CLIP's image encoder as transformers "
            "has it, such as openai/clip-vit-large-patch14."
        )
    check_part(folder)
    silence_libraries()
    try:
        check_clip_files(folder)
        model = clip_of(folder)
        embed = Eye(model)
        # What its configuration says may fail at the first picture.
        embed(torch.full((1, 8, 8, 3), 0.5))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001
        # Of another make or damaged, which transformers says in a dozen ways.
        raise Failure(
            f"{folder} is not CLIP's image encoder, or not all of it; name a folder such as "
            "openai/clip-vit-large-patch14."
        ) from None
    model.to(device)
    return embed


def clip_of(folder: Path) -> torch.nn.Module:
    """The network of a folder. Raises ValueError where weights are missing, and whatever
    transformers raises."""
    from transformers import CLIPVisionModelWithProjection

    model, found = CLIPVisionModelWithProjection.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    if found["missing_keys"] or found["mismatched_keys"]:
        raise ValueError("it is not whole")
    return model.eval().requires_grad_(False)


class Eye:
    """CLIP's image encoder as the metric takes it."""

    def __init__(self, model: torch.nn.Module) -> None:
        from transformers import CLIPImageProcessor

        self.model, side = model, model.config.image_size
        self.processor = CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        whole = (images * 255).round().to(torch.uint8).movedim(-1, 1)
        # Of pictures a pixel or three wide it could not tell which side is the colours.
        pixels = self.processor(
            list(whole.cpu().numpy()), return_tensors="pt", input_data_format="channels_first"
        ).pixel_values
        return self.model(pixel_values=pixels.to(self.model.device)).image_embeds


def check_clip_files(folder: Path) -> None:
    """Raises ValueError, KeyError or TypeError where a folder asks for a larger network than its
    files hold: what is missing would be made up."""
    config = json.loads(read_text(folder / "config.json"))
    # Of a whole CLIP the image encoder has a part of its own.
    part = {**CLIP_DEFAULTS, **(config.get("vision_config") or config)}
    width, inner, layers, side, patch = (part[name] for name in CLIP_DEFAULTS)
    if not all(type(size) is int and size > 0 for size in (width, inner, layers, side, patch)):
        raise ValueError("sizes that are none")
    numbers = layers * (4 * width * width + 2 * width * inner) + (side // patch) ** 2 * width
    files = [*folder.glob("*.bin"), *folder.glob("*.safetensors")]
    if numbers > sum(file.stat().st_size for file in files):
        raise ValueError("more than is there")


CLIP_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "image_size": 224,
    "patch_size": 32,
}
"""What transformers takes where a configuration is silent."""
