"""What a norm does: it makes vectors of one size, and multiplies each channel by its gain.

In some encoders the feed-forward part's output passes a norm before it is added to the hidden
states (Gemma), or with them (Jina CLIP). Then only the direction of what goes into the norm counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Channels of a gain far below the others' count less: what the norm gives there can hardly change.
LEAST_GAIN = 0.03


@dataclass(frozen=True)
class NormGain:
    """out = gain * unit(x) + bias, where unit(x) has a mean square of 1."""

    gain: torch.Tensor
    """(width,), float32; for Gemma, which stores its gain less one, with that one."""
    centred: bool
    """Whether the mean is taken off first, as a LayerNorm does."""

    @staticmethod
    def of(norm: torch.nn.Module, like: torch.Tensor) -> NormGain | None:
        """Of a norm of vectors such as `like`, (..., width), found by running it. None: it is no
        such norm."""
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(64, like.shape[-1], generator=draw) * torch.linspace(0.5, 2.0, 64)[:, None]
        x = x.to(like)
        # In fp16 a norm is as exact as 1e-3; what is no norm is far off.
        wanted, bias = norm.forward(x).float(), norm.forward(torch.zeros_like(x[:1])).float()
        for centred in (False, True):
            found = NormGain(torch.ones_like(bias[0]), centred)
            unit = found.unit(x)
            gain = ((wanted - bias) * unit).sum(0) / unit.square().sum(0)
            if (gain * unit + bias - wanted).norm() < 0.02 * wanted.norm():
                return NormGain(gain, centred)
        return None

    def size(self, x: torch.Tensor) -> torch.Tensor:
        """(..., 1) the root mean square by which the norm divides."""
        return self._centre(x).square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)

    def unit(self, x: torch.Tensor) -> torch.Tensor:
        return self._centre(x) / self.size(x)

    def change(self, x: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """What to add to x, per unit of its size, so that what the norm gives changes by `wanted`
        as far as it can: x keeps its size, since the norm would undo any other."""
        unit, square = self.unit(x), self.gain.square()
        aim = unit + wanted * self.gain / (square + LEAST_GAIN**2 * square.mean())
        return self.unit(aim) - unit

    def _centre(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        return x - x.mean(-1, keepdim=True) if self.centred else x
