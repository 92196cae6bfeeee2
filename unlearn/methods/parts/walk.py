"""KSCU's walk through the key steps of a trajectory: Zhang et al., arXiv 2507.06526."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from ...core.resume import Run
from ...files import state_checks

WALKS_A_START = 8  # full walks after which the first key step moves on by one


def latest_start(steps: int) -> int:
    """The last first step to which the paper's walk moves on: below nine tenths of the steps."""
    return (9 * steps - 1) // 10


def schedule(
    start: int, steps: int, iterations: int, concepts: int = 1, latest: int | None = None
) -> Iterator[tuple[int, int]]:
    """(concept, step) of each iteration: the key steps walked in order, again and again.

    Every concept is walked in turn; after eight such rounds the walk begins one step later, never
    later than at `latest` (None: as in the paper).
    """
    latest = latest_start(steps) if latest is None else latest
    done, walks = 0, 0
    while True:
        for concept in range(concepts):
            for step in range(start, steps):
                if done == iterations:
                    return
                yield concept, step
                done += 1
        walks += 1
        if walks % WALKS_A_START == 0 and start < latest:
            start += 1


def walk(
    run: Run, order: Iterator[tuple[int, int]], iteration: Callable[[int, int, int], None]
) -> None:
    """Call iteration(number, concept, step) for what is left of the order."""
    for number, (concept, step) in enumerate(order):
        if number >= run.done:
            iteration(number, concept, step)
            run.offer()


LONGEST = 200  # letters of a sentence


def check_walk(more: dict, concepts: int, window: int, count: int) -> None:
    """Raises Misfit for what is not kept of a walk in mode "balanced"."""
    state_checks.check_names(more, ("recent", "walked"), "walk")
    recent, walked = more["recent"], more["walked"]
    is_whole = isinstance(recent, list) and len(recent) == concepts
    state_checks.check(is_whole, "its walk is of others")
    for some in recent:
        state_checks.check_numbers(some, "walk", window)
    state_checks.check(isinstance(walked, list) and len(walked) == count, "its walk is of others")
    for sentence in walked:
        # Any other gap than {} would have `format` do more than put the concept in.
        is_plain = isinstance(sentence, str) and re.fullmatch(r"[^{}]*\{\}[^{}]*", sentence)
        state_checks.check(bool(is_plain) and len(sentence) <= LONGEST, "its walk has no sentences")


class Reached(Exception):
    """The concept is far enough gone."""
