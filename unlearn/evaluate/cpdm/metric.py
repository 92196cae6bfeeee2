"""CPDM's metric: how far a generated picture is from a work. Ma et al., arXiv 2403.12052.

M_sem is the distance in content, M_style the distance in style. The larger their product, the less
of the work is in the picture. The paper's CM = 1 - Norm(M_sem M_style)^2 is the similarity of a
pair relative to the evaluated set. The authors' released code gives (M_sem M_style)^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F

from ...core.images import SMALLEST

WEIGHTS = (0.5, 0.1, 6e4, 40.0)
"""The weights w_l of Inception's blocks 0 to 3."""
AT_ONCE = 8  # pairs whose features are in memory at once
NARROWEST = 64
"""The largest ratio of a picture's sides. CLIP's preprocessing scales the shorter side, so the
longer one would become huge."""

Embed = Callable[[torch.Tensor], torch.Tensor]
"""CLIP's image encoder: pictures (N, H, W, 3) in 0..1 to projected embeddings (N, D)."""
Blocks = Callable[[torch.Tensor], Sequence[torch.Tensor]]
"""Inception: pictures (N, H, W, 3) in 0..1 to the features (N, C, h, w) of each block."""


@dataclass(frozen=True)
class Distance:
    """The distance of one generated picture from one work."""

    semantic: float
    """M_sem, 0 to 4: 2 - 2 cos of the two embeddings."""
    style: float
    """M_style, 0 or more."""

    @property
    def product(self) -> float:
        """M_sem M_style."""
        return self.semantic * self.style

    @property
    def released(self) -> float:
        """The value of the released code: (M_sem M_style)^2."""
        return self.product**2


@dataclass(frozen=True)
class Pair:
    """A work and the picture that a model generated from its prompt, both (H, W, 3) in 0..1."""

    work: str
    """The work's name. Consecutive pairs of one work share its features."""
    name: str
    """The generated picture's name."""
    original: torch.Tensor
    generated: torch.Tensor


@dataclass(frozen=True)
class Traits:
    """The features of one picture."""

    embedding: torch.Tensor
    """(D,)."""
    blocks: list[torch.Tensor]
    """(C, h, w) for each block."""


def check_size(height: int, width: int) -> None:
    """Raises ValueError for a picture that is too small or too narrow."""
    if min(height, width) < SMALLEST or max(height, width) > NARROWEST * min(height, width):
        raise ValueError(
            f"A picture of {width} x {height} pixels cannot be compared; use pictures of at least "
            f"{SMALLEST} x {SMALLEST} pixels, at most {NARROWEST} times as long as wide."
        )


def semantic_distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(N,) M_sem of embeddings (N, D): the squared distance of the normalised embeddings."""
    difference = F.normalize(one.float(), dim=-1) - F.normalize(other.float(), dim=-1)
    return difference.square().sum(-1)


def gram(features: torch.Tensor) -> torch.Tensor:
    """The Gram matrices F F^T / (C h w), (N, C, C), of features (N, C, h, w)."""
    flat = features.float().flatten(2)
    return flat @ flat.transpose(1, 2) / flat[0].numel()


def style_distance(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> torch.Tensor:
    """(N,) M_style: the mean over the blocks of w_l sum (Gram_l(x) - Gram_l(y))^2.

    one, other: the features (N, C, h, w) of each block.
    """
    parts = [
        weight * (gram(x) - gram(y)).square().sum((1, 2))
        for weight, x, y in zip(WEIGHTS, one, other, strict=True)
    ]
    return torch.stack(parts).mean(0)


def normalised(products: Sequence[float]) -> list[float]:
    """Norm: the smallest of the set becomes 0, the largest 1. All 0 if they are equal."""
    low, high = min(products), max(products)
    return [(value - low) / (high - low) if high > low else 0.0 for value in products]


def copyright_metric(distances: Sequence[Distance]) -> list[float]:
    """CM = 1 - Norm(M_sem M_style)^2 of each, Norm over these distances: 1 for the nearest, 0 for
    the furthest."""
    return [1 - value**2 for value in normalised([one.product for one in distances])]


class Metric:
    """Computes M_sem and M_style with two networks, in batches."""

    def __init__(self, embed: Embed, blocks: Blocks) -> None:
        self.embed, self.blocks = embed, blocks
        self.width = 0
        """The width D of the embeddings, known after the first: 768 for CLIP ViT-L/14."""

    def traits(self, pictures: Sequence[torch.Tensor]) -> list[Traits]:
        """The features of pictures (H, W, 3). Pictures of one size form a batch."""
        found: dict[int, Traits] = {}
        for height, width, _ in {tuple(picture.shape) for picture in pictures}:
            check_size(height, width)
        for shape in dict.fromkeys(picture.shape for picture in pictures):
            which = [i for i, picture in enumerate(pictures) if picture.shape == shape]
            batch = torch.stack([pictures[i] for i in which])
            embeddings, blocks = self.embed(batch), self.blocks(batch)
            self.width = embeddings.shape[-1]
            for row, i in enumerate(which):
                found[i] = Traits(embeddings[row], [block[row] for block in blocks])
        return [found[i] for i in range(len(pictures))]

    @staticmethod
    def distance(one: Traits, other: Traits) -> Distance:
        """The distance of two pictures by their features."""
        semantic = semantic_distance(one.embedding[None], other.embedding[None])
        style = style_distance(*([block[None] for block in x.blocks] for x in (one, other)))
        return Distance(semantic.item(), style.item())

    @torch.no_grad()
    def measure(self, pairs: Iterable[Pair]) -> Iterator[Distance]:
        """The distance of each pair, in order. At most AT_ONCE pairs are in memory at a time.

        Raises ValueError for pictures that are too narrow, and for features that are not finite.
        """
        pairs = iter(pairs)
        known: dict[str, Traits] = {}
        while batch := list(islice(pairs, AT_ONCE)):
            known = {work: known[work] for work in {pair.work for pair in batch} & known.keys()}
            fresh = {pair.work: pair.original for pair in batch if pair.work not in known}
            found = self.traits([*fresh.values(), *(pair.generated for pair in batch)])
            known |= dict(zip(fresh, found))
            for pair, traits in zip(batch, found[len(fresh) :]):
                distance = self.distance(known[pair.work], traits)
                if not math.isfinite(distance.product):
                    raise ValueError(
                        f"The features of {pair.name} or its original are not finite; download the "
                        "weights of the two networks again."
                    )
                yield distance
