"""How seconds and memory grow with what there is more of. One case a process, several points."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import torch

from unlearn.core.peak_memory import PeakMemory, is_too_little

from ..model import pack
from ..model.vocabulary import OBJECTS
from .methods import ANCHOR, CONCEPT
from .models import parts_of
from .roof import synchronise

STEPS = 3  # of a point; the first does not count
ROOM = 0.5  # of the free memory a layer's solve may take


def points_of(
    values: Iterable[int], work: Callable[[int], Callable[[], object]], device, times: int
) -> list[dict]:
    """{"x", "seconds", "peak_mb"} of each value. work: makes ready, and returns what is timed."""
    points = []
    for value in values:
        try:
            ready, taken = work(value), []
            with PeakMemory(device) as memory:
                for _ in range(times):
                    synchronise(device)
                    began = time.perf_counter()
                    ready()
                    synchronise(device)
                    taken.append(time.perf_counter() - began)
        except (RuntimeError, MemoryError) as error:
            if not is_too_little(error):
                raise
            points.append({"x": value, "why": "too little memory"})
            break
        peak = memory.peak - memory.base
        points.append({"x": value, "seconds": median(taken), "peak_mb": peak >> 20})
    return points


def few_shot_step(host, settings, x0: torch.Tensor, science) -> Callable[[], object]:
    """What runs one step of few-shot's paper loop, after a first one."""

    def run() -> None:
        with host.edit("encoder", settings.trainable, 0, 0) as edit:
            science.paper(host, edit, [CONCEPT], [x0], settings, silent())

    run()
    return run


def silent():
    return pack.load().unlearn.core.progress.SILENT


def measure_growth(what: str, quick: bool) -> dict:
    """One of GROWTH, on IconCanvas or, for the encoder's width, on random tokens."""
    values, _, unit = GROWTH[what]
    values = values[: 3 if quick else None]
    times = 1 if quick else STEPS
    if what == "encoder width":
        return {"points": widths(values, times), "unit": unit, "of": GROWTH[what][1]}
    package = pack.load()
    science = package.unlearn.methods
    parts = parts_of("iconcanvas")
    if what in ("concepts", "prompts"):
        host = package.nodes.backend.encoder_model.ComfyEncoder(parts[1])
        opened = host.training()
    else:
        host = package.nodes.backend.model.ComfyModel(*parts, size=(128, 128))
        opened = host.training(gradients=what in ("pictures", "resolution"))

    def work(value: int) -> Callable[[], object]:
        if what == "concepts":
            settings = science.closed_form.ClosedFormSettings(anchor="neutral")
            return lambda: science.closed_form.closed_form(host, OBJECTS[:value], settings)
        if what == "prompts":
            settings = science.closed_form.ClosedFormSettings(
                anchor=ANCHOR, sentences=value // 4, others=value // 4
            )
            return lambda: science.closed_form.closed_form(host, [CONCEPT], settings)
        if what == "steps":
            return lambda: host.sample([f"a photo of a {CONCEPT}"], 1, value)
        count, side = (value, 16) if what == "pictures" else (2, value // 8)
        settings = science.few_shot.FewShotSettings(mode="paper", batch=count, epochs=1)
        x0 = torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(1))
        return few_shot_step(host, settings, x0.to(host.device), science.few_shot)

    with torch.inference_mode(), opened:
        points = points_of(values, work, host.device, times)
    return {"points": points, "unit": unit, "of": GROWTH[what][1]}


def widths(values: Iterable[int], times: int) -> list[dict]:
    """The solve of one layer whose linear map has so many inputs, on random tokens."""
    from unlearn.methods.parts.encoder_solver import HELD
    from unlearn.methods.parts.least_squares import compressed, solve

    from .memory import free_gib

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: list[dict] = []
    for width in values:
        gib = (HELD * width * width * 4 + 4 * width * width * 8) / 2**30
        if gib > ROOM * free_gib():
            found.append({"x": width, "why": f"it needs about {gib:.1f} GiB"})
            break

        def work(width: int) -> Callable[[], Any]:
            generator = torch.Generator().manual_seed(0)

            def tokens(count: int, columns: int) -> torch.Tensor:
                return torch.randn(count, columns, generator=generator).to(device)

            inputs, held = [tokens(2048, width)], [tokens(HELD * width, width)]
            wanted = [tokens(2048, width // 4)]
            return lambda: compressed(solve(inputs, wanted, held, 25.0, 1e-4), inputs, 0.99)

        found += points_of([width], work, device, times)
    return found


GROWTH: dict[str, tuple[tuple[int, ...], str, str]] = {
    "pictures": ((1, 2, 4, 8, 16), "a step of few_shot paper, by its pictures", "pictures"),
    "resolution": ((64, 128, 256, 512), "a step of few_shot paper, by its pictures' side", "px"),
    "steps": ((5, 10, 20, 40), "drawing one picture, by sampler steps", "steps"),
    "concepts": ((1, 2, 4, 8, 16), "closed_form, by concepts", "concepts"),
    "prompts": ((128, 256, 512, 1024), "closed_form, by prompts that it reads", "prompts"),
    "encoder width": (
        (768, 1280, 2048, 3072, 5120),
        "one layer's solve, by inputs of its linear map",
        "inputs",
    ),
}
"""By name: the values, what is measured, and what the values count."""
