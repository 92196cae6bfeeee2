"""Finding the key steps: in which sampling steps a concept is decided, for this concept and model.

KSCU (arXiv 2507.06526) sets its first key step S by hand, one for each kind of concept. Here it is
measured. A trajectory of the concept's prompt is continued, from each of a dozen steps on, with a
neutral prompt, which is what an erasure of the later steps amounts to. How much of the concept is
left in each result says how late an erasure may begin. The model itself is the judge, as a
diffusion classifier (Li et al., arXiv 2303.16203).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ...core.conditioning import Conditioning
from ...core.ddim import at, ddim_step, guided, timesteps
from ...core.kind import Kind
from ...core.model import DiffusionModel
from ...core.progress import SILENT, Progress
from ...core.resume import Resume
from ...files import state_checks
from ...prompts.common_words import COMMON_STYLES, COMMON_WORDS
from ...prompts.sampler import PromptSampler

POINTS = 13  # steps at which a trajectory is continued with the neutral prompt
JUDGED_AT = (300.0, 400.0, 500.0, 600.0, 700.0, 800.0)  # timesteps of the classifier
AT_ONCE = 4  # latents that the denoiser works on at once, with and without the prompt
LITTLE = 0.1  # of the concept may be left where an erasure begins


@dataclass(frozen=True)
class KeySteps:
    """What is left of a concept when the steps from each of `points` on know nothing of it."""

    points: list[int]
    left: list[float]
    """1 is the concept as drawn, 0 is the neutral prompt's picture."""
    steps: int

    @property
    def start(self) -> int:
        """S: the latest step from which on an erasure leaves little of the concept.

        Between the points it is interpolated.
        """
        for i in range(1, len(self.points)):
            before, after = self.left[i - 1], self.left[i]
            if after > LITTLE:
                share = (LITTLE - before) / (after - before) if before < LITTLE else 0.0
                first, last = self.points[i - 1], self.points[i]
                return min(int(first + share * (last - first)), self.steps - 1)
        return self.steps - 1


@torch.no_grad()
def find_key_steps(
    model: DiffusionModel,
    sentence: str,
    concept: str,
    anchor: str,
    neighbours: Sequence[str],
    steps: int = 50,
    guidance: float = 3.0,
    seed: int = 0,
    count: int = 4,
    progress: Progress = SILENT,
) -> KeySteps:
    """Measure when a concept is decided.

    sentence: with a gap, "a photo of a {}". anchor: a neutral word for the gap. neighbours: other
    words for it, which the classifier weighs the concept against. count: trajectories. `progress`
    hears of each step, and may raise to cancel.

    Raises ValueError where the model's pictures of the concept say nothing of it.
    """
    times = timesteps(steps)
    words = model.encode([sentence.format(word) for word in (concept, anchor, *neighbours)])
    own, neutral, empty = words[[0]], words[[1]], model.encode([""])
    generator = torch.Generator().manual_seed(seed)
    noise = model.noise(count, generator)
    x = model.add_noise(torch.zeros_like(noise), noise, at(times[0], noise))
    points = points_of(steps)
    # Rows: the concept's trajectories, then those continued neutrally since each point passed.
    rows = x[:0]
    for step in range(steps):
        progress.stage(f"measuring when {concept} is decided", step, steps)
        if step in points:
            rows = torch.cat([rows, x])
        together = torch.cat([x, rows])
        prompts = Conditioning.cat([own.repeated(count), neutral.repeated(len(rows))])
        prediction = torch.cat(
            [
                guided(
                    model,
                    together[some],
                    times[step],
                    prompts[some],
                    empty.repeated(len(together[some])),
                    guidance,
                )
                for some in torch.arange(len(together)).split(AT_ONCE)
            ]
        )
        after = times[step + 1] if step + 1 < steps else None
        together = ddim_step(model, together, times[step], prediction, after)
        x, rows = together[:count], together[count:]
    finished = torch.cat([rows, x]).unflatten(0, (len(points), count))
    evidence = torch.stack([_evidence(model, x0, words, generator) for x0 in finished])
    none, whole = evidence[0], evidence[-1]
    if not whole > none:
        raise ValueError(
            f"The model's own pictures of {concept} tell no more of it than neutral ones do, so "
            "its key steps cannot be measured; let the kind decide, or name the first one."
        )
    left = ((evidence - none) / (whole - none)).clamp(0, 1)
    return KeySteps(points, left.tolist(), steps)


def points_of(steps: int) -> list[int]:
    """The steps at which a trajectory of so many is continued neutrally, the end among them."""
    return sorted({round(i * steps / (POINTS - 1)) for i in range(POINTS)})


def _evidence(
    model: DiffusionModel, x0: torch.Tensor, words: Conditioning, generator: torch.Generator
) -> torch.Tensor:
    """How much better the concept explains pictures than its neighbours do: a mean over them.

    words: the concept, the anchor, and the neighbours.
    """
    # The same noise for every set of pictures and every word.
    generator = torch.Generator().manual_seed(generator.initial_seed() + 1)
    total = torch.zeros((), device=x0.device)
    for t in JUDGED_AT:
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        x_t = model.add_noise(x0, noise, at(t, x0))
        target = model.target(x0, noise, at(t, x0))
        losses = torch.stack(
            [
                (model.predict(x_t, at(t, x0), words[[i]].repeated(len(x0))) - target)
                .square()
                .mean()
                for i in range(len(words))
            ]
        )
        total = total + losses[1:].mean() / losses[0] - 1
    return total / len(JUDGED_AT)


def found_start(
    model: DiffusionModel,
    concepts: Sequence[str],
    meant: tuple[Kind, str | Mapping[str, str]],
    steps: int,
    guidance: float,
    seed: int,
    resume: Resume,
    progress: Progress = SILENT,
) -> KeySteps:
    """The key steps measured; of several concepts, those of the one that is decided first.

    meant: the concepts' kind, and the anchor as a PromptSampler takes it. steps: of a trajectory.
    """
    kind, anchor = meant
    words = PromptSampler(concepts, kind, random.Random(seed), anchor)
    neighbours = {"style": COMMON_STYLES, "character": ("man", "woman", "child")}
    own = {word.strip().lower() for word in (*concepts, *words.anchors.values())}
    others = [word for word in neighbours.get(kind, COMMON_WORDS) if word not in own][:3]
    sentence = "a photo of a person, {} style" if kind == "style" else "a photo of a {}"

    def measure() -> torch.Tensor:
        found = [
            find_key_steps(
                model,
                sentence,
                concept,
                words.anchors[concept],
                others,
                steps,
                guidance,
                seed,
                progress=progress,
            )
            for concept in concepts
        ]
        earliest = min(found, key=lambda one: one.start)
        return torch.tensor([earliest.points, earliest.left], dtype=torch.float64)

    def check(kept: torch.Tensor) -> None:
        known = torch.tensor(points_of(steps), dtype=torch.float64)
        state_checks.check_tensor(kept, (2, len(known)), {torch.float64}, "measured start")
        is_so = bool((kept[0] == known).all() and (kept[1] >= 0).all() and (kept[1] <= 1).all())
        state_checks.check(is_so, "its measured start is of other steps")

    points, left = resume.once("start", measure, check, 2**20).tolist()
    return KeySteps([int(point) for point in points], left, steps)
