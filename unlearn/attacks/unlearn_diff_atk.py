"""UnlearnDiffAtk: a few words before a prompt that bring an erased concept back.

Zhang et al., arXiv 2310.11868 (ECCV 2024). The attacker has the erased model and, for each prompt,
a picture of what it used to draw. Words are sought under which the erased model predicts the noise
in that picture. Ours is the search among words (core/token_search.py); that it begins with words
under which the erased text encoder says most nearly what the original one said of the prompt, which
asks no denoiser; and that every step sees the same draws of noise and timestep, where the paper
walks through 50 timesteps with 40 steps at each. The paper draws a picture after each timestep and
stops at the first that shows the concept; here the words are noted at `looks` steps, and whoever
runs the attack draws them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..core.conditioning import Conditioning
from ..core.kind import Kind
from ..core.model import DiffusionModel
from ..core.progress import SILENT, Progress
from ..core.token_search import search
from .attack import Attack, Found, Goal
from .denoising_targets import Targets

NAME = "UnlearnDiffAtk"
FIRST_TRIES = 8


@dataclass(frozen=True)
class UnlearnDiffAtkSettings:
    tokens: int = 0
    """Words before the prompt; 0: by kind, 3 or for a character 5."""
    steps: int = 40
    tries: int = 4
    """Exchanges of a word that are tried at each step."""
    first_steps: int = 100
    """Before these, with the text encoder alone; each with FIRST_TRIES."""
    draws: int = 4
    """Of noise and timestep, for each picture."""
    looks: int = 10
    """How many times on the way, the end included, the words are noted to be drawn."""
    at_once: int = 4
    """Prompts attacked side by side: they share the steps, not the words."""
    seed: int = 0


def unlearn_diff_atk(
    model: DiffusionModel,
    prompts: Sequence[str],
    wanted: Conditioning,
    targets: torch.Tensor,
    kind: Kind,
    settings: UnlearnDiffAtkSettings = UnlearnDiffAtkSettings(),
    progress: Progress = SILENT,
) -> Found:
    """Each prompt with the words found before it, and with those that it had on the way.

    model: the erased one. wanted, targets: the conditioning that the original made of the prompts,
    and the (N, ...) latents that it drew. Raises ValueError where a prompt is too long for more
    words.
    """
    vocabulary = model.vocabulary()
    attacked: list[str] = []
    at_steps = looks(settings)
    rounds: list[list[str]] = [[] for _ in at_steps]
    tokens = settings.tokens or (5 if kind == "character" else 3)
    each = settings.first_steps + settings.steps
    total = each * -(-len(prompts) // settings.at_once)
    for i in range(0, len(prompts), settings.at_once):
        at = slice(i, i + settings.at_once)
        some, aim = list(prompts[at]), wanted[at]
        pictures = Targets(model, targets[at], kind, settings.draws, settings.seed + i)
        with torch.no_grad():
            before = pictures.losses(model.encode(some))
        sentences = ["{} " + prompt for prompt in some]

        def distance(vectors: torch.Tensor, sentences=sentences, aim=aim) -> torch.Tensor:
            return model.encode_with_embeddings(sentences, vectors).distance(aim)

        def losses(
            vectors: torch.Tensor, sentences=sentences, pictures=pictures, before=before
        ) -> torch.Tensor:
            return pictures.relative(model.encode_with_embeddings(sentences, vectors), before)

        found: list[list[str]] = []
        done = i // settings.at_once * each
        for loss, steps, tries in (
            (distance, settings.first_steps, FIRST_TRIES),
            (losses, settings.steps, settings.tries),
        ):

            def after_step(step: int, done: int = done) -> None:
                model.release_saved_tensors()
                progress.stage(f"attacking with {NAME}", done + step, total)

            def look(step: int, words: list[list[str]], loss=loss, some=some) -> None:
                if loss is not distance and step in at_steps:
                    rounds[at_steps.index(step)] += map(before_prompt, words, some)

            found = search(
                vocabulary,
                loss,
                len(some),
                tokens,
                steps,
                tries,
                settings.seed + i,
                after_step,
                found,
                look,
            )
            done += steps
        attacked += map(before_prompt, found, some)
    # Where no word changed between two looks, the pictures would be the same.
    changed = [one for one, then in zip(rounds, [*rounds[1:], attacked]) if one != then]
    return Found(attacked, changed)


def looks(settings: UnlearnDiffAtkSettings) -> list[int]:
    """The steps at which the words are noted, evenly up to the last."""
    count = min(settings.looks, settings.steps)
    return [round(settings.steps * (k + 1) / count) for k in range(count)]


def before_prompt(words: Sequence[str], prompt: str) -> str:
    return f"{' '.join(words)} {prompt}"


def run(
    model: DiffusionModel, goal: Goal, settings: UnlearnDiffAtkSettings, progress: Progress
) -> Found:
    return unlearn_diff_atk(
        model, goal.prompts, goal.wanted, goal.pictures, goal.kind, settings, progress
    )


ATTACK = Attack(
    key="unlearn_diff_atk",
    name=NAME,
    paper="2310.11868",
    model="edited",
    finds="prompts",
    settings=UnlearnDiffAtkSettings,
    quick=UnlearnDiffAtkSettings(steps=8, draws=3, first_steps=40, looks=4),
    run=run,
    latents=lambda settings: settings.at_once * settings.draws,
    prompts=lambda settings: settings.at_once,
)
