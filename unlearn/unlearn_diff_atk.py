"""UnlearnDiffAtk: a few words before a prompt that bring an erased concept back.

Zhang et al., arXiv 2310.11868 (ECCV 2024). The attacker has the erased model and, for each prompt,
a picture of what it used to draw. Words are sought under which the erased model predicts the noise
in that picture. Ours is the search among words (token_search.py), which begins with those nearest
to the concept's own, and that every step sees the same draws of noise and timestep, where the paper
walks through 50 timesteps with 40 steps at each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .model import DiffusionModel
from .neighbourhood import Kind
from .targets import Targets
from .token_search import OnAttack, search

NAME = "UnlearnDiffAtk"


@dataclass(frozen=True)
class UnlearnDiffAtkSettings:
    tokens: int = 0
    """Words before the prompt; 0: by kind, 3 or for a character 5."""
    steps: int = 40
    tries: int = 4
    """Exchanges of a word that are tried at each step."""
    draws: int = 4
    """Of noise and timestep, for each picture."""
    at_once: int = 4
    """Prompts attacked side by side: they share the steps, not the words."""
    seed: int = 0


def unlearn_diff_atk(
    model: DiffusionModel,
    concept: str,
    prompts: Sequence[str],
    targets: torch.Tensor,
    kind: Kind,
    settings: UnlearnDiffAtkSettings = UnlearnDiffAtkSettings(),
    on_attack: OnAttack | None = None,
) -> list[str]:
    """Each prompt with the words found before it.

    model: the erased one. targets: (N, ...) latents that the original drew from the prompts. Raises
    ValueError where a prompt is too long for more words.
    """
    vocabulary, attacked = model.vocabulary(), []
    tokens = settings.tokens or (5 if kind == "character" else 3)
    total = settings.steps * -(-len(prompts) // settings.at_once)
    for i in range(0, len(prompts), settings.at_once):
        some = list(prompts[i : i + settings.at_once])
        pictures = Targets(
            model, targets[i : i + settings.at_once], kind, settings.draws, settings.seed + i
        )
        with torch.no_grad():
            before = pictures.losses(model.encode(some))
        sentences = ["{} " + prompt for prompt in some]

        def losses(
            vectors: torch.Tensor, sentences=sentences, pictures=pictures, before=before
        ) -> torch.Tensor:
            return pictures.relative(model.encode_filled(sentences, vectors), before)

        def on_step(step: int, i: int = i) -> None:
            on_attack(i // settings.at_once * settings.steps + step, total, NAME)

        found = search(
            vocabulary,
            losses,
            len(some),
            tokens,
            settings.steps,
            settings.tries,
            settings.seed + i,
            on_step if on_attack else None,
            vocabulary.near(concept, tokens),
        )
        attacked += [f"{' '.join(words)} {prompt}" for words, prompt in zip(found, some)]
    return attacked
