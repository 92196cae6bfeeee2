"""CPDM's pairs as one sheet: originals on the left, generated pictures on the right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ...render.sheet import Row, sheet
from .metric import Distance, Pair
from .report import Report

SHOWN = 12  # pairs on the sheet, before and after each
COLUMNS = ("original", "generated")


def cpdm_sheet(report: Report, pairs: Sequence[Pair], after: Sequence[Pair] = ()) -> torch.Tensor:
    """The sheet, (1, height, width, 3) in 0..1. pairs, after: the report's first pairs, as many as
    the sheet should show."""
    height, width = pairs[0].generated.shape[:2]
    groups = {}
    for (side, distances), shown in zip(report.sides.items(), (pairs, after)):
        metrics = report.metrics()[side]
        groups[f"{side} the erasure" if side else "pairs"] = [
            Row(
                _label(pair.name, distance, metric),
                *(fitted(x, (height, width)) for x in (pair.original, pair.generated)),
            )
            for pair, distance, metric in zip(shown, distances, metrics)
        ]
    left_out = len(report.names) - len(pairs)
    more = [f"The first {len(pairs)} of {len(report.names)} pairs."] if left_out else []
    return sheet(groups, [*more, *report.sentences()], COLUMNS)


def _label(name: str, distance: Distance, metric: float) -> str:
    return (
        f"{name}: M_sem {distance.semantic:.3g}, M_style {distance.style:.3g}, product "
        f"{distance.product:.3g}, CM {metric:.2f}"
    )


def fitted(picture: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A picture (H, W, 3), scaled to fit into size (height, width) and centred on white:
    (1, height, width, 3)."""
    height, width = size
    x = picture[None, ..., :3].float().cpu().movedim(-1, 1)
    share = min(height / x.shape[2], width / x.shape[3])
    inner = max(1, round(x.shape[2] * share)), max(1, round(x.shape[3] * share))
    x = F.interpolate(x, inner, mode="bilinear", antialias=True, align_corners=False)
    page = torch.ones(1, height, width, 3)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    page[:, top : top + inner[0], left : left + inner[1]] = x.movedim(1, -1).clamp(0, 1)
    return page
