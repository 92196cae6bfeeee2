"""Conditioning: what the denoiser reads of a batch of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Conditioning:
    """What the network reads of N prompts."""

    cross: torch.Tensor
    """(N, tokens, width): the text encoder's output, one vector a token."""
    pooled: torch.Tensor | None = None
    """(N, width): one vector a prompt, for the models that read it; else None."""
    extra: dict = field(default_factory=dict)
    """Whatever else the model's encoder hands its network, for one prompt as for all."""
    tokens: torch.Tensor | None = None
    """(N,): how many tokens are each prompt's own, where `cat` has padded some; else None."""

    def __len__(self) -> int:
        return len(self.cross)

    def __getitem__(self, index) -> Conditioning:
        pooled = None if self.pooled is None else self.pooled[index]
        extra = {k: v[index] if _is_mask(k) else v for k, v in self.extra.items()}
        tokens = None if self.tokens is None else self.tokens[index]
        return Conditioning(self.cross[index], pooled, extra, tokens)

    def single(self, i: int) -> Conditioning:
        """One prompt's conditioning, without padding."""
        one = self[i : i + 1]
        if one.tokens is None:
            return one
        own = int(one.tokens)
        extra = {k: v[:, :own] if _is_mask(k) else v for k, v in one.extra.items()}
        return Conditioning(one.cross[:, :own], one.pooled, extra)

    def to(self, device: torch.device | str) -> Conditioning:
        """What there is of each prompt, elsewhere."""
        extra = {k: v.to(device) if _is_mask(k) else v for k, v in self.extra.items()}
        pooled, tokens = (None if x is None else x.to(device) for x in (self.pooled, self.tokens))
        return Conditioning(self.cross.to(device), pooled, extra, tokens)

    def repeated(self, count: int) -> Conditioning:
        """A single prompt's conditioning for a batch of `count`."""
        return self[torch.zeros(count, dtype=torch.long, device=self.cross.device)]

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """One batch of several; those with fewer tokens are padded with zeros.

        All parts come of one model: what the first has beside its tokens, the others have, too. But
        a pooled vector that not all have, the network does not read.
        """
        own = [part.cross.shape[1] for part in parts]
        tokens = max(own)
        cross = [F.pad(part.cross, (0, 0, 0, tokens - n)) for part, n in zip(parts, own)]
        pooled = [part.pooled for part in parts]
        extra = dict(parts[0].extra)
        for k in filter(_is_mask, extra):
            masks = [part.extra[k] for part in parts]
            extra[k] = torch.cat([F.pad(mask, (0, tokens - mask.shape[1])) for mask in masks])
        padded = len(set(own)) > 1 or any(part.tokens is not None for part in parts)
        return Conditioning(
            torch.cat(cross),
            None if any(one is None for one in pooled) else torch.cat(pooled),
            extra,
            torch.cat([part._counts() for part in parts]) if padded else None,
        )

    def extrapolate_from(self, other: Conditioning, amount: float) -> Conditioning:
        """This one moved away from another by a share of their difference."""
        return self.moved(self.difference(other), amount)

    def difference(self, other: Conditioning) -> Conditioning:
        """What this one has that another has not; zero where one of them has no token."""
        both = self.pooled is not None and other.pooled is not None
        return Conditioning(self._apart(other)[0], self.pooled - other.pooled if both else None)

    def mean(self) -> Conditioning:
        """Of all prompts, as that of one."""
        pooled = None if self.pooled is None else self.pooled.mean(0, keepdim=True)
        return Conditioning(self.cross.mean(0, keepdim=True), pooled)

    def moved(self, way: Conditioning, amount: float) -> Conditioning:
        """This one moved along a difference, of as many prompts or of one, token by token."""
        room = self.cross.shape[1] - way.cross.shape[1]  # below zero what is beyond is cut off
        cross = self.cross + amount * F.pad(way.cross, (0, 0, 0, room))
        pooled = self.pooled
        if pooled is not None and way.pooled is not None:
            pooled = pooled + amount * way.pooled
        return Conditioning(cross, pooled, self.extra, self.tokens)

    def distance(self, other: Conditioning) -> torch.Tensor:
        """(N,) mean squared difference over the tokens that both have, the pooled vector added
        where there is one."""
        apart, share = self._apart(other)
        squares = apart.float().square()
        # Of an empty prompt Lens's encoder hands on no token at all.
        value = (squares.mean((1, 2)) if squares.numel() else squares.sum((1, 2))) / share
        if self.pooled is not None and other.pooled is not None:
            value = value + (self.pooled - other.pooled).float().square().mean(1)
        return value

    def _apart(self, other: Conditioning) -> tuple[torch.Tensor, torch.Tensor | float]:
        """(N, tokens, width) difference from another, zero where one of them has no token, and the
        share of tokens (N,) that both have."""
        tokens = self.cross.shape[1]
        apart = self.cross - F.pad(other.cross, (0, 0, 0, tokens - other.cross.shape[1]))
        if self.tokens is None and other.tokens is None and other.cross.shape[1] == tokens:
            return apart, 1.0
        both = torch.minimum(self._counts(), other._counts())
        within = torch.arange(tokens, device=apart.device) < both[:, None]
        return apart * within[..., None], both.clamp(min=1) / tokens

    def _counts(self) -> torch.Tensor:
        """(N,) each prompt's own tokens."""
        if self.tokens is not None:
            return self.tokens
        return torch.full((len(self),), self.cross.shape[1], device=self.cross.device)


def _is_mask(name: str) -> bool:
    return name == "attention_mask"
