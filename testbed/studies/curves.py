"""One plot of curves over something, for a page in docs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COLOURS = {"post-ASR": "tab:red", "UA": "tab:red", "IRA": "tab:blue", "CRA": "tab:green"}


@contextmanager
def plot(file: Path, over: str, bar: float, lowest: float) -> Iterator[Any]:
    """matplotlib's axes for shares from `lowest` to 1; the picture is written on leaving.

    over: what the shares are plotted against. bar: the share that is to be reached, a dotted line.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    yield axes
    axes.axhline(bar, color="gray", linestyle=":")
    axes.set(xlabel=over, ylim=(lowest, 1.03))
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def draw(axes: Any, label: str, points: Mapping[float, float]) -> None:
    """Draw a measure's curve in the colour that it always has."""
    colour = COLOURS.get(label, "tab:orange")
    axes.plot(list(points), list(points.values()), "o-", color=colour, label=label)
