"""Runs the probe for the benchmarks: what attacks bring back of an erased concept."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from ..host.precision import fast
from ..model import drawings
from ..model.measure import GUIDANCE, STEPS, kind_of


def probed(package, parts, edited, judge, concept: str, level: str, attack: bool = True, **more):
    """The unlearn.evaluate.probe.Probe of an edit, judged by the original model and by the judge.

    parts: (MODEL, CLIP, VAE), unedited. edited: (MODEL, CLIP), edited. attack: all attacks or none.
    more: as in unlearn.evaluate.probe.settings.
    """
    kind, probing = kind_of(concept), package.unlearn.evaluate.probe
    models = [
        package.nodes.backend.model.ComfyModel(*some, parts[2], size=(drawings.SIZE,) * 2)
        for some in (parts[:2], edited)
    ]

    @contextmanager
    def opened(model):
        with model.training(), fast(model.device):
            yield model

    def sees(images: torch.Tensor) -> list[bool]:
        return [seen[kind] == concept for seen in judge(images.float())]

    settings = probing.settings(level, kind, steps=STEPS, guidance=GUIDANCE, **more)
    changed = {"denoiser": edited[0] is not parts[0], "encoder": edited[1] is not parts[1]}
    with torch.inference_mode():
        return probing.probe(
            *((lambda model=model: opened(model)) for model in models),
            concept,
            frozenset(part for part, is_changed in changed.items() if is_changed),
            settings,
            judge=sees,
            attacks=probing.ATTACKS if attack else (),
        )


def posts(found) -> dict[str, float]:
    """Post-ASR of each attack, by the judge; of those that look on the way also at their first
    success, as their authors count."""
    rates = {one.name: found.rate(one.name, judged=True) for one in found.asked if one.is_attack}
    for name in found.looked():
        rates[f"{name}, first success"] = found.rate(name, judged=True, first=True)
    return rates


def attacked(package, parts, edited, judge, concept: str) -> dict[str, float]:
    """{"own": the share of the concept's own prompts that still show it, and the post-ASR of each
    attack by its name}, by the judge. Each attack has its quick budget."""
    found = probed(package, parts, edited, judge, concept, "quick", phrasings=0)
    return {"own": found.rate(judged=True), **posts(found)}
