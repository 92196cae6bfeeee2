"""What the benchmark measures: methods, their modes and concepts, and the jobs of a run."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from unlearn.methods import registry

from ..model.vocabulary import CHARACTERS, STYLES

OBJECTS = (
    "cat",
    "fox",
    "owl",
    "butterfly",
    "mushroom",
    "pizza",
    "strawberry",
    "castle",
    "rocket",
    "guitar",
    "umbrella",
    "camera",
)
QUICK = ("fox", "pizza", "guitar", "ink", "Zorvik")
CONCEPTS = (*OBJECTS, *STYLES, *CHARACTERS[:: len(CHARACTERS) // 6][:6])
SEEDS = (0, 1)  # the second with --full
FEW = ("fox", "ink", "Zorvik")  # one of each kind
# method -> modes, and the concepts that each is measured on: on all of them what the methods are by
# default, on a few what is there to compare it with, so that a run takes less than two hours.
# Few-shot's paper mode is measured after each of EPOCHS, and once more with the learning rate
# scaled to the width of this encoder (Adam's goes as 1 / width: Yang et al., arXiv 2203.03466),
# since the paper's is made for one four times as wide. "neighbour" draws the concept to the next
# one of its kind in place of a neutral word. Key-step unlearning also runs with the closed form
# alone and no step, from the first step on, in the last half alone, where the finder says, and
# "outside" of the cross-attention. "hardened" goes on for HARDENED seconds. The modes in ATTACKED
# are attacked, too, on FEW.
PLAN: dict[str, dict[str, tuple[str, ...]]] = {
    "closed_form": {
        "balanced": CONCEPTS,
        "balanced-neutral": QUICK[:3],
        "balanced-hardened": FEW,
    },
    "few_shot": {
        "balanced": CONCEPTS,
        "balanced-neighbour": QUICK[:3],
        "balanced-hardened": FEW,
        "paper": QUICK,
        "paper-scaled": QUICK,
        "paper-all": QUICK,
    },
    "key_step": {
        "balanced": CONCEPTS,
        "balanced-neighbour": FEW,
        "balanced-solved": QUICK,
        "balanced-auto": FEW,
        "balanced-all-steps": FEW,
        "balanced-last-half": FEW,
        "balanced-outside": FEW[:1],
        "balanced-hardened": FEW,
        "paper": FEW[:1],
        "paper-all-steps": FEW[:1],
        "paper-last-half": FEW[:1],
    },
    "domain_correction": {"balanced": FEW, "paper": ()},
    # Text encoder and denoiser, each erased by itself, together.
    "few_shot+key_step": {
        "balanced": FEW,
        "balanced-outside": FEW,
        "balanced-outside-hardened": FEW,
    },
    # CPDM's baselines (arXiv 2403.12052).
    "gradient_ascent": {"paper": QUICK},
    "weight_pruning": {"paper": QUICK},
}


def entries(methods: Iterable[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """The plan. A method that is not named in it is measured as it is by default, on a few."""
    return PLAN | {name: {"balanced": FEW} for name in methods if name not in PLAN}


METHODS = entries(registry.METHODS)
# What --full measures on more. Domain correction's paper mode takes half an hour a concept.
MORE = {
    ("few_shot", "balanced-neighbour"): OBJECTS,
    ("few_shot", "paper"): CONCEPTS,
    ("few_shot", "paper-scaled"): CONCEPTS,
    ("few_shot", "paper-all"): CONCEPTS,
    ("key_step", "balanced-neighbour"): QUICK,
    ("key_step", "balanced-solved"): CONCEPTS,
    ("key_step", "balanced-auto"): QUICK,
    ("key_step", "balanced-all-steps"): QUICK,
    ("key_step", "balanced-last-half"): QUICK,
    ("key_step", "balanced-outside"): FEW,
    ("key_step", "paper"): FEW,
    ("key_step", "paper-all-steps"): FEW,
    ("key_step", "paper-last-half"): FEW,
    ("domain_correction", "balanced"): CONCEPTS,
    ("domain_correction", "paper"): FEW,
}
EPOCHS = (1, 2, 4, 5, 7, 10)
COMPARED = (4, 10)  # of the modes that are there to compare "paper" with
ATTACKED = ("balanced", "balanced-hardened", "balanced-outside", "balanced-outside-hardened")


def jobs_of(options: argparse.Namespace) -> list[dict]:
    """What the command line asks for."""
    quick, full = options.quick, options.full
    return [
        {
            "method": method,
            "mode": mode,
            "concept": concept,
            "seed": seed,
            "attack": mode in ATTACKED and concept in FEW and seed == SEEDS[0] and not quick,
        }
        for method in options.method
        for mode in METHODS[method]
        if mode in (options.mode or (["balanced"] if quick else METHODS[method]))
        for seed in options.seed or seeds_of(method, mode, full)
        for concept in options.concept or concepts_of(method, mode, quick, full)
    ]


def seeds_of(method: str, mode: str, full: bool) -> tuple[int, ...]:
    """In full the default modes are measured twice, where they are measured on every concept."""
    twice = full and mode == "balanced" and concepts_of(method, mode, False, full) is CONCEPTS
    return SEEDS if twice else SEEDS[:1]


def concepts_of(method: str, mode: str, quick: bool, full: bool) -> tuple[str, ...]:
    concepts, all_of_them = METHODS[method][mode], MORE.get((method, mode))
    if quick:
        return QUICK if CONCEPTS in (concepts, all_of_them) else ()
    return all_of_them if full and all_of_them else concepts


def job_key(row: dict) -> tuple:
    return row["method"], row["mode"], row["concept"], row["seed"]


def epochs_of(mode: str) -> tuple[int, ...]:
    """After how many epochs one of few-shot's paper modes is measured."""
    return EPOCHS if mode == "paper" else COMPARED
