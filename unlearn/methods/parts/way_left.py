"""How far each of several concepts went to its anchor, and which went further alone.

Concepts in one encoder share its weights: one that asks for the opposite of others stays back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

# A concept is behind if this share of the way is left, and twice the median of all.
BEHIND = 0.35
COMPARED = 3  # concepts that are solved for alone, too
SHOWN = 6  # concepts that a sentence names


def share_left(rest: float, whole: float) -> float:
    """The share of a way that is left, from two sums of squared distances."""
    return (rest / max(whole, 1e-30)) ** 0.5


def behind(left: Mapping[str, float]) -> list[str]:
    """The concepts that stayed back, the furthest first. left: of each the share that is left."""
    if not left:
        return []
    least = max(BEHIND, 2 * median(left.values()))
    return sorted((one for one in left if left[one] >= least), key=lambda one: -left[one])


def told(record: Mapping) -> str:
    """What an erasure's record says of the concepts that stayed back, as sentences on one line."""
    left, alone = record.get("left") or {}, record.get("left_alone") or {}
    late = behind(left)
    if not late:
        return ""
    ways = [_way(concept, left[concept], alone.get(concept)) for concept in late[:SHOWN]]
    more = f" and {len(late) - SHOWN} more" if len(late) > SHOWN else ""
    said = f"Not all the way at their anchors: {', '.join(ways)}{more}."
    if hindered := conflicts(left, alone):
        said += f" Beside fewer concepts {' and '.join(hindered)} would go further."
    return said


def conflicts(left: Mapping[str, float], alone: Mapping[str, float]) -> list[str]:
    """The concepts that went much further alone than together."""
    return [one for one in alone if left[one] - alone[one] > BEHIND / 2]


def _way(concept: str, left: float, alone: float | None) -> str:
    way = f"{concept} {max(0.0, 1 - left):.0%} of the way"
    return way if alone is None else f"{way}, alone {max(0.0, 1 - alone):.0%}"


def compared(left: Mapping[str, float]) -> Sequence[str]:
    """The concepts that are to be solved for alone."""
    return behind(left)[:COMPARED]
