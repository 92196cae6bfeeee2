"""Settings that several methods have, each described once: `shared.rank()` makes such a field."""

from __future__ import annotations

from typing import Any

from ...core.gradient_projection import Projection
from .settings import BALANCED, setting

LARGEST_SEED = 2**63 - 1


def mode() -> Any:
    return setting(
        "balanced",
        "balanced: ours, which keeps other concepts and stops by itself. paper: the published "
        "algorithm, with the settings of the released code, for comparison.",
    )


def kind(**more: Any) -> Any:
    return setting(
        "object",
        "What the concept is. It decides the sentences that name it: 'a photo of a ...', 'a "
        "painting in the style of ...' or, for an action, 'a person, ...'.",
        **more,
    )


def rank() -> Any:
    return setting(
        0,
        "Rank of the weight changes. 0 trains full changes, as the paper does. A rank of 4 to 32 "
        "makes the file many times smaller.",
        at_least=0,
        at_most=256,
    )


def seed(**more: Any) -> Any:
    return setting(
        0,
        "The same seed gives the same erasure on one machine; hardening goes by the clock.",
        at_least=0,
        at_most=LARGEST_SEED,
        **more,
    )


def projection(default: Projection) -> Any:
    return setting(
        default,
        "Takes out of each step what would harm other prompts (DoCo's concept-preserving "
        "gradient). as_released is the authors' code, which takes out too much.",
        optional=True,
    )


def protect(modes: tuple[str, ...] = BALANCED, **more: Any) -> Any:
    return setting(
        (),
        "Words, separated by commas, that must keep their meaning, such as close relatives of the "
        "concept, or how things move in your videos.",
        modes=modes,
        optional=True,
        each="protected word",
        **more,
    )


def harden(seconds: float) -> Any:
    """seconds: where it is only turned on."""
    return setting(
        0.0,
        "Once the concept is gone, train on for so many seconds against words that would bring it "
        "back. On a GPU a second does more than on a CPU, in a large model less than in a small "
        "one.",
        modes=BALANCED,
        at_least=1.0,
        at_most=86400.0,
        optional=True,
        turned_on=seconds,
    )
