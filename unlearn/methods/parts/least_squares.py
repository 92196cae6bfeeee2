"""Ridge regression from moments: the change of a linear layer that moves some outputs and holds
others.

    min over D of  mean |k D - r|^2 over pairs (k, r)  +  hold * mean |k D|^2 over others k
                   +  ridge * |s D|^2,   s the root mean square of each input

The ridge is relative to each input's own size, since in real text encoders a few channels are
hundreds of times as large as the rest, and would make it meaningless for all others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Tokens = Sequence[torch.Tensor]
"""Parts of (tokens, width), each of any floating-point type."""


def solve(inputs: Tokens, wanted: Tokens, held: Tokens, hold: float, ridge: float) -> torch.Tensor:
    """(width in, width out) D, float64.

    inputs, wanted: the pairs, of equal numbers of tokens. held: the inputs of what must not change.
    It is solved in the widths or in the tokens, whichever are fewer.
    """
    n, m = (sum(len(part) for part in parts) for parts in (inputs, held))
    width = inputs[0].shape[1]
    share = hold / m if m else 0.0
    energy = sum(_energy(part) / n for part in inputs) + sum(_energy(part) * share for part in held)
    scale = energy.sqrt().clamp(min=1e-6 * float(energy.max()) ** 0.5)
    if n + m < width:
        return _in_tokens(inputs, wanted, held, share, ridge, scale)
    square = sum(_product(part, part) for part in inputs) / n
    square = square + share * sum(_product(part, part) for part in held)
    square = square / scale / scale[:, None]
    across = sum(_product(p, r) for p, r in zip(inputs, wanted, strict=True)) / n / scale[:, None]
    square.diagonal().add_(ridge)
    return torch.linalg.solve(square, across) / scale[:, None]


def _in_tokens(
    inputs: Tokens, wanted: Tokens, held: Tokens, share: float, ridge: float, scale: torch.Tensor
) -> torch.Tensor:
    """The same by (A'A + c)^-1 A' = A' (A A' + c)^-1, where A has a row for each token."""
    n = sum(len(part) for part in inputs)
    rows = [part.double() / scale / n**0.5 for part in inputs]
    rows += [part.double() / scale * share**0.5 for part in held]
    a = torch.cat(rows)
    right = torch.cat([part.double() / n**0.5 for part in wanted])
    right = torch.cat([right, right.new_zeros(len(a) - n, right.shape[1])])
    square = a @ a.T
    square.diagonal().add_(ridge)
    return a.T @ torch.linalg.solve(square, right) / scale[:, None]


def _energy(part: torch.Tensor) -> torch.Tensor:
    return _wide(part).square().sum(0).double()


def _product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """one.T @ other, float64. The sum over a part's tokens is taken in the part's own precision,
    float32 at least: in float64 it would take as long as the encoder itself."""
    one, other = _wide(one), _wide(other)
    return (one.T @ other.to(one)).double()


def _wide(part: torch.Tensor) -> torch.Tensor:
    return part if part.dtype == torch.float64 else part.float()


def compressed(
    change: torch.Tensor, inputs: Tokens, keep: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(up, down): `change`, (width in, width out), as down.T @ up.T of the smallest rank that keeps
    the share `keep` of its effect, the sum of squares of what it adds to the outputs of `inputs`.
    """
    effect = sum(_product(part, part) for part in (_wide(p) @ change.to(_wide(p)) for p in inputs))
    values, vectors = torch.linalg.eigh(effect)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    kept = values.cumsum(0) / values.sum().clamp(min=1e-30)
    rank = int((kept < keep).sum()) + 1
    up = vectors[:, :rank]
    return up, (change @ up).T
