"""Inception v3's features at four depths, from a file of weights that the user has.

The network is torchvision's. Two files of weights are known, torchvision's own and that of the FID
(pytorch-fid's port of the TensorFlow network), whose poolings differ in two places.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torchvision.models import Inception3

from ...files import torch_files

BLOCKS = ("maxpool1", "maxpool2", "Mixed_6e", "avgpool")
"""Where the features are taken: 64, 192, 768 and 2048 channels, the last of one place."""
SIDE = 299  # pixels that the network reads
FID_CLASSES, TORCHVISION_CLASSES = 1008, 1000
FILES = (
    "pytorch-fid's pt_inception-2015-12-05-6726825d.pth, which CPDM's figures are of, or "
    "torchvision's inception_v3_google-0cc3c7bd.pth"
)
AVERAGED = (*(f"Mixed_5{i}" for i in "bcd"), *(f"Mixed_6{i}" for i in "bcde"), "Mixed_7b")
LARGEST = "Mixed_7c"


class Inception(nn.Module):
    """Features of pictures (N, H, W, 3) in 0..1: four tensors (N, C, h, w), float32.

    As CPDM's released code has it, the mean of all of a picture's values is taken off before they
    are brought from 0..1 to -1..1; for the FID itself that is not done.
    """

    def __init__(self, is_fid: bool) -> None:
        super().__init__()
        self.is_fid = is_fid
        self.network = Inception3(
            FID_CLASSES if is_fid else TORCHVISION_CLASSES, aux_logits=False, init_weights=False
        )
        self.found: list[torch.Tensor] = []
        found = self.found
        for name in BLOCKS:
            block = getattr(self.network, name)
            # Of the list and not of self: in a cycle the weights would wait for the collector.
            block.register_forward_hook(lambda module, given, made: found.append(made))
        if is_fid:
            pool_as_tensorflow(self.network)
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.network.fc.weight.device

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        x = images[..., :3].movedim(-1, 1).to(self.device, torch.float32)
        x = x - x.mean((1, 2, 3), keepdim=True)
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
        self.found.clear()
        self.network(2 * x - 1)
        return list(self.found)


def pool_as_tensorflow(network: Inception3) -> None:
    """At the edge TensorFlow's average is of the places that are there, torchvision's counts the
    padding as zeros; and in the last block FID's network takes the largest, not the average."""

    def average(module, given: tuple[torch.Tensor]) -> torch.Tensor:
        (x,) = given
        there = F.avg_pool2d(torch.ones_like(x[:1, :1]), 3, stride=1, padding=1)
        return x / there

    for name in AVERAGED:
        getattr(network, name).branch_pool.register_forward_pre_hook(average)
    block, entered = getattr(network, LARGEST), []
    block.register_forward_pre_hook(lambda module, given: entered.append(given[0]))
    block.branch_pool.register_forward_pre_hook(
        lambda module, given: F.max_pool2d(entered.pop(), 3, stride=1, padding=1)
    )


def load_inception(file: Path) -> Inception:
    """The network with the weights of a .safetensors or .pth file, on the CPU.

    Raises ValueError with one sentence where there is no such file or it is of another network.
    """
    if not file.is_file():
        raise ValueError(f"There is no file {file}; get {FILES}, and put it there.")
    try:
        weights = _read(file)
    except (SafetensorError, OSError, ValueError):
        raise ValueError(
            f"{file.name} is cut short or holds no weights that can be read safely; get {FILES} "
            "again."
        ) from None
    classes = weights["fc.weight"].shape[:1] if _has_end(weights) else ()
    if classes not in ((FID_CLASSES,), (TORCHVISION_CLASSES,)):
        raise ValueError(f"{file.name} holds the weights of another network; use {FILES}.")
    # What is trained beside the network, and how many batches a norm has seen, is not read.
    read = {
        name: tensor
        for name, tensor in weights.items()
        if not name.startswith("AuxLogits.") and not name.endswith(COUNTED)
    }
    own = _shapes(*classes)
    wrong = {name for name, shape in own.items() if not _fits(read.get(name), shape)}
    wrong |= read.keys() - own.keys()
    if wrong:
        raise ValueError(
            f"{file.name} is not a whole Inception v3, {min(wrong)} does not fit; get {FILES} "
            "again."
        )
    inception = Inception(classes == (FID_CLASSES,))
    counts = {n: t for n, t in inception.network.state_dict().items() if n.endswith(COUNTED)}
    inception.network.load_state_dict({**counts, **read})
    return inception


COUNTED = "num_batches_tracked"
LARGEST_FILE = 2**28  # bytes; the network has 27 million weights, at most eight bytes each


def _read(file: Path) -> dict:
    """Raises ValueError, OSError or SafetensorError."""
    if file.stat().st_size > LARGEST_FILE:
        raise ValueError
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch_files.read(file)


def _has_end(weights) -> bool:
    return (
        isinstance(weights, dict)
        and all(isinstance(name, str) for name in weights)
        and isinstance(weights.get("fc.weight"), torch.Tensor)
    )


@cache
def _shapes(classes: int) -> dict[str, torch.Size]:
    """Of the network's weights, by name; nothing is made for it."""
    with torch.device("meta"):
        network = Inception3(classes, aux_logits=False, init_weights=False)
    weights = network.state_dict().items()
    return {name: weight.shape for name, weight in weights if not name.endswith(COUNTED)}


def _fits(found, shape: torch.Size) -> bool:
    """A plain tensor of numbers that can be calculated with."""
    return (
        isinstance(found, torch.Tensor)
        and found.shape == shape
        and found.layout == torch.strided
        and found.device.type == "cpu"
        and found.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and bool(found.isfinite().all())
    )
