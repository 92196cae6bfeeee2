"""Hardening by solving: words that bring a concept back are sought, and the solve is repeated with
prompts that have them.

After a solve a few words before a prompt can still lead the text encoder part of the way back to
what it made of the concept. They are sought as UnlearnDiffAtk begins here (Zhang et al., arXiv
2310.11868), in the text encoder alone. Ours: AdvUnlearn (arXiv 2405.15234) trains against such
words, where this solves for them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ...core.model import TextModel
from ...core.progress import Progress
from ...core.token_search import search
from ...core.token_slots import Vocabulary, check_takes_vectors
from ...prompts.sampler import PromptSampler
from .adversarial import TOKENS
from .encoder_solver import Solver, solved
from .layers import changed
from .solve_prompts import SolveSettings, anchors_of

PUSH, DIRECTIONS = 0.25, 8  # at least so much beyond the anchor, and so many directions lost
ATTACKED, AT_MOST = 8, 64  # prompts of a concept in a round, and of all concepts
AT_ONCE = 8
STEPS, TRIES = 30, 8  # of the search among words
ENOUGH = 0.1  # of the way back: where the words found lead no farther, no round follows


@dataclass(frozen=True)
class Hardened:
    solver: Solver
    """The last solve."""
    revived: list[float]
    """How far the words found after each solve lead back at most: 1 is all the way from the
    anchor's prompts to what the original encoder makes of the concept's."""


def hardened(
    model: TextModel,
    concepts: Sequence[str],
    names: Mapping[str, Sequence[str]],
    settings: SolveSettings,
    rounds: int,
    progress: Progress,
) -> Hardened:
    """Solve, seek words that bring the concepts back and solve again, `rounds` times at most.

    names: other names of a concept. Gradients must pass through the model. Raises ValueError as
    `solved` does, and for an encoder that takes no vectors; `progress` may raise to cancel.
    """
    check_takes_vectors(model)
    told = replace(
        settings,
        further=max(settings.further, PUSH),
        directions=max(settings.directions, DIRECTIONS),
    )
    spoken = [*concepts, *(name for some in names.values() for name in some)]
    vocabulary = model.vocabulary().without(*spoken)
    more: dict[str, list[str]] = {concept: [] for concept in concepts}
    revived: list[float] = []
    for number in range(rounds + 1):
        solver = solved(model, concepts, names, told, progress, more)
        rng = random.Random(f"{settings.seed}/{number}")
        words = PromptSampler(concepts, settings.kind, rng, anchors_of(concepts, {}, told.anchor))
        said = _sentences(concepts, words)
        found, back = [], 0.0
        for i in range(0, len(said), AT_ONCE):
            some = said[i : i + AT_ONCE]

            def after_step(step: int, done: int = i, total: int = len(said)) -> None:
                model.release_saved_tensors()
                progress.stage("hardening", done + AT_ONCE * step // STEPS, total)

            before, share = _sought(model, solver, some, words, vocabulary, after_step)
            found += before
            back = max(back, share)
        revived.append(round(back, 4))
        if back < ENOUGH:
            break
        for (concept, sentence), before_it in zip(said, found):
            more[concept].append(f"{before_it} {sentence}")
    return Hardened(solver, revived)


def _sought(
    model: TextModel,
    solver: Solver,
    said: Sequence[tuple[str, str]],
    words: PromptSampler,
    vocabulary: Vocabulary,
    after_step: Callable[[int], None],
) -> tuple[list[str], float]:
    """(for each sentence the words before it that lead farthest back, how far at most)."""
    named = [sentence.format(concept) for concept, sentence in said]
    aims = [sentence.format(words.neutral(concept, model)) for concept, sentence in said]
    with torch.no_grad():
        was = model.encode(named)
        far = model.encode(aims).distance(was).clamp(min=1e-12)
    slots = ["{} " + prompt for prompt in named]

    def away(vectors: torch.Tensor) -> torch.Tensor:
        return model.encode_with_embeddings(slots, vectors).distance(was)

    count, seed = TOKENS[words.kind], words.rng.randrange(2**31)
    with changed(solver.prompts.places, solver.deltas):
        with torch.enable_grad():
            rows = search(vocabulary, away, len(said), count, STEPS, TRIES, seed, after_step)
        found = [" ".join(row) for row in rows]
        with torch.no_grad():
            left = model.encode(list(map(" ".join, zip(found, named)))).distance(was)
    return found, (1 - left / far).max().item()


def _sentences(concepts: Sequence[str], words: PromptSampler) -> list[tuple[str, str]]:
    """(concept, sentence with a slot) of a round, as many of each; of a long list of concepts not
    all have one."""
    each = max(1, min(ATTACKED, AT_MOST // len(concepts)))
    pairs = [(concept, said) for concept in concepts for said in words.sentences(each)]
    return pairs if len(pairs) <= AT_MOST else words.rng.sample(pairs, AT_MOST)


def told(record: Mapping) -> str:
    """What a record says of hardening, as a sentence; "" where it was not hardened."""
    shares = record.get("revived") or []
    if not shares:
        return ""
    first, last = f"{shares[0]:.0%}", f"{shares[-1]:.0%}"
    if len(shares) == 1:
        return f"Hardened: the words that were sought lead {first} of the way back at most."
    rounds = f"{len(shares) - 1} round" + "s" * (len(shares) > 2)
    return (
        f"Hardened in {rounds}: the words that were sought led {first} of the way back at first, "
        f"and {last} in the end."
    )
