"""Concept unlearning without ComfyUI: methods, attacks, measurements and the command line.

A public name loads its module when it is first used. So `from unlearn import Erasure` needs only
torch, and only `DiffusersModel` needs diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

PUBLIC = {
    "attacks.cce": ("CCESettings", "cce"),
    "attacks.ring_a_bell": ("RingABellSettings", "ring_a_bell"),
    "attacks.unlearn_diff_atk": ("UnlearnDiffAtkSettings", "unlearn_diff_atk"),
    "core.conditioning": ("Conditioning",),
    "core.edit": ("Diverged", "Edit"),
    "core.erasure": ("Erasure", "ErasureError", "combine"),
    "core.kind": ("Kind",),
    "core.model": ("DiffusionModel",),
    "core.resume": ("Resume",),
    "diffusers_backend.apply": ("applied",),
    "diffusers_backend.load": ("load_pipeline",),
    "diffusers_backend.model": ("DiffusersModel",),
    "evaluate.classifier": ("identify",),
    "evaluate.judges.judge": ("Judge",),
    "evaluate.judges.registry": ("judge_of", "register"),
    "evaluate.probe": ("ProbeSettings", "probe"),
    "methods.baselines.gradient_ascent": ("GradientAscentSettings", "gradient_ascent"),
    "methods.baselines.weight_pruning": ("WeightPruningSettings", "weight_pruning"),
    "methods.domain_correction": ("DomainCorrectionSettings", "domain_correction"),
    "methods.few_shot": ("FewShotSettings", "few_shot"),
    "methods.key_step": ("KeyStepSettings", "key_step"),
}
MODULES = {name: module for module, names in PUBLIC.items() for name in names}
__all__ = [*MODULES]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
