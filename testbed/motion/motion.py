"""IconCanvas's motion module, which turns eight pictures of the UNet into a clip.

Layout and names are AnimateDiff's (Guo et al., arXiv 2307.04725, versions 1 and 3, which have no
module in the middle). After each residual block, or after its spatial transformer if it has one,
comes a transformer along time, which works at each place of the picture separately.
AnimateDiff-Evolved and diffusers fix everything but the widths (eight heads, groups of 32, two
attentions, a feed-forward layer four times as wide), so all of this is the same here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import testbed
from unlearn.files.writing import whole_file

from ..model.vocabulary import FRAMES

WEIGHTS = testbed.FOLDER / "weights" / "motion.safetensors"
WIDTHS = (64, 128, 128, 64)  # of the UNet's levels
HEADS, GROUPS = 8, 32
# The number of frame codes in the file. AnimateDiff-Evolved tells version 3 from version 1 by it.
# For version 1 it would normalise the UNet's features over all frames of a clip together.
POSITIONS = 32
ADAPTER_CONFIG = {
    "block_out_channels": WIDTHS,
    "motion_layers_per_block": 2,
    "motion_num_attention_heads": HEADS,
    "motion_norm_num_groups": GROUPS,
    "motion_max_seq_length": POSITIONS,
    "use_motion_mid_block": False,
}
Normalised = Literal["frame", "clip", "both"]


def frame_codes(width: int, count: int = FRAMES) -> torch.Tensor:
    """Sine and cosine codes of the frame numbers, (1, count, width)."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angle = torch.arange(count)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[None]


class FramePositions(nn.Module):
    """Adds the code of its number to a frame's features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("pe", frame_codes(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.pe[:, : x.shape[1]].to(x.dtype)


class TemporalAttention(nn.Module):
    """Self-attention among the frames, at one place of the picture: (places, frames, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pos_encoder = FramePositions(width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pos_encoder(x)
        q, k, v = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return self.to_out((scores.softmax(-1, dtype=v.dtype) @ v).transpose(1, 2).flatten(2))


class GatedProjection(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, gate = self.proj(x).chunk(2, -1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GatedProjection(width, 4 * width), nn.Dropout(0.0), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class TemporalBlock(nn.Module):
    """Two attentions and a feed-forward layer, each with a norm before it and a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(TemporalAttention(width) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.ff, self.ff_norm = FeedForward(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for attention, norm in zip(self.attention_blocks, self.norms):
            x = x + attention(norm(x))
        return x + self.ff(self.ff_norm(x))


class TemporalTransformer(nn.Module):
    """Attention along time at each place of the picture, added to the features.

    features: (clips * FRAMES, width, H, W), the frames of a clip in a row. At first nothing is
    added, since proj_out starts at zero. AnimateDiff and AnimateDiff-Evolved normalise each frame
    by itself, diffusers all frames of a clip together. `normalised` says which: "frame", "clip", or
    "both" (in training), which does it half and half, so that the weights fit either.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(width)])
        self.proj_out = nn.Linear(width, width)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        self.normalised: Normalised = "frame"

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        clips, (height, width) = len(features) // FRAMES, features.shape[2:]
        alone = {"frame": clips, "clip": 0, "both": (clips + 1) // 2}[self.normalised]
        x = features.flatten(2).unflatten(0, (clips, FRAMES))  # clips, frames, width, places
        parts = []
        if alone:
            parts.append(self.norm(x[:alone].flatten(0, 1)).unflatten(0, (alone, FRAMES)))
        if alone < clips:
            parts.append(self.norm(x[alone:].transpose(1, 2)).transpose(1, 2))
        x = torch.cat(parts).permute(0, 3, 1, 2).flatten(0, 1)  # clips * places, frames, width
        x = self.proj_in(x)
        for block in self.transformer_blocks:
            x = block(x)
        x = self.proj_out(x).unflatten(0, (clips, -1)).permute(0, 2, 3, 1)
        return features + x.unflatten(-1, (height, width)).flatten(0, 1)


class MotionModule(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer(width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.temporal_transformer(features)


class Level(nn.Module):
    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.motion_modules = nn.ModuleList(MotionModule(width) for _ in range(count))


class Motion(nn.Module):
    """All modules for a UNet with two blocks in each level: two in each level on the way down and
    three on the way up, twenty in all."""

    def __init__(self) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList(Level(width, 2) for width in WIDTHS)
        self.up_blocks = nn.ModuleList(Level(width, 3) for width in reversed(WIDTHS))

    def normalise(self, by: Normalised) -> Motion:
        for module in self.modules():
            if isinstance(module, TemporalTransformer):
                module.normalised = by
        return self


@contextmanager
def inserted(unet: nn.Module, motion: Motion) -> Iterator[nn.Module]:
    """Put the motion modules into the host's UNet, and take them out afterwards.

    Inside, every batch must consist of whole clips, each FRAMES pictures in a row. Raises
    ValueError if the UNet does not have as many residual blocks as there are modules.
    """
    places = []
    for blocks, levels in (
        (unet.input_blocks, motion.down_blocks),
        (unet.output_blocks, motion.up_blocks),
    ):
        modules = [module for level in levels for module in level.motion_modules]
        found = [(block, _place(block)) for block in blocks if _place(block)]
        if len(found) != len(modules):
            raise ValueError(
                f"The UNet has {len(found)} residual blocks on the way down or up, but the motion "
                f"module is made for {len(modules)}: they do not belong together."
            )
        places += [(block, place, module) for (block, place), module in zip(found, modules)]
    try:
        for block, place, module in places:
            block.insert(place, module)
        yield unet
    finally:
        for block, place, module in places:
            if place < len(block) and block[place] is module:
                del block[place]


def _place(block: nn.Sequential) -> int:
    """The index after the spatial transformer, or else after the residual block; 0 for neither."""
    kinds = [type(layer).__name__ for layer in block]
    for kind in ("SpatialTransformer", "ResBlock"):
        if kind in kinds:
            return kinds.index(kind) + 1
    return 0


def save(motion: Motion, file: Path = WEIGHTS) -> None:
    """Write the weights under AnimateDiff's names.

    Matrices are stored in eight bits, half the size of float16. Both loaders convert them back.
    """
    tensors = {
        key: value.detach().to(_kept(key, value)).contiguous()
        for key, value in _with_positions(motion).items()
    }
    about = {"format": "pt", "model": "IconCanvas motion", "license": "Apache-2.0"}
    with whole_file(file) as new:
        save_file(tensors, new, about)


def _with_positions(motion: Motion) -> dict[str, torch.Tensor]:
    """The state dict with POSITIONS frame codes instead of the FRAMES that the module uses."""
    return {
        key: frame_codes(value.shape[-1], POSITIONS) if key.endswith(".pe") else value
        for key, value in motion.state_dict().items()
    }


def _kept(key: str, value: torch.Tensor) -> torch.dtype:
    """The precision in the file: float32 for frame codes, eight bits for matrices, else float16.

    The last matrix of a module is in float16 too: it starts at zero and stays small, and there
    eight bits are too coarse.
    """
    if ".pos_encoder." in key:
        return torch.float32
    return torch.float8_e4m3fn if value.ndim == 2 and ".proj_out." not in key else torch.float16


def load(file: Path = WEIGHTS) -> Motion:
    """The motion module in the file. Raises FileNotFoundError if there is no such file."""
    if not file.is_file():
        raise FileNotFoundError(f"No motion module at {file}: fetch the repository whole.")
    motion = Motion()
    motion.load_state_dict(
        {
            key: value.float()[:, :FRAMES] if key.endswith(".pe") else value.float()
            for key, value in load_file(file).items()
        }
    )
    return motion.eval().requires_grad_(False)


def adapter(motion: Motion):
    """The same weights as a diffusers MotionAdapter, under its names."""
    from diffusers import MotionAdapter

    names = {
        ".temporal_transformer.": ".",
        ".attention_blocks.0.pos_encoder.": ".pos_embed.",  # one for both attentions
        ".attention_blocks.0.": ".attn1.",
        ".attention_blocks.1.": ".attn2.",
        ".norms.0.": ".norm1.",
        ".norms.1.": ".norm2.",
        ".ff_norm.": ".norm3.",
    }
    state = {}
    for key, value in _with_positions(motion).items():
        if ".attention_blocks.1.pos_encoder." not in key:
            for ours, theirs in names.items():
                key = key.replace(ours, theirs)
            state[key] = value
    module = MotionAdapter(**ADAPTER_CONFIG)
    module.load_state_dict(state)
    return module.eval()
