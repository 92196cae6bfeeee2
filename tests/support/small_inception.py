"""Inception v3 with random weights, in the layouts of the files that users download."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torchvision.models import inception_v3


def weights(is_fid: bool) -> dict[str, torch.Tensor]:
    """The weights. torchvision's file has a second classifier; the FID's has 1008 classes and no
    counts of batches."""
    classes = {"num_classes": 1008, "aux_logits": False} if is_fid else {"aux_logits": True}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = inception_v3(weights=None, init_weights=False, **classes)
        for name, tensor in network.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif name.endswith(("running_var", "bn.weight")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("conv.weight"):
                torch.nn.init.kaiming_normal_(tensor)
    found = network.state_dict()
    if is_fid:
        found = {k: t for k, t in found.items() if not k.endswith("num_batches_tracked")}
    return dict(found)


def write(file: Path, is_fid: bool = True) -> Path:
    if file.suffix == ".safetensors":
        save_file(weights(is_fid), file)
    else:
        torch.save(weights(is_fid), file)
    return file
