"""Ridge regression from moments: the change of a linear layer that moves some outputs and holds
others.

    min over D of  mean |k D - r|^2 over pairs (k, r)  +  hold * mean |k D|^2 over others k
                   +  ridge * |s D|^2,   s the root mean square of each input

The ridge is relative to each input's own size, since in real text encoders a few channels are
hundreds of times as large as the rest, and would make it meaningless for all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

Tokens = Sequence[torch.Tensor]
"""Parts of (tokens, width), each of any floating-point type."""
Times = Sequence[torch.Tensor] | None
"""Of each part, (tokens,), how often each token counts. None: once."""
COLUMNS = 1024  # inputs at a time, where it is solved in the tokens


def solve(
    inputs: Tokens,
    wanted: Tokens,
    held: Tokens,
    hold: float,
    ridge: float,
    times: Times = None,
    held_times: Times = None,
) -> torch.Tensor:
    """(width in, width out) D, float64.

    inputs, wanted: the pairs, of equal numbers of tokens. held: the inputs of what must not change.
    times, held_times: how often each pair and each of what is held counts.
    It is solved in the widths or in the tokens, whichever are fewer.
    """
    times, held_times = _times(inputs, times), _times(held, held_times)
    n, m = (float(sum(own.sum() for own in some)) for some in (times, held_times))
    width = inputs[0].shape[1]
    share = hold / m if m else 0.0
    weighted = [(part, own / n) for part, own in zip(inputs, times, strict=True)]
    weighted += [(part, own * share) for part, own in zip(held, held_times, strict=True)]
    energy = sum(_energy(part, weight) for part, weight in weighted)
    scale = energy.sqrt().clamp(min=1e-6 * float(energy.max()) ** 0.5)
    if sum(len(part) for part, _ in weighted) < width:
        return _in_tokens(weighted, wanted, ridge, scale)
    # Added up in place: in a wide layer each such matrix takes gigabytes.
    square, across = scale.new_zeros(width, width), 0.0
    for i, (part, weight) in enumerate(weighted):
        part = rooted(part, weight)
        square.add_(_product(part, part))
        if i < len(inputs):
            across = across + _product(part, rooted(wanted[i], weight)).double()
    square.div_(scale).div_(scale[:, None]).diagonal().add_(ridge)
    return _solved(square, across / scale[:, None]).div_(scale[:, None])


def _in_tokens(
    weighted: Sequence[tuple[torch.Tensor, torch.Tensor]],
    wanted: Tokens,
    ridge: float,
    scale: torch.Tensor,
) -> torch.Tensor:
    """The same by (A'A + c)^-1 A' = A' (A A' + c)^-1, where A has a row for each token.

    weighted: all inputs, those with something wanted first, and the weight of each token.
    """
    roots = [weight.to(scale).sqrt()[:, None] for _, weight in weighted]

    def columns() -> Iterator[torch.Tensor]:
        """A in pieces, so that it is never there as a whole in float64."""
        for some in torch.arange(len(scale)).split(COLUMNS):
            own = slice(int(some[0]), int(some[-1]) + 1)
            rows = [part[:, own].double() * root for (part, _), root in zip(weighted, roots)]
            yield torch.cat(rows) / scale[own]

    right = torch.cat([part.double() * root for part, root in zip(wanted, roots)])
    rows = sum(len(part) for part, _ in weighted)
    right = torch.cat([right, right.new_zeros(rows - len(right), right.shape[1])])
    square = scale.new_zeros(rows, rows)
    for piece in columns():
        square.addmm_(piece, piece.T)
    square.diagonal().add_(ridge)
    found = _solved(square, right)
    return torch.cat([piece.T @ found for piece in columns()]) / scale[:, None]


def _solved(square: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """square^-1 right, for a symmetric matrix that is positive but for rounding."""
    factor, failed = torch.linalg.cholesky_ex(square)
    if failed.any():
        return torch.linalg.solve(square, right)
    return torch.cholesky_solve(right, factor)


def _times(parts: Tokens, times: Times) -> Sequence[torch.Tensor]:
    """(tokens,) float64 of each part."""
    if times is None:
        return [torch.ones(len(part), dtype=torch.float64, device=part.device) for part in parts]
    return [own.double() for own in times]


def rooted(part: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Each token times the root of its weight, which sums of products then have. In float32 at
    least. part: (tokens, width). weight: (tokens,)."""
    wide = _wide(part)
    return wide * weight.to(wide).sqrt()[:, None]


def _energy(part: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return rooted(part, weight).square().sum(0).double()


def _product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """one.T @ other in the part's own precision, float32 at least. In float64 it would take as long
    as the encoder itself; what is summed over parts is."""
    one, other = _wide(one), _wide(other)
    return one.T @ other.to(one)


def _wide(part: torch.Tensor) -> torch.Tensor:
    return part if part.dtype == torch.float64 else part.float()


def compressed(
    change: torch.Tensor, inputs: Tokens, keep: float, times: Times = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(up, down): `change`, (width in, width out), as down.T @ up.T of the smallest rank that keeps
    the share `keep` of its effect, the sum of squares of what it adds to the outputs of `inputs`.
    times: how often each of these counts.
    """
    outputs = [
        rooted(_wide(part) @ change.to(_wide(part)), own)
        for part, own in zip(inputs, _times(inputs, times), strict=True)
    ]
    tokens, width = sum(map(len, outputs)), change.shape[1]
    if tokens < width:  # from the smaller of the two products
        whole = torch.cat(outputs).double()
        values, vectors = torch.linalg.eigh(whole @ whole.T)
        vectors = whole.T @ (vectors / values.clamp(min=1e-12 * float(values[-1])).sqrt())
    else:
        effect = sum(_product(part, part).double() for part in outputs)
        values, vectors = torch.linalg.eigh(effect)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    kept = values.cumsum(0) / values.sum().clamp(min=1e-30)
    rank = int((kept < keep).sum()) + 1
    up = vectors[:, :rank]
    return up, (change @ up).T
