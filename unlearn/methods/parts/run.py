"""From an Edit to an Erasure: the frame that every method's loop runs in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date

import torch

from ...core.edit import Diverged, Edit
from ...core.erasure import NETWORK, Erasure
from ...core.kind import Kind
from ...core.model import DiffusionModel, Part
from ...core.version import VERSION
from ...prompts.templates import sentence


def run_method(
    model: DiffusionModel,
    part: Part,
    select: str,
    method: str,
    concepts: list[str],
    settings,
    loop: Callable[[Edit], object],
    **record,
) -> Erasure:
    """Run a method's loop on an edit of the weights of a part; the erasure says where it came from.

    settings: the method's dataclass. record: what else the erasure is to say. When the loop raises
    Diverged, the error is given the erasure of the last good deltas.
    """

    def erasure(deltas: dict, history: list[float]) -> Erasure:
        where = {key: base[key] for key in deltas}
        return Erasure(deltas, made(method, concepts, settings, where, history, **record))

    with model.edit(part, select, settings.rank, settings.seed) as edit:
        base = model.fingerprints(edit.deltas)
        try:
            loop(edit)
            if any(key.startswith(NETWORK) for key in edit.deltas):
                record["moved"] = moved(model, edit, concepts, record["kind"])
        except Diverged as error:
            error.erasure = erasure(error.deltas, error.history)
            raise
        return erasure(edit.tensors(), edit.history)


def made(
    method: str,
    concepts: list[str],
    settings,
    base: dict[str, str],
    history: Sequence[float] = (),
    **record,
) -> dict:
    """The record of an erasure: how it was made.

    settings: the method's dataclass. base: fingerprints of the weights that it changes. history:
    the losses of its steps. record: what else it is to say.
    """
    return {
        "method": method,
        "concepts": list(concepts),
        **record,
        "settings": asdict(settings),
        "steps": len(history),
        "base": base,
        "loss": [round(value, 6) for value in history],
        "version": VERSION,
        "date": date.today().isoformat(),
    }


@torch.no_grad()
def moved(model: DiffusionModel, edit: Edit, concepts: list[str], kind: Kind) -> dict[str, float]:
    """How far each concept's prediction moved in an edited denoiser, relative to what its prompt
    did.

    |e*(x, c) - e(x, c)| / |e(x, c) - e(x, 0)| on the same noise in the middle of the schedule.
    """
    noise = model.noise(1, torch.Generator().manual_seed(0))
    t = torch.full((2,), 700.0, device=noise.device)
    x = model.add_noise(torch.zeros_like(noise), noise, t[:1]).repeat(2, *[1] * (noise.ndim - 1))
    result = {}
    for concept in concepts:
        prompts = model.encode([sentence(kind, concept), ""])
        with edit.off():
            own, empty = model.predict(x, t, prompts)
        now = model.predict(x, t, prompts)[0]
        result[concept] = ((now - own).norm() / (own - empty).norm().clamp(min=1e-12)).item()
    return result
