"""What an attack's file says of itself, for the probe, its node and its command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..core.conditioning import Conditioning
from ..core.kind import Kind


@dataclass(frozen=True)
class Goal:
    """What an attack wants back."""

    concept: str
    kind: Kind
    prompts: list[str]
    """The concept's own, N of them."""
    wanted: Conditioning
    """What the original text encoder makes of these, (N, ...)."""
    pictures: torch.Tensor
    """Latents of the concept that the original model drew: (N, ...), those of the prompts, or as
    many as the attack's settings say with `pictures`."""


@dataclass(frozen=True)
class Found:
    """What an attack found for N prompts."""

    prompts: list[str]
    """N of them, the best for each."""
    on_the_way: list[list[str]]
    """The best of each at earlier looks, N of them at each look. Whoever looks while the search
    goes on stops at the first picture that shows the concept, so these count, too."""


def _nothing(settings: Any) -> int:
    return 0


@dataclass(frozen=True)
class Attack:
    """A published attack. Its file has one as ATTACK, and `registry.py` finds it there."""

    key: str
    """In settings and records: ring_a_bell."""
    name: str
    """In tables and sentences: Ring-A-Bell."""
    paper: str
    """Its number on arXiv."""
    model: Literal["original", "edited"]
    """Which model it asks. Prompts found with the original one are drawn by both models."""
    finds: Literal["prompts", "token"]
    """"prompts": N that a person can type. "token": a vector that stands for the concept."""
    settings: Any
    """A frozen dataclass, every field with a default, among them `seed`. `at_once`, where it has
    that, is made smaller where there is little memory."""
    quick: Any
    """The settings of a quick probe. A full one has the dataclass's own."""
    run: Callable[..., Any]
    """run(model, goal, settings, progress): a list of N prompts or a Found, or the vector (1, 1,
    width)."""
    latents: Callable[[Any], int] = _nothing
    """Of its settings: latents that are kept for one backward pass, at most."""
    prompts: Callable[[Any], int] = _nothing
    """Of its settings: prompts whose encoding is kept for one backward pass, at most."""
