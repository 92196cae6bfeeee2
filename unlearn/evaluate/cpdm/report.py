"""What CPDM's metric says of a set of pairs, in words, as a table and for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from ...render.text_table import columns
from .metric import Distance, copyright_metric

PUBLISHED_WIDTH = 768  # of CLIP ViT-L/14's embeddings
SHOWN = 40  # pairs in the table
COLUMNS = ("M_sem", "M_style", "M_sem M_style", "(M_sem M_style)^2", "CM")


@dataclass(frozen=True)
class Report:
    """The distances of a set of pairs, and of the same pairs after an erasure."""

    names: Sequence[str]
    before: Sequence[Distance]
    after: Sequence[Distance] = ()
    """Empty where nothing was erased."""
    width: int = PUBLISHED_WIDTH
    """Numbers in an image embedding."""
    is_fid: bool = True
    """Whether the style was told by the FID's Inception."""

    def __post_init__(self) -> None:
        if not self.before:
            raise ValueError(
                "There is no pair to measure: give an original and a generated picture."
            )

    @property
    def sides(self) -> dict[str, Sequence[Distance]]:
        return {"before": self.before, "after": self.after} if self.after else {"": self.before}

    def metrics(self) -> dict[str, list[float]]:
        """CM of each pair, by side; Norm is over all of both."""
        every = copyright_metric([*self.before, *self.after])
        half = len(self.before)
        return dict(zip(self.sides, (every[:half], every[half:])))

    def means(self) -> dict[str, dict[str, float]]:
        """By side: the mean over the pairs of each of COLUMNS."""
        metrics = self.metrics()
        return {
            side: dict(zip(COLUMNS, map(mean, zip(*rows(distances, metrics[side])))))
            for side, distances in self.sides.items()
        }

    def further(self) -> int:
        """How many pairs lie further apart after the erasure."""
        return sum(b.product > a.product for a, b in zip(self.before, self.after))

    def sentences(self) -> list[str]:
        """What it means, for a person."""
        count, found = len(self.before), self.means()
        pairs = f"{count} pairs" if count > 1 else "one pair"
        said = [
            f"{side} M_sem {values['M_sem']:.4g}, M_style {values['M_style']:.4g}, "
            f"M_sem M_style {values['M_sem M_style']:.4g}, CM {values['CM']:.3f}"
            for side, values in found.items()
        ]
        said = [f"Mean of {pairs}: {'; '.join(map(str.strip, said))}."]
        if self.after:
            was, now = (values["M_sem M_style"] for values in found.values())
            share = f" ({now / was:.2f} times as far)" if was else ""
            said.append(
                f"After the erasure the pictures are at {now:.4g} from the originals, in M_sem "
                f"M_style, and before at {was:.4g}{share}; {self.further()} of {count} are further "
                "away than before."
            )
        said.append(
            "M_sem, M_style and their product grow with the distance from the original. The "
            "paper's CM = 1 - Norm(M_sem M_style)^2 falls with it; Norm is from the smallest to "
            f"the largest product of this set{', before and after together' * bool(self.after)}, "
            "so CM says nothing about another set. (M_sem M_style)^2 is what the authors' code "
            "gives."
        )
        if len({one.product for one in (*self.before, *self.after)}) == 1:
            said.append("All products are the same, so that CM tells nothing here.")
        return said + self.warnings()

    def warnings(self) -> list[str]:
        """What keeps the figures from being compared with the paper's."""
        found = []
        if self.width != PUBLISHED_WIDTH:
            found.append(
                f"The image encoder gives {self.width} numbers where CLIP ViT-L/14 gives "
                f"{PUBLISHED_WIDTH}: M_sem cannot be compared with the paper's."
            )
        if not self.is_fid:
            found.append(
                "The Inception file is torchvision's and the authors' is the FID's: M_style cannot "
                "be compared with the paper's."
            )
        return found

    def table(self) -> str:
        """A line for each pair, of the first SHOWN, and their means."""
        metrics, means = self.metrics(), self.means()
        every = {side: rows(some, metrics[side]) for side, some in self.sides.items()}
        lines = [["", *COLUMNS]]
        for i, name in enumerate(self.names[:SHOWN]):
            lines += [_line(f"{name} {side}", values[i]) for side, values in every.items()]
        if len(self.names) > SHOWN:
            lines.append([f"and {len(self.names) - SHOWN} more", *[""] * len(COLUMNS)])
        lines += [_line(f"mean {side}", values.values()) for side, values in means.items()]
        return columns(lines)

    def record(self) -> dict:
        """All figures, JSON-like."""
        metrics = self.metrics()
        every = {
            side or "now": [dict(zip(COLUMNS, row)) for row in rows(some, metrics[side])]
            for side, some in self.sides.items()
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
        (one.semantic, one.style, one.product, one.released, metric)
        for one, metric in zip(distances, metrics, strict=True)
    ]


def _line(name: str, values) -> list[str]:
    return [name.strip(), *(f"{value:.4g}" for value in values)]
