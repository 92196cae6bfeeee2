"""Inception v3's features at four depths, with weights from the user's file.

The network is torchvision's. Two weight files are known: torchvision's own, and the FID's
(pytorch-fid's port of the TensorFlow network), whose pooling differs in two places.
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
"""The layers of the features: 64, 192, 768 and 2048 channels; the last is 1 x 1."""
SIDE = 299  # pixels of the network's input
FID_CLASSES, TORCHVISION_CLASSES = 1008, 1000
FILES = (
    "pytorch-fid's pt_inception-2015-12-05-6726825d.pth, which CPDM's figures are of, or "
    "torchvision's inception_v3_google-0cc3c7bd.pth"
)
AVERAGED = (*(f"Mixed_5{i}" for i in "bcd"), *(f"Mixed_6{i}" for i in "bcde"), "Mixed_7b")
LARGEST = "Mixed_7c"


class Inception(nn.Module):
    """Features of pictures (N, H, W, 3) in 0..1: four tensors (N, C, h, w), float32.

    As in CPDM's released code, each picture's mean value is subtracted before 0..1 is mapped to
    -1..1. The FID itself does not do that.
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
            # The hook holds the list and not self: a reference cycle would delay the freeing of
            # the weights until the garbage collector runs.
            block.register_forward_hook(lambda module, inputs, output: found.append(output))
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
    """Change the pooling to that of the FID's network. TensorFlow's average does not count the
    padding, torchvision's does. And the last block takes the maximum instead of the average."""

    def average(module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        (x,) = inputs
        share_inside = F.avg_pool2d(torch.ones_like(x[:1, :1]), 3, stride=1, padding=1)
        return x / share_inside

    for name in AVERAGED:
        getattr(network, name).branch_pool.register_forward_pre_hook(average)
    block: nn.Module = getattr(network, LARGEST)
    block_input: list[torch.Tensor] = []
    block.register_forward_pre_hook(lambda module, inputs: block_input.append(inputs[0]))
    block.branch_pool.register_forward_pre_hook(
        lambda module, inputs: F.max_pool2d(block_input.pop(), 3, stride=1, padding=1)
    )


def load_inception(file: Path) -> Inception:
    """The network with the weights of a .safetensors or .pth file, on the CPU.

    Raises ValueError where the file is missing, unreadable or holds another network.
    """
    if not file.is_file():
        raise ValueError(f"There is no file {file}; get {FILES}, and put it there.")
    try:
        weights = _read(file)
    except (SafetensorError, OSError, ValueError):
        raise ValueError(
            f"{file.name} is cut short or cannot be read safely; download {FILES} again."
        ) from None
    classes = weights["fc.weight"].shape[:1] if _has_end(weights) else ()
    if classes not in ((FID_CLASSES,), (TORCHVISION_CLASSES,)):
        raise ValueError(f"{file.name} holds the weights of another network; use {FILES}.")
    # The auxiliary classifier and the norms' batch counters are not used.
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
            f"{file.name} is not a whole Inception v3: {min(wrong)} does not fit; download "
            f"{FILES} again."
        )
    inception = Inception(classes == (FID_CLASSES,))
    counts = {n: t for n, t in inception.network.state_dict().items() if n.endswith(COUNTED)}
    inception.network.load_state_dict({**counts, **read})
    return inception


COUNTED = "num_batches_tracked"
LARGEST_FILE = 2**28  # bytes; the network has 27 million weights of at most eight bytes


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
    """The shapes of the network's weights, by name, without allocating them."""
    with torch.device("meta"):
        network = Inception3(classes, aux_logits=False, init_weights=False)
    weights = network.state_dict().items()
    return {name: weight.shape for name, weight in weights if not name.endswith(COUNTED)}


def _fits(found, shape: torch.Size) -> bool:
    """Whether it is a plain, finite floating-point tensor of this shape."""
    return (
        isinstance(found, torch.Tensor)
        and found.shape == shape
        and found.layout == torch.strided
        and found.device.type == "cpu"
        and found.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and bool(found.isfinite().all())
    )
