"""The judge: a separate image classifier, used only to measure, never to erase.

Three heads say which object, style and named character a picture shows, and a fourth whether it
shows one thing or two side by side. Each has one more answer, "none of them", for smears and
unknown things.
"""

from collections.abc import Collection
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
KINDS = {"object": OBJECTS, "style": STYLES, "character": CHARACTERS}
COUNTS = ("one", "two")
HEADS = {**KINDS, "count": COUNTS}
# The part of a picture of two things that shows one of them: rows, and columns of the left half.
ROWS, COLUMNS = slice(28, 100), 64


IGNORED = -100  # by torch's cross entropy


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

    def __init__(self, width: int = 32, heads: Collection[str] = tuple(HEADS)) -> None:
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
            {name: nn.Linear(12 * width, len(HEADS[name]) + 1) for name in heads}
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
        state = {k: v.float() for k, v in load_file(weights).items()}
        heads = [head for head in HEADS if f"heads.{head}.weight" in state]
        self.network = JudgeNetwork(heads=heads)
        self.network.load_state_dict(state)
        self.network.eval().requires_grad_(False)

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float().cpu().movedim(-1, 1)[:, :3]
        return F.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features of length one, for a perceptual distance, of images (N, H, W, 3) in 0..1."""
        return F.normalize(self.network.features(self._prepare(images)), dim=-1)

    def answers(self, images: torch.Tensor) -> list[dict[str, str | None]]:
        """What each head says of each image, (N, H, W, 3) in 0..1."""
        logits = self.network(self._prepare(images))
        chosen = {head: values.argmax(1).tolist() for head, values in logits.items()}
        # Weights that were trained before there was a count take every picture for one thing.
        one = {} if "count" in chosen else {"count": "one"}
        return [
            one | {head: [*HEADS[head], None][found[i]] for head, found in chosen.items()}
            for i in range(len(images))
        ]

    def __call__(self, images: torch.Tensor) -> list[dict[str, str | None]]:
        """{"object", "style", "character"}, each a word or None, for each image.

        images: (N, H, W, 3) in 0..1, each of one thing. All are None for a smear.
        """
        return [
            {kind: answer[kind] if answer["count"] else None for kind in KINDS}
            for answer in self.answers(images)
        ]

    def things(self, images: torch.Tensor) -> list[list[dict[str, str | None]]]:
        """What `__call__` says, for each thing in each image, from left to right.

        images: (N, 128, 128, 3) in 0..1. A smear has no thing, a picture one or two.
        """
        found = []
        for image, whole in zip(images, self.answers(images)):
            if whole["count"] is None:
                found.append([])
            elif whole["count"] == "one":
                found.append([{kind: whole[kind] for kind in KINDS}])
            else:
                found.append(self(halves(image)))
        return found


def halves(image: torch.Tensor) -> torch.Tensor:
    """The two things of a picture (128, 128, 3), each as a picture of its own, (2, H, W, 3)."""
    both = torch.stack([image[ROWS, :COLUMNS], image[ROWS, COLUMNS:]])
    side = (both.shape[1] - COLUMNS) // 2
    return F.pad(both, (0, 0, side, side), value=1.0)


def labels(names: tuple[str | None, ...], style: str | None, smear: bool = False) -> dict[str, int]:
    """The index of the right answer of each head; the last index means none.

    names: the thing or the two things that a drawing shows. IGNORED is the index where there is no
    one right answer: which object, of two different ones.
    """
    if smear:
        return {head: len(words) for head, words in HEADS.items()}
    name = names[0] if len(set(names)) == 1 else None
    count = COUNTS[len(names) - 1]
    wanted = {"object": name, "style": style, "character": name, "count": count}
    right = {
        head: words.index(wanted[head]) if wanted[head] in words else len(words)
        for head, words in HEADS.items()
    }
    if len(set(names)) == 2:
        right["character" if style is None else "object"] = IGNORED
    return right


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


def smeared(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures (N, 3, H, W) that show nothing: drawings mixed, bent or blurred beyond recognition.

    N is at least 4.
    """
    n, _, height, width = images.shape

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    # Three others mixed into each, so that none has much more than a quarter of the weight.
    weights = 0.3 * torch.rand(4, n, 1, 1, 1, generator=generator) + 0.7
    order = torch.randperm(n, generator=generator)
    others = torch.stack([images[order.roll(k)] for k in range(4)])
    mixed = (weights * others).sum(0) / weights.sum(0)
    ways = torch.randint(4, (n, 1, 1, 1), generator=generator)
    x = torch.where(ways == 0, images, mixed)
    # Bent: each place comes from up to a third of the picture away.
    field = F.interpolate(
        torch.randn(n, 2, 5, 5, generator=generator), (height, width), mode="bicubic"
    ).movedim(1, -1)
    whole = torch.eye(2, 3).expand(n, 2, 3)
    grid = F.affine_grid(whole, [n, 3, height, width], align_corners=False)
    strength = uniform(0.25, 0.45, 1, 1, 1).where(ways != 1, 0.08)
    x = 1 - F.grid_sample(1 - x, grid + strength * field, align_corners=False)
    # Blurred, one in four until only spots are left.
    small = int(torch.randint(5, 9, (1,), generator=generator))
    spots = F.interpolate(
        F.interpolate(x, (small, small), mode="area"), (height, width), mode="bicubic"
    )
    x = torch.where(ways == 3, spots, x)
    # Stronger or weaker colours than the mean of several drawings has.
    return (x.mean((2, 3), keepdim=True).lerp(x, uniform(0.8, 2.0, 1, 1, 1))).clamp(0, 1)


def to_images(array: np.ndarray) -> torch.Tensor:
    """From uint8 (N, H, W, 3) to float (N, 3, H, W) in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2).float() / 255
