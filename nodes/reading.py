"""How far a text encoder is read: which of its layers what the network is given depends on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable

import torch
from torch.utils._pytree import tree_map_only

from ..unlearn.select import stacks


def unread_layers(
    root: torch.nn.Module, given: Callable[[], Iterable[torch.Tensor]]
) -> dict[str, int]:
    """How many of the last layers of each stack under `root` change nothing in what is given.

    given: runs the encoder on a prompt and returns what the network would get of it. It is asked
    rather than looked up in each encoder's options: whether clip skip holds, which layers are
    tapped, and whether a pooled vector goes on to the network is settled in as many places of the
    host as it has encoders. A layer is read if, its output made NaN, a NaN arrives. A layer feeds
    the next, so below one that is read all are.
    """
    with torch.no_grad():
        return {
            path: len(stack)
            - bisect_left(range(len(stack)), True, key=lambda i: not _is_read(stack[i], given))
            for path, stack in stacks(root)
        }


def _is_read(layer: torch.nn.Module, given: Callable[[], Iterable[torch.Tensor]]) -> bool:
    hook = layer.register_forward_hook(lambda module, inputs, output: spoilt(output))
    try:
        return is_spoilt(given())
    finally:
        hook.remove()


def spoilt(values):
    """The same with every number NaN."""

    def nan(tensor: torch.Tensor) -> torch.Tensor:
        return torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else tensor

    return tree_map_only(torch.Tensor, nan, values)


def is_spoilt(tensors: Iterable[torch.Tensor]) -> bool:
    return any(tensor.isnan().any() for tensor in tensors)


# What networks call the width of the conditioning that they read.
WIDTHS = ("context_dim", "context_in_dim", "text_dim", "cap_feat_dim", "text_embed_dim")


def check_read(network: torch.nn.Module, clip) -> None:
    """Raises ValueError with one sentence where a text encoder is not of the kind that the network
    reads, or where the methods cannot follow what it reads."""
    if network.latent_format.latent_dimensions == 1:
        raise ValueError(
            "This MODEL makes sound: there are no pictures to unlearn with. Connect a MODEL that "
            "makes pictures or video."
        )
    config = network.model_config.unet_config
    wanted = next((config[name] for name in WIDTHS if config.get(name)), None)
    output = clip.encode_from_tokens(clip.tokenize(""), return_pooled=True, return_dict=True)
    found = output["cond"].shape[-1]
    if wanted is not None and found != wanted:
        raise ValueError(
            f"This text encoder gives {found} numbers a token and the model reads {wanted}: "
            "they do not belong together. Connect the MODEL and the CLIP of one checkpoint."
        )
    more = [
        name
        for name, value in output.items()
        if isinstance(value, torch.Tensor)
        and name not in ("cond", "pooled_output", "attention_mask")
    ]
    if more:
        raise ValueError(
            f"This model's text encoders hand on more than one vector a token and one a prompt "
            f"({', '.join(more)}), as HiDream's and Anima's do; what a method could not hold in "
            "place it would break, so it is not tried. Unlearn in a model without that."
        )
