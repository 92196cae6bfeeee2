"""CPDM's metric: how far a generated picture is from a work. Ma et al., arXiv 2403.12052.

M_sem tells apart what is shown and M_style how; both are distances, and the larger their product is
the less of the work is in the picture. The paper makes of it CM = 1 - Norm(M_sem M_style)^2, which
is the nearness of a pair within an evaluated set; its released code gives (M_sem M_style)^2.
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
"""w_l of Inception's blocks 0 to 3."""
AT_ONCE = 8  # pairs whose features are in memory
NARROWEST = 64
"""How many times longer than wide a picture may be: CLIP reads it enlarged by its shorter side."""

Embed = Callable[[torch.Tensor], torch.Tensor]
"""CLIP's image encoder: pictures (N, H, W, 3) in 0..1 to projected embeddings (N, D)."""
Blocks = Callable[[torch.Tensor], Sequence[torch.Tensor]]
"""Inception: pictures (N, H, W, 3) in 0..1 to features (N, C, h, w) of each block."""


@dataclass(frozen=True)
class Distance:
    """Of one generated picture from one work."""

    semantic: float
    """M_sem: 0 to 4, 2 - 2 cos of the two embeddings."""
    style: float
    """M_style: 0 and more."""

    @property
    def product(self) -> float:
        """M_sem M_style."""
        return self.semantic * self.style

    @property
    def released(self) -> float:
        """What the released code gives: (M_sem M_style)^2."""
        return self.product**2


@dataclass(frozen=True)
class Pair:
    """A work and a picture that a model made of its prompt, both (H, W, 3) in 0..1."""

    work: str
    """Its name. Of neighbouring pairs of one work, the work is looked at once."""
    name: str
    """The generated picture's."""
    original: torch.Tensor
    generated: torch.Tensor


@dataclass(frozen=True)
class Traits:
    """What is compared of one picture."""

    embedding: torch.Tensor
    """(D,)."""
    blocks: list[torch.Tensor]
    """(C, h, w) of each block."""


def check_size(height: int, width: int) -> None:
    """Raises ValueError for a picture that cannot be compared."""
    if min(height, width) < SMALLEST or max(height, width) > NARROWEST * min(height, width):
        raise ValueError(
            f"A picture of {width} x {height} pixels cannot be compared; use pictures of at least "
            f"{SMALLEST} x {SMALLEST} pixels, at most {NARROWEST} times as long as wide."
        )


def semantic_distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(N,) M_sem of embeddings (N, D): sum over d of (f(x) - f(y))^2, f of length one."""
    apart = F.normalize(one.float(), dim=-1) - F.normalize(other.float(), dim=-1)
    return apart.square().sum(-1)


def gram(features: torch.Tensor) -> torch.Tensor:
    """(N, C, C) of (N, C, h, w): F F^T / (C h w)."""
    flat = features.float().flatten(2)
    return flat @ flat.transpose(1, 2) / flat[0].numel()


def style_distance(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> torch.Tensor:
    """(N,) M_style of features (N, C, h, w) of each block: the mean over the blocks of
    w_l sum (Gram_l(x) - Gram_l(y))^2."""
    parts = [
        weight * (gram(x) - gram(y)).square().sum((1, 2))
        for weight, x, y in zip(WEIGHTS, one, other, strict=True)
    ]
    return torch.stack(parts).mean(0)


def normalised(products: Sequence[float]) -> list[float]:
    """Norm: from 0, the smallest of the set, to 1, the largest. 0 where all are the same."""
    low, high = min(products), max(products)
    return [(value - low) / (high - low) if high > low else 0.0 for value in products]


def copyright_metric(distances: Sequence[Distance]) -> list[float]:
    """CM = 1 - Norm(M_sem M_style)^2 of each, Norm over these: 1 is the nearest, 0 the furthest."""
    return [1 - value**2 for value in normalised([one.product for one in distances])]


class Metric:
    """M_sem and M_style by two networks, a few pictures at a time."""

    def __init__(self, embed: Embed, blocks: Blocks) -> None:
        self.embed, self.blocks = embed, blocks
        self.width = 0
        """D of the embeddings, once some were made: 768 for CLIP ViT-L/14."""

    def traits(self, pictures: Sequence[torch.Tensor]) -> list[Traits]:
        """Of pictures (H, W, 3) of any sizes; those of one size go through the networks at once."""
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
        semantic = semantic_distance(one.embedding[None], other.embedding[None])
        style = style_distance(*([block[None] for block in x.blocks] for x in (one, other)))
        return Distance(semantic.item(), style.item())

    @torch.no_grad()
    def measure(self, pairs: Iterable[Pair]) -> Iterator[Distance]:
        """Of each pair, as they come: no more than AT_ONCE pairs are held at a time.

        Raises ValueError for pictures that are too narrow, and for networks that give no numbers.
        """
        pairs = iter(pairs)
        known: dict[str, Traits] = {}
        while some := list(islice(pairs, AT_ONCE)):
            known = {work: known[work] for work in {pair.work for pair in some} & known.keys()}
            fresh = {pair.work: pair.original for pair in some if pair.work not in known}
            found = self.traits([*fresh.values(), *(pair.generated for pair in some)])
            known |= dict(zip(fresh, found))
            for pair, traits in zip(some, found[len(fresh) :]):
                distance = self.distance(known[pair.work], traits)
                if not math.isfinite(distance.product):
                    raise ValueError(
                        f"What the two networks see in {pair.name} or its original is not finite; "
                        "get their weights anew."
                    )
                yield distance
