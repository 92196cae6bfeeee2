"""What the benchmark measures: methods, their modes and concepts, and the jobs of a run."""

from __future__ import annotations

import argparse

from .vocabulary import CHARACTERS, STYLES

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
# method -> modes, and the concepts that each is measured on: a mode that takes minutes on a few.
# Few-shot's paper mode is measured after each of EPOCHS, and once more with the learning rate
# scaled to the width of this encoder (Adam's goes as 1 / width: Yang et al., arXiv 2203.03466),
# since the paper's is made for one four times as wide. "neighbour" draws the concept to the next
# one of its kind in place of a neutral word. Key-step unlearning also runs with the closed form
# alone and no step, from the first step on, in the last half alone, and where the finder says.
# "hardened" goes on for HARDENED seconds. The modes in ATTACKED are attacked, too, on FEW.
METHODS = {
    "few_shot": {
        "balanced": CONCEPTS,
        "balanced-neighbour": OBJECTS,
        "balanced-hardened": FEW,
        "paper": CONCEPTS,
        "paper-scaled": CONCEPTS,
        "paper-all": CONCEPTS,
    },
    "key_step": {
        "balanced": CONCEPTS,
        "balanced-neighbour": QUICK,
        "balanced-solved": CONCEPTS,
        "balanced-auto": QUICK,
        "balanced-all-steps": QUICK,
        "balanced-last-half": QUICK,
        "balanced-hardened": FEW,
        "paper": FEW,
        "paper-all-steps": FEW,
        "paper-last-half": FEW,
    },
    "domain_correction": {"balanced": CONCEPTS, "paper": FEW},
    # Text encoder and image network, each erased by itself, together.
    "few_shot+key_step": {"balanced": FEW},
    # CPDM's baselines (arXiv 2403.12052).
    "gradient_ascent": {"paper": QUICK},
    "weight_pruning": {"paper": QUICK},
}
EPOCHS = (1, 2, 4, 5, 7, 10)
COMPARED = (4, 10)  # of the modes that are there to compare "paper" with
ATTACKED = ("balanced", "balanced-hardened")
LONGEST = {("domain_correction", "paper")}  # half an hour a concept: on one alone without --full


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
    twice = mode == "balanced" and METHODS[method][mode] is CONCEPTS
    return SEEDS if twice and full else SEEDS[:1]


def concepts_of(method: str, mode: str, quick: bool, full: bool) -> tuple[str, ...]:
    concepts = METHODS[method][mode]
    if quick:
        return QUICK if concepts is CONCEPTS else ()
    return concepts[:1] if (method, mode) in LONGEST and not full else concepts


def job_key(row: dict) -> tuple:
    return row["method"], row["mode"], row["concept"], row["seed"]


def epochs_of(mode: str) -> tuple[int, ...]:
    """After how many epochs one of few-shot's paper modes is measured."""
    return EPOCHS if mode == "paper" else COMPARED
