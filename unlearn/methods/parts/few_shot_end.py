"""When few-shot unlearning in mode "balanced" has trained enough."""

from __future__ import annotations

from collections.abc import Sequence

from .concepts import STOP_WINDOW

FURTHER = 1.1  # by how much a loss must grow from one window of steps to the next, to grow still


def far_enough(
    recent: Sequence[tuple[float, float]], target: float, near: float, begins_solved: bool = False
) -> bool:
    """Whether a concept is far enough gone: on average over the last steps, which are noisy.

    recent: of each step the concept's loss, relative to the original model's, and the distance of
    its prompts from the neutral ones. target, near: what these are to reach. After a start that is
    solved it is enough that the loss grows no more.
    """
    steps = list(recent)
    if len(steps) < STOP_WINDOW:
        return False
    ratio, distance = means(steps[-STOP_WINDOW:])
    if distance > near or ratio >= target or not begins_solved:
        return distance <= near and ratio >= target
    before = steps[-2 * STOP_WINDOW : -STOP_WINDOW]
    return len(before) == STOP_WINDOW and ratio < FURTHER * means(before)[0]


def means(steps: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The mean loss and the mean distance."""
    losses, distances = zip(*steps)
    return sum(losses) / len(steps), sum(distances) / len(steps)
