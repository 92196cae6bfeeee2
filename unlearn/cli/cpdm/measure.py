"""Measure how far a model's pictures are from a set of works: CPDM's metric."""

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
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the set's folder")
    parser.add_argument(
        "--clip",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="CLIP's image encoder in the format of transformers: openai/clip-vit-large-patch14",
    )
    parser.add_argument(
        "--inception",
        type=Path,
        required=True,
        metavar="FILE",
        help="Inception v3's weights of pytorch-fid or torchvision, as .pth or .safetensors",
    )
    parser.add_argument(
        "--anchors", default="anchors", metavar="NAME", help="the set's folder of works"
    )
    parser.add_argument(
        "--generated", default="generated", metavar="NAME", help="its folder of generated pictures"
    )
    parser.add_argument(
        "--after", metavar="NAME", help="its folder of pictures generated after an erasure"
    )
    result = parser.add_argument_group("the result")
    result.add_argument(
        "--picture", type=Path, metavar="PNG", help="write the first pairs as a sheet"
    )
    result.add_argument("--json", action="store_true", help="print only JSON, with all figures")
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

    def pairs_of(side: int, bar: Bar) -> Iterator[Pair]:
        total = sum(len(work.generated) for work in works[side])
        for number, pair in enumerate(pairs(works[side])):
            bar.stage(f"comparing {sides[side]}", number, total)
            shown[side] += [pair] if number < SHOWN else []
            yield pair

    with Bar() as bar:
        before, *after = [list(metric.measure(pairs_of(i, bar))) for i in range(len(sides))]
    names = [file.stem for work in works[0] for file in work.generated]
    report = Report(names, before, after[0] if after else (), metric.width, inception.is_fid)
    if args.json:
        print(json.dumps(report.record(), indent=1), flush=True)
    else:
        print("\n".join([report.table(), "", *report.sentences()]), flush=True)
        if without := sum(not work.generated for work in works[0]):
            print(
                f"{without} of the {len(works[0])} works have no generated pictures and are left "
                "out."
            )
    # Last, so that a full disk does not cost the figures.
    if args.picture is not None:
        write_png(args.picture, cpdm_sheet(report, *shown))


def pairs(works: Sequence[Work]) -> Iterator[Pair]:
    """Each generated picture with its work. Files are read one by one, as the pairs are used."""
    for work in works:
        if not work.generated:
            continue
        original = read(work.anchor)
        for file in work.generated:
            yield Pair(work.name, file.stem, original, read(file))


def read(file: Path) -> torch.Tensor:
    """A picture, (H, W, 3) in 0..1, in its own size."""
    (picture,) = read_pictures([file])
    return batch([picture], picture.size[::-1])[0]


def networks(args: argparse.Namespace) -> tuple[Embed, Inception]:
    """CLIP's image encoder and Inception. Raises Failure or ValueError where one cannot be
    loaded."""
    try:
        import torchvision  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise Failure(
            f'{error.name} is not installed; run pip install ".[diffusers]" in the folder of this '
            "program."
        ) from None
    from ...evaluate.cpdm.inception import load_inception
    from ..models import device_of

    device = device_of(args.device)
    return load_clip(args.clip, device), load_inception(args.inception).to(device)


def load_clip(folder: Path, device: torch.device) -> Embed:
    """CLIP's image encoder from a folder. Raises Failure or ModelError where there is none."""
    from ...diffusers_backend.load import silence_libraries
    from ...diffusers_backend.model_folder import check_part

    if not (folder / "config.json").is_file():
        raise Failure(
            f"{folder} has no config.json; name a folder of CLIP's image encoder in the format of "
            "transformers, such as openai/clip-vit-large-patch14."
        )
    check_part(folder)
    silence_libraries()
    try:
        check_clip_files(folder)
        model = clip_of(folder)
        embed = ClipEncoder(model)
        # A trial: a wrong configuration may fail only at the first picture.
        embed(torch.full((1, 8, 8, 3), 0.5))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001
        # transformers has a dozen errors for files that are damaged or of another model.
        raise Failure(
            f"{folder} is not CLIP's image encoder, or is incomplete; name a folder such as "
            "openai/clip-vit-large-patch14."
        ) from None
    model.to(device)
    return embed


def clip_of(folder: Path) -> torch.nn.Module:
    """The image encoder in a folder. Raises ValueError where weights are missing, and what
    transformers raises."""
    from transformers import CLIPVisionModelWithProjection

    model, found = CLIPVisionModelWithProjection.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    if found["missing_keys"] or found["mismatched_keys"]:
        raise ValueError("weights are missing")
    return model.eval().requires_grad_(False)


class ClipEncoder:
    """CLIP's image encoder with its preprocessing, as `Metric` takes it."""

    def __init__(self, model: torch.nn.Module) -> None:
        from transformers import CLIPImageProcessor

        self.model, side = model, model.config.image_size
        self.processor = CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Projected embeddings, (N, D), of images (N, H, W, 3) in 0..1."""
        eight_bit = (images * 255).round().to(torch.uint8).movedim(-1, 1)
        # The format is named, since in a picture 3 pixels wide the channels cannot be guessed.
        pixels = self.processor(
            list(eight_bit.cpu().numpy()), return_tensors="pt", input_data_format="channels_first"
        ).pixel_values
        return self.model(pixel_values=pixels.to(self.model.device)).image_embeds


def check_clip_files(folder: Path) -> None:
    """Raises ValueError, KeyError or TypeError where the configuration describes a larger network
    than the files hold. transformers would allocate it and fill it with random numbers."""
    config = json.loads(read_text(folder / "config.json"))
    # A whole CLIP's configuration has the image encoder's under "vision_config".
    part = {**CLIP_DEFAULTS, **(config.get("vision_config") or config)}
    width, inner, layers, side, patch = (part[name] for name in CLIP_DEFAULTS)
    if not all(type(size) is int and size > 0 for size in (width, inner, layers, side, patch)):
        raise ValueError("a size is not a positive integer")
    numbers = layers * (4 * width * width + 2 * width * inner) + (side // patch) ** 2 * width
    files = [*folder.glob("*.bin"), *folder.glob("*.safetensors")]
    if numbers > sum(file.stat().st_size for file in files):
        raise ValueError("the files are too small for this configuration")


CLIP_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "image_size": 224,
    "patch_size": 32,
}
"""The defaults of transformers for missing settings."""
