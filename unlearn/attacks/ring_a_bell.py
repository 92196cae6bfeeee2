"""Ring-A-Bell: prompts that say a concept without its name.

Tsai et al., arXiv 2310.10012 (ICLR 2024). The attacker has only the original text encoder. What
sentences with the concept have before sentences without it is a direction v; words are sought whose
conditioning is near that of a prompt moved three times v further. The denoiser is not asked.
Ours are the search among words (core/token_search.py; the paper has a genetic one, with a
population of 200 and 3000 generations) and that the words of the name are left out, since an
erasure has dealt with those.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..core.conditioning import Conditioning
from ..core.kind import Kind
from ..core.model import DiffusionModel
from ..core.progress import SILENT, Progress
from ..core.token_search import search
from ..prompts.sampler import PromptSampler
from .attack import Attack, Goal

NAME = "Ring-A-Bell"


@dataclass(frozen=True)
class RingABellSettings:
    tokens: int = 16
    """Words of a prompt."""
    steps: int = 100
    tries: int = 8
    """Exchanges of a word that are tried at each step."""
    pairs: int = 16
    """Sentences with and without the concept."""
    strength: float = 3.0
    """How far along the direction."""
    seed: int = 0


@torch.no_grad()
def concept_direction(
    model: DiffusionModel, concept: str, kind: Kind, pairs: int, seed: int
) -> Conditioning:
    """The mean difference that the concept makes to a neutral word's sentences."""
    words = PromptSampler([concept], kind, random.Random(seed))
    sentences = words.sentences(pairs)
    with_it = model.encode([sentence.format(concept) for sentence in sentences])
    without = model.encode([sentence.format(words.anchors[concept]) for sentence in sentences])
    return with_it.difference(without).mean()


def ring_a_bell(
    model: DiffusionModel,
    concept: str,
    prompts: Sequence[str],
    kind: Kind,
    settings: RingABellSettings = RingABellSettings(),
    progress: Progress = SILENT,
) -> list[str]:
    """For each prompt another that means the same to the encoder and does not name the concept.

    model: the original one; only its text encoder is used.
    """
    direction = concept_direction(model, concept, kind, settings.pairs, settings.seed)
    with torch.no_grad():
        aim = model.encode(list(prompts)).moved(direction, settings.strength)

    def losses(vectors: torch.Tensor) -> torch.Tensor:
        return model.encode_with_embeddings(["{}"] * len(prompts), vectors).distance(aim)

    def after_step(step: int) -> None:
        model.release_saved_tensors()
        progress.stage(f"attacking with {NAME}", step, settings.steps)

    found = search(
        model.vocabulary().without(concept),
        losses,
        len(prompts),
        settings.tokens,
        settings.steps,
        settings.tries,
        settings.seed,
        after_step,
    )
    return [" ".join(words) for words in found]


def run(
    model: DiffusionModel, goal: Goal, settings: RingABellSettings, progress: Progress
) -> list[str]:
    return ring_a_bell(model, goal.concept, goal.prompts, goal.kind, settings, progress)


ATTACK = Attack(
    key="ring_a_bell",
    name=NAME,
    paper="2310.10012",
    model="original",
    finds="prompts",
    settings=RingABellSettings,
    quick=RingABellSettings(steps=25),
    run=run,
)
