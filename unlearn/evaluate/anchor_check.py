"""Whether a model draws a word that may be an anchor, and sees nothing of the concept in it.

Two pictures of the word are drawn by the original model, which judges them as a classifier
(classifier.py), as for a verdict.
"""

from __future__ import annotations

import torch

from ..core.kind import Kind
from ..core.model import DiffusionModel
from ..core.progress import SILENT, Progress
from ..prompts.anchor_choice import Draws
from ..prompts.templates import sentence
from .classifier import alone, explained
from .known import DRAWS, LEAST, STEPS, usually_explained
from .probe import ProbeSettings, drawn

PICTURES = 2
# The share of what the word explains of its pictures from which the concept is seen in them.
SEEN = 0.6


def drawable(
    model: DiffusionModel, kind: Kind, seed: int = 0, progress: Progress = SILENT
) -> Draws:
    """The check of a candidate, for `chosen_anchors`.

    The word must explain its own pictures nearly as well as a common word explains its, and much
    better than the concept does. model: the original one. The check raises ValueError where a
    prediction or a latent is not finite; `progress` may raise to cancel.
    """
    s = ProbeSettings(kind, prompts=PICTURES, steps=STEPS, seed=seed)
    least: list[float] = []

    @torch.no_grad()
    def draws(concept: str, word: str) -> bool:
        if not least:
            least.append(LEAST * usually_explained(model, [concept, word], s, progress))
        own, other = shares(model, concept, word, s, progress)
        return own >= least[0] and other < SEEN * own

    return draws


def shares(
    model: DiffusionModel, concept: str, word: str, s: ProbeSettings, progress: Progress = SILENT
) -> tuple[float, float]:
    """How much of the word's pictures the word explains, and how much the concept does."""
    prompts = [sentence(s.kind, word)] * PICTURES
    x0 = drawn(model, prompts, s, f"drawing {word}", progress)
    found = explained(
        model, x0, [alone(s.kind)] * PICTURES, [word, concept], range(DRAWS[0]), s.kind, s.seed
    ).mean((0, 2))
    return found[0].item(), found[1].item()
