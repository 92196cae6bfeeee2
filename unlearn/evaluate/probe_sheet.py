"""A probe as one sheet of pictures: before the edit on the left, after it on the right."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..attacks.registry import ATTACKS
from ..render.sheet import Row, sheet
from .judges.original import JUDGE as ORIGINAL
from .probe import Asked, Probe, on_the_way

COLUMNS = 4
# The colours of a picture's frame: the concept is seen, or not.
SHOWN = (0.85, 0.1, 0.1)
ABSENT = (0.8, 0.8, 0.8)


def probe_sheet(probes: Sequence[Probe]) -> torch.Tensor:
    """The sheet, (1, height, width, 3) in 0..1. A picture has a red frame if the judge sees the
    concept in it."""
    groups, figures = {}, []
    for probe in probes:
        for asked in probe.asked:
            if asked.name in map(on_the_way, ATTACKS):
                continue  # many pictures, each much like the next
            name = f"{probe.concept}: {asked.name}" if len(probes) > 1 else asked.name
            heading = (
                f"{name}, {sum(asked.shown_before)} of {len(asked.prompts)} before, "
                f"{sum(asked.shown_after)} after"
            )
            groups[heading] = rows(asked)
        figures += probe.sentences()
    judge = probes[0].counted_by.name if probes else ORIGINAL.name
    return sheet(groups, [*figures, f"Red frame: {judge} sees the concept in it."])


def rows(asked: Asked) -> list[Row]:
    """Rows of COLUMNS pictures each; the last one is filled up with white."""
    found = []
    before = framed(asked.before, asked.shown_before)
    after = framed(asked.after, asked.shown_after)
    for i in range(0, len(asked.prompts), COLUMNS):
        label = "  |  ".join(asked.prompts[i : i + COLUMNS])
        found.append(Row(label, *(padded(side[i : i + COLUMNS]) for side in (before, after))))
    return found


def padded(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (N, H, W, 3), filled up with white ones to COLUMNS."""
    white = pictures.new_ones(COLUMNS - len(pictures), *pictures.shape[1:])
    return torch.cat([pictures, white])


def framed(pictures: torch.Tensor, shown: Sequence[bool]) -> torch.Tensor:
    """Pictures (N, H, W, 3) with a frame. shown: whether the concept is seen in each."""
    result = pictures[..., :3].clone()
    edge = max(2, pictures.shape[1] // 40)
    for picture, is_shown in zip(result, shown):
        colour = torch.tensor(SHOWN if is_shown else ABSENT)
        picture[:edge] = picture[-edge:] = colour
        picture[:, :edge] = picture[:, -edge:] = colour
    return result
