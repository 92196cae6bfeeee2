"""Settings for a probe with every attack that takes a few seconds."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any


def small_probe(pack: ModuleType) -> Any:
    made = pack.unlearn.evaluate.probe.settings("quick", "object", steps=5, guidance=5.0, seed=0)
    own = {
        "ring_a_bell": {"steps": 1, "tokens": 4, "tries": 1, "pairs": 2},
        "unlearn_diff_atk": {"steps": 1, "tries": 1, "draws": 1, "first_steps": 2},
        "cce": {"steps": 2, "pictures": 2, "batch": 2},
    }
    changed = {name: dataclasses.replace(getattr(made, name), **some) for name, some in own.items()}
    return dataclasses.replace(made, prompts=2, phrasings=1, draws=2, rivals=2, **changed)
