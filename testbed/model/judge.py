"""The judge: a separate image classifier, used only to measure, never to erase.

Three heads say which object, style and named character a picture shows, and a fourth whether it
shows one thing or two side by side. Each has one more answer, "none of them", for smears and
unknown things. The head for the style also looks at early layers, where outlines and shading are.
"""

from collections.abc import Collection
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import testbed

from .vocabulary import CHARACTERS, OBJECTS, STYLES

WEIGHTS = testbed.FOLDER / "weights" / "judge.safetensors"
SIZE = 112  # pixels a side of the network's input
KINDS = {"object": OBJECTS, "style": STYLES, "character": CHARACTERS}
COUNTS = ("one", "two")
HEADS = {**KINDS, "count": COUNTS}
# A picture is counted as none only if the head for the count gives that at least this probability.
# The other heads have a "none" of their own.
SURE = 0.9
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
    """From pictures (N, 3, SIZE, SIZE) in 0..1 to the logits of each head.

    width: the channels of the first layer. last: the channels of the last one, in widths. early:
    whether the head for the style also sees the mean and the spread of earlier maps; without it,
    the layout is that of weights of before.
    """

    def __init__(
        self,
        width: int = 32,
        heads: Collection[str] = tuple(HEADS),
        last: int = 8,
        early: bool = True,
    ) -> None:
        super().__init__()
        self.early = early
        quarter, eighth = Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)
        self.trunk = nn.Sequential(
            nn.Conv2d(3, width, 5, 2, 2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            # A block at an eighth of the size has more channels and takes less time than at half.
            *((quarter, eighth, Block(4 * width, 4 * width, 1)) if early else ()),
            *(() if early else (Block(width, width, 1), quarter, eighth)),
            Block(4 * width, last * width, 2),
        )
        inputs = dict.fromkeys(HEADS, 2 * last * width)
        inputs["style"] += 2 * (2 + 4) * width if early else 0
        self.heads = nn.ModuleDict(
            {name: nn.Linear(inputs[name], len(HEADS[name]) + 1) for name in heads}
        )

    @classmethod
    def of(cls, state: dict[str, torch.Tensor]) -> "JudgeNetwork":
        """The network of these weights."""
        width, inputs = len(state["trunk.0.weight"]), state["heads.object.weight"].shape[1]
        network = cls(
            width,
            [head for head in HEADS if f"heads.{head}.weight" in state],
            inputs // (2 * width),
            state["heads.style.weight"].shape[1] > inputs,
        )
        network.load_state_dict(state)
        return network

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The activations (N, channels, H, W) after each layer of the trunk."""
        x, found = x * 2 - 1, []
        for layer in self.trunk:
            x = layer(x)
            found.append(x)
        return found

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 2 * last * width): the mean and the maximum of the trunk's last maps."""
        return summary(self.maps(x)[-1])

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.logits(self.maps(x))

    def logits(self, maps: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The logits of each head, from `maps`."""
        features = styles = summary(maps[-1])
        if self.early:
            parts = [statistic for k in (-4, -2) for statistic in _statistics(maps[k])]
            styles = torch.cat([features, *parts], 1)
        return {
            name: head(styles if name == "style" else features) for name, head in self.heads.items()
        }


def summary(maps: torch.Tensor) -> torch.Tensor:
    """(N, 2 * channels): the mean and the maximum of maps (N, channels, H, W)."""
    return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)


def _statistics(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and the spread of maps over the picture, each (N, channels)."""
    variance, mean = torch.var_mean(maps.float(), (2, 3))
    # A map that is zero everywhere has no spread, and the root no slope there.
    return mean, (variance + 1e-4).sqrt()


class Judge:
    """Says what pictures show. Raises FileNotFoundError if its weights are missing."""

    def __init__(self, weights: Path = WEIGHTS) -> None:
        if not weights.is_file():
            raise FileNotFoundError(
                f"The judge's weights are not at {weights}: fetch the repository whole."
            )
        state = {key: value.float() for key, value in load_file(weights).items()}
        with safe_open(weights, "pt") as file:
            # Weights that do not tell the size were trained at 96.
            self.size = int((file.metadata() or {}).get("size", 96))
        self.network = JudgeNetwork.of(state).eval().requires_grad_(False)

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float().cpu().movedim(-1, 1)[:, :3]
        size = (self.size, self.size)
        return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features of length one, for a perceptual distance, of images (N, H, W, 3) in 0..1."""
        return F.normalize(self.network.features(self._prepare(images)), dim=-1)

    def answers(self, images: torch.Tensor) -> list[dict[str, str | None]]:
        """What each head says of each image, (N, H, W, 3) in 0..1."""
        logits = self.network(self._prepare(images))
        if "count" in logits:
            count = logits["count"].softmax(1)
            count[:, -1] = count[:, -1].ge(SURE)  # 1 beats the others, and 0 does not
            logits["count"] = count
        chosen = {head: values.argmax(1).tolist() for head, values in logits.items()}
        # Weights that were trained before there was a count take every picture for one thing.
        one = {} if "count" in chosen else {"count": "one"}
        return [
            one | {head: [*HEADS[head], None][found[i]] for head, found in chosen.items()}
            for i in range(len(images))
        ]

    def __call__(self, images: torch.Tensor) -> list[dict[str, str | None]]:
        """{"object", "style", "character"}, each a word or None, for each image.

        images: (N, H, W, 3) in 0..1, each of one thing. All are None for what is surely a smear.
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
