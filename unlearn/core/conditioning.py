"""Conditioning: the text encoder's output for a batch of prompts, as the denoiser reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser reads of N prompts."""

    cross: torch.Tensor
    """(N, tokens, width): the text encoder's output, one vector per token."""
    pooled: torch.Tensor | None = None
    """(N, width): one vector per prompt; None for models that do not read it."""
    extra: dict = field(default_factory=dict)
    """Other values that the encoder passes to the denoiser. An attention mask has one row per
    prompt; every other value is shared by all prompts."""
    tokens: torch.Tensor | None = None
    """(N,): the number of tokens of each prompt without padding; None where `cat` padded none."""

    def __len__(self) -> int:
        return len(self.cross)

    def __getitem__(self, index) -> Conditioning:
        pooled = None if self.pooled is None else self.pooled[index]
        extra = {k: v[index] if _is_mask(k) else v for k, v in self.extra.items()}
        tokens = None if self.tokens is None else self.tokens[index]
        return Conditioning(self.cross[index], pooled, extra, tokens)

    def single(self, i: int) -> Conditioning:
        """The conditioning of prompt `i` alone, without padding."""
        one = self[i : i + 1]
        if one.tokens is None:
            return one
        own = int(one.tokens)
        extra = {k: v[:, :own] if _is_mask(k) else v for k, v in one.extra.items()}
        return Conditioning(one.cross[:, :own], one.pooled, extra)

    def to(self, device: torch.device | str) -> Conditioning:
        """A copy whose tensors are on `device`."""
        extra = {k: v.to(device) if _is_mask(k) else v for k, v in self.extra.items()}
        pooled, tokens = (None if x is None else x.to(device) for x in (self.pooled, self.tokens))
        return Conditioning(self.cross.to(device), pooled, extra, tokens)

    def repeated(self, count: int) -> Conditioning:
        """The first prompt's conditioning, repeated `count` times."""
        return self[torch.zeros(count, dtype=torch.long, device=self.cross.device)]

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Concatenate several batches. Shorter ones are padded with zeros.

        All parts must come from one model, so they have the same `extra` entries. The pooled
        vector is dropped if a part has none, since the denoiser then does not read it.
        """
        lengths = [part.cross.shape[1] for part in parts]
        tokens = max(lengths)
        cross = [F.pad(part.cross, (0, 0, 0, tokens - n)) for part, n in zip(parts, lengths)]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        extra = dict(parts[0].extra)
        for k in filter(_is_mask, extra):
            masks = [part.extra[k] for part in parts]
            extra[k] = torch.cat([F.pad(mask, (0, tokens - mask.shape[1])) for mask in masks])
        padded = len(set(lengths)) > 1 or any(part.tokens is not None for part in parts)
        return Conditioning(
            torch.cat(cross),
            torch.cat(pooled) if len(pooled) == len(parts) else None,
            extra,
            torch.cat([part._token_counts() for part in parts]) if padded else None,
        )

    def extrapolate_from(self, other: Conditioning, amount: float) -> Conditioning:
        """self + amount * (self - other)."""
        return self.moved(self.difference(other), amount)

    def difference(self, other: Conditioning) -> Conditioning:
        """self - other, token by token; zero where one of them has no token."""
        pooled = None
        if self.pooled is not None and other.pooled is not None:
            pooled = self.pooled - other.pooled
        return Conditioning(self._difference(other)[0], pooled)

    def mean(self) -> Conditioning:
        """The mean over all prompts, as a batch of one."""
        pooled = None if self.pooled is None else self.pooled.mean(0, keepdim=True)
        return Conditioning(self.cross.mean(0, keepdim=True), pooled)

    def moved(self, direction: Conditioning, amount: float) -> Conditioning:
        """self + amount * direction, token by token. direction: as many prompts as self, or one."""
        # A negative padding cuts off the tokens that self does not have.
        padding = self.cross.shape[1] - direction.cross.shape[1]
        cross = self.cross + amount * F.pad(direction.cross, (0, 0, 0, padding))
        pooled = self.pooled
        if pooled is not None and direction.pooled is not None:
            pooled = pooled + amount * direction.pooled
        return Conditioning(cross, pooled, self.extra, self.tokens)

    def distance(self, other: Conditioning) -> torch.Tensor:
        """(N,) mean squared difference over the tokens that both have, plus that of the pooled
        vectors if both have one."""
        difference, share = self._difference(other)
        squares = difference.float().square()
        # Lens's encoder returns no token at all for an empty prompt.
        value = (squares.mean((1, 2)) if squares.numel() else squares.sum((1, 2))) / share
        if self.pooled is not None and other.pooled is not None:
            value = value + (self.pooled - other.pooled).float().square().mean(1)
        return value

    def _difference(self, other: Conditioning) -> tuple[torch.Tensor, torch.Tensor | float]:
        """(self - other, share). The difference, (N, tokens, width), is zero where one of them has
        no token; the share, (N,), is that of the tokens that both have."""
        tokens = self.cross.shape[1]
        difference = self.cross - F.pad(other.cross, (0, 0, 0, tokens - other.cross.shape[1]))
        if self.tokens is None and other.tokens is None and other.cross.shape[1] == tokens:
            return difference, 1.0
        both = torch.minimum(self._token_counts(), other._token_counts())
        within = torch.arange(tokens, device=difference.device) < both[:, None]
        return difference * within[..., None], both.clamp(min=1) / tokens

    def _token_counts(self) -> torch.Tensor:
        """(N,) the number of tokens of each prompt, without padding."""
        if self.tokens is not None:
            return self.tokens
        return torch.full((len(self),), self.cross.shape[1], device=self.cross.device)


def _is_mask(name: str) -> bool:
    return name == "attention_mask"
