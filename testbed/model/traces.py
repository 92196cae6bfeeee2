"""Keeps the motion words readable in the UNet's features, where motion modules look for them."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F

from .vocabulary import MOTIONS

SHARP = 10.0  # makes the classifiers learn as much faster than the UNet


class MotionTraces(torch.nn.Module):
    """Linear classifiers that name a caption's motion from the UNet's features, in training only.

    A drawing of a fox that spins is a drawing of a fox: its noise prediction does not need the
    motion word, and a UNet that is trained on that alone forgets the word on the way. In a film it
    is otherwise: who runs looks different in every frame. A motion module reads no text, so what
    the features lost it cannot read.

    Each classifier reads the mean over the picture of what one motion module will read.
    """

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.here = threading.local()  # each worker has a pass of its own
        layers = [
            last
            for block in (*unet.input_blocks, *unet.output_blocks)
            if (last := last_layer(block)) is not None
        ]
        for layer in layers:
            layer.register_forward_hook(self._keep)
        self.heads = torch.nn.ModuleList(
            torch.nn.Linear(width_of(layer), len(MOTIONS) + 1) for layer in layers
        )

    def _keep(self, layer: torch.nn.Module, args: tuple, features: torch.Tensor) -> None:
        self.here.means.append(features.float().mean((2, 3)))

    def start(self) -> None:
        """Forget the last pass: another begins."""
        self.here.means = []

    def loss(self, motions: list[str | None], asked: torch.Tensor) -> torch.Tensor:
        """The cross-entropy of the last pass, mean over the pictures asked for and the classifiers.

        motions: each picture's motion, None where its caption names none. asked: bool, (N,).
        """
        numbers = [MOTIONS.index(motion) if motion else len(MOTIONS) for motion in motions]
        wanted = torch.tensor(numbers, device=asked.device)[asked]
        losses = []
        for head, mean in zip(self.heads, self.here.means, strict=True):
            told = SHARP * head(F.layer_norm(mean[asked], mean.shape[1:]))
            losses.append(F.cross_entropy(told, wanted, reduction="sum"))
        return torch.stack(losses).mean() / max(1, len(wanted))


def last_layer(block: torch.nn.Module) -> torch.nn.Module | None:
    """The layer of a UNet's block after which a motion module stands: its spatial transformer, or
    else its residual block; None where it has neither."""
    for kind in ("SpatialTransformer", "ResBlock"):
        for layer in block:
            if type(layer).__name__ == kind:
                return layer
    return None


def width_of(layer: torch.nn.Module) -> int:
    """The channels of what a spatial transformer or a residual block puts out."""
    return layer.in_channels if hasattr(layer, "in_channels") else layer.out_channels
