"""The judge: a separate image classifier, used only to measure, never to erase.

Three heads say which object, style and named character a picture shows. Each has one more answer,
"none of them", for blurred pictures and unknown things.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import testbed

from .vocabulary import CHARACTERS, OBJECTS, STYLES

WEIGHTS = testbed.FOLDER / "weights" / "judge.safetensors"
SIZE = 96  # pixels a side of the network's input
HEADS = {"object": OBJECTS, "style": STYLES, "character": CHARACTERS}


class Block(nn.Module):
    """A residual pair of 3x3 convolutions, the first with `stride`."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.skip = nn.Conv2d(width_in, width, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.skip(x))


class JudgeNetwork(nn.Module):
    """From pictures (N, 3, 96, 96) in 0..1 to the logits of each head."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, width, 5, 2, 2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            Block(width, width, 1),
            Block(width, 2 * width, 2),
            Block(2 * width, 4 * width, 2),
            Block(4 * width, 6 * width, 2),
        )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(12 * width, len(words) + 1) for name, words in HEADS.items()}
        )

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 12 * width): the trunk's mean and maximum over the picture."""
        maps = self.trunk(x * 2 - 1)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.features(x)
        return {name: head(features) for name, head in self.heads.items()}


class Judge:
    """Says what pictures show. Raises FileNotFoundError if its weights are missing."""

    def __init__(self, weights: Path = WEIGHTS) -> None:
        if not weights.is_file():
            raise FileNotFoundError(
                f"The judge's weights are not at {weights}: fetch the repository whole."
            )
        self.network = JudgeNetwork()
        self.network.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
        self.network.eval().requires_grad_(False)

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float().cpu().movedim(-1, 1)[:, :3]
        return F.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features of length one, for a perceptual distance, of images (N, H, W, 3) in 0..1."""
        return F.normalize(self.network.features(self._prepare(images)), dim=-1)

    def __call__(self, images: torch.Tensor) -> list[dict[str, str | None]]:
        """{"object", "style", "character"}, each a word or None, for each image.

        images: (N, H, W, 3) in 0..1.
        """
        answers = {
            name: logits.argmax(1) for name, logits in self.network(self._prepare(images)).items()
        }
        return [
            {name: [*words, None][int(answers[name][i])] for name, words in HEADS.items()}
            for i in range(len(images))
        ]


def labels(name: str | None, style: str | None) -> dict[str, int]:
    """The index of the right answer of each head for a drawing; the last index means none."""
    wanted = {"object": name, "style": style, "character": name}
    return {
        head: words.index(wanted[head]) if wanted[head] in words else len(words)
        for head, words in HEADS.items()
    }


def augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures (N, 3, H, W), turned, scaled, shifted, tinted, blurred and with noise, at SIZE."""
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    angle, scale = uniform(-0.3, 0.3), uniform(0.85, 1.45)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack(
        [
            torch.stack([cos, -sin, uniform(-0.15, 0.15)], 1),
            torch.stack([sin, cos, uniform(-0.15, 0.15)], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n, 3, SIZE, SIZE], align_corners=False)
    # White outside: sampled as the negative, whose zero padding is white.
    x = 1 - F.grid_sample(1 - images, grid, mode="bilinear", align_corners=False)
    x = x * uniform(0.85, 1.1, 1, 1, 1) + uniform(-0.05, 0.05, 3, 1, 1)
    # Blurred by scaling down and up, since generated pictures are soft.
    small = int(torch.randint(SIZE // 3, SIZE + 1, (1,), generator=generator))
    soft = F.interpolate(
        F.interpolate(x, (small, small), mode="area"), (SIZE, SIZE), mode="bilinear"
    )
    x = torch.where(uniform(0, 1, 1, 1, 1) < 0.6, soft, x)
    x = x + uniform(0, 0.06, 1, 1, 1) * torch.randn(x.shape, generator=generator)
    return x.clamp(0, 1)


def to_images(array: np.ndarray) -> torch.Tensor:
    """From uint8 (N, H, W, 3) to float (N, 3, H, W) in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2).float() / 255
