"""CPDM's metric of a set of pairs: as sentences, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from ...render.text_table import columns
from .metric import Distance, copyright_metric

PUBLISHED_WIDTH = 768  # the width of CLIP ViT-L/14's embeddings, which the paper uses
SHOWN = 40  # pairs in the table
COLUMNS = ("M_sem", "M_style", "M_sem M_style", "(M_sem M_style)^2", "CM")


@dataclass(frozen=True)
class Report:
    """The distances of a set of pairs, and of the same pairs after an erasure."""

    names: Sequence[str]
    before: Sequence[Distance]
    after: Sequence[Distance] = ()
    """Empty without an erasure."""
    width: int = PUBLISHED_WIDTH
    """The width of the image embeddings."""
    is_fid: bool = True
    """Whether the FID's Inception measured the style."""

    def __post_init__(self) -> None:
        if not self.before:
            raise ValueError(
                "There is no pair to measure; give an original and a generated picture."
            )

    @property
    def sides(self) -> dict[str, Sequence[Distance]]:
        """The distances by side: "before" and "after"; only "" without an erasure."""
        return {"before": self.before, "after": self.after} if self.after else {"": self.before}

    def metrics(self) -> dict[str, list[float]]:
        """CM of each pair, by side. Norm is over both sides together."""
        every = copyright_metric([*self.before, *self.after])
        half = len(self.before)
        return dict(zip(self.sides, (every[:half], every[half:])))

    def means(self) -> dict[str, dict[str, float]]:
        """By side and then by column (COLUMNS): the mean over the pairs."""
        metrics = self.metrics()
        return {
            side: dict(zip(COLUMNS, map(mean, zip(*rows(distances, metrics[side])))))
            for side, distances in self.sides.items()
        }

    def further(self) -> int:
        """How many pairs are further apart after the erasure."""
        return sum(b.product > a.product for a, b in zip(self.before, self.after))

    def sentences(self) -> list[str]:
        """The result as sentences for a person."""
        count, found = len(self.before), self.means()
        pairs = f"{count} pairs" if count > 1 else "one pair"
        parts = [
            f"{side} M_sem {values['M_sem']:.4g}, M_style {values['M_style']:.4g}, "
            f"M_sem M_style {values['M_sem M_style']:.4g}, CM {values['CM']:.3f}"
            for side, values in found.items()
        ]
        sentences = [f"Mean of {pairs}: {'; '.join(map(str.strip, parts))}."]
        if self.after:
            was, now = (values["M_sem M_style"] for values in found.values())
            share = f" ({now / was:.2f} times as far)" if was else ""
            sentences.append(
                f"M_sem M_style, the pictures' distance from the originals, is {now:.4g} after the "
                f"erasure and {was:.4g} before{share}; {self.further()} of {count} are further "
                "away than before."
            )
        sentences.append(
            "M_sem, M_style and their product grow with the distance from the original. The "
            "paper's CM = 1 - Norm(M_sem M_style)^2 falls with it. Norm is over the products of "
            f"this set{', before and after together' * bool(self.after)}, so CM cannot be compared "
            "with that of another set. (M_sem M_style)^2 is the value of the authors' code."
        )
        if len({distance.product for distance in (*self.before, *self.after)}) == 1:
            sentences.append("All products are equal, so CM has no meaning here.")
        return sentences + self.warnings()

    def warnings(self) -> list[str]:
        """Why the figures cannot be compared with the paper's, if so."""
        found = []
        if self.width != PUBLISHED_WIDTH:
            found.append(
                f"The image embeddings are {self.width} wide, but CLIP ViT-L/14's are "
                f"{PUBLISHED_WIDTH}, so M_sem cannot be compared with the paper's."
            )
        if not self.is_fid:
            found.append(
                "The Inception file is torchvision's, but the authors' is the FID's, so M_style "
                "cannot be compared with the paper's."
            )
        return found

    def table(self) -> str:
        """A text table: a line for each of the first SHOWN pairs, and the means of all."""
        metrics, means = self.metrics(), self.means()
        every = {side: rows(pairs, metrics[side]) for side, pairs in self.sides.items()}
        lines = [["", *COLUMNS]]
        for i, name in enumerate(self.names[:SHOWN]):
            lines += [_line(f"{name} {side}", values[i]) for side, values in every.items()]
        if len(self.names) > SHOWN:
            lines.append([f"and {len(self.names) - SHOWN} more", *[""] * len(COLUMNS)])
        lines += [_line(f"mean {side}", values.values()) for side, values in means.items()]
        return columns(lines)

    def record(self) -> dict:
        """All figures as JSON."""
        metrics = self.metrics()
        every = {
            side or "now": [dict(zip(COLUMNS, row)) for row in rows(pairs, metrics[side])]
            for side, pairs in self.sides.items()
        }
        return {
            "metric": "CPDM, arXiv 2403.12052",
            "embedding": self.width,
            "inception": "fid" if self.is_fid else "torchvision",
            "mean": {side or "now": values for side, values in self.means().items()},
            "pairs": [
                {"name": name, **{side: values[i] for side, values in every.items()}}
                for i, name in enumerate(self.names)
            ],
        }


def rows(distances: Sequence[Distance], metrics: Sequence[float]) -> list[tuple[float, ...]]:
    """The figures of each pair, in the order of COLUMNS."""
    return [
        (distance.semantic, distance.style, distance.product, distance.released, metric)
        for distance, metric in zip(distances, metrics, strict=True)
    ]


def _line(name: str, values) -> list[str]:
    return [name.strip(), *(f"{value:.4g}" for value in values)]
