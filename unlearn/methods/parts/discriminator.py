"""DoCo's discriminator and its losses: Wu et al., arXiv 2405.15304, section 3.2."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class Discriminator(torch.nn.Sequential):
    """PatchGAN (Isola et al., arXiv 1611.07004) on latents: a score for each patch.

    Four halvings as in the paper for latents of 32 and more; fewer where they are smaller, so that
    a patch remains. A video's frames count as pictures. padding: of the last convolution, 1 in the
    released code; 2 where its input would be smaller than it looks at.
    """

    WIDTHS = (64, 128, 256, 512)

    def __init__(self, channels: int, side: int, padding: int = 2) -> None:
        layers: list[torch.nn.Module] = []
        for i, width in enumerate(self.WIDTHS):
            if i and side < 4:
                break
            layers.append(torch.nn.Conv2d(channels, width, 4, stride=2, padding=1))
            if i:
                layers.append(torch.nn.BatchNorm2d(width))
            layers.append(torch.nn.LeakyReLU(0.2))
            channels, side = width, side // 2
        padding = padding if side + 2 * padding >= 4 else 2
        super().__init__(*layers, torch.nn.Conv2d(channels, 1, 4, padding=padding))

    def forward(self, x0: torch.Tensor) -> torch.Tensor:
        if x0.ndim == 5:
            x0 = x0.transpose(1, 2).flatten(0, 1)
        return super().forward(x0)


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Scores of the anchor's predictions are to be high, of the concept's low."""
    return (bce_against(real, 1.0) + bce_against(fake, 0.0)) / 2


def generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """The concept's predictions are to be taken for the anchor's."""
    return bce_against(fake, 1.0)


def bce_against(score: torch.Tensor, truth: float) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(score, torch.full_like(score, truth))
