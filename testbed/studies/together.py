"""What it costs to erase several concepts from one text encoder: UA, IRA and CRA of each concept,
with one, two and four concepts erased."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache

import torch

from unlearn.diffusers_backend.model import DiffusersModel

from ..model.judge import Judge
from ..model.measure import STEPS, Prompt, draw, prompts_for, score

SEEDS = (0, 1)
MEASURES = ("ua", "ira", "cra")


def prompts_without(concept: str, group: tuple[str, ...], seed: int) -> list[Prompt]:
    """A concept's own prompts, and those prompts of neighbours that name nothing of the group."""
    return [
        prompt
        for prompt in prompts_for(concept, seed)
        if prompt.measure == "own"
        or not {prompt.object, prompt.style, prompt.character} & set(group)
    ]


@lru_cache(maxsize=32)
def unedited(
    model: DiffusersModel, concept: str, group: tuple[str, ...], seed: int, steps: int
) -> torch.Tensor:
    """The unedited model's pictures for `prompts_without`. Call it while nothing is erased."""
    return draw(model, prompts_without(concept, group, seed), 1000 * seed, steps)


def scores(
    model: DiffusersModel,
    group: tuple[str, ...],
    erased: AbstractContextManager,
    judge: Judge,
    steps: int = STEPS,
) -> list[dict]:
    """{"concept", "seed", "ua", "ira", "cra"} for each concept of a group and each seed.

    The measures are the benchmark's. erased: a context that puts the erasure on the model.
    """
    asked = [(concept, seed) for concept in group for seed in SEEDS]
    with torch.inference_mode():
        before = [unedited(model, concept, group, seed, steps) for concept, seed in asked]
        with erased:
            after = [
                draw(model, prompts_without(concept, group, seed), 1000 * seed, steps)
                for concept, seed in asked
            ]
    rows = []
    for (concept, seed), old, new in zip(asked, before, after):
        found = score(concept, prompts_without(concept, group, seed), old, new, judge)
        rows.append({"concept": concept, "seed": seed} | {name: found[name] for name in MEASURES})
    return rows
