"""Key-step concept unlearning, KSCU: Zhang et al., arXiv 2507.06526.

The network is tuned only at those sampling steps in which the concept takes shape. Mode "paper" is
the paper's algorithm and settings; "balanced", the default, draws the concept to a neutral word,
holds other prompts in place, and stops by itself.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Literal

import torch

from ..core.conditioning import Conditioning
from ..core.ddim import Trajectory, at, timesteps
from ..core.edit import Edit
from ..core.erasure import Erasure
from ..core.gradient_projection import Projection
from ..core.kind import Kind
from ..core.model import DiffusionModel
from ..core.progress import OnStep
from ..core.resume import Resume, Run
from ..core.token_reading import Read
from ..core.token_slots import check_takes_vectors
from ..core.trainable import NetworkTrainable
from ..files import state_checks as fitting
from ..prompts.common_words import COMMON_STYLES, COMMON_WORDS
from ..prompts.sampler import PromptSampler
from ..prompts.templates import augmented
from ..prompts.word_checks import as_read, check_typed
from .parts import closed_form
from .parts.adversarial import Hardening, check_hardening
from .parts.concepts import STOP_WINDOW, check_concepts
from .parts.key_step_search import KeySteps, find_key_steps, points_of
from .parts.retention import EncodeCache, RetentionSet, drawn
from .parts.run import run_method

Task = Literal["object", "style", "instance", "nudity"]
KINDS = {"object": "object", "style": "style", "instance": "character", "nudity": "object"}


@dataclass(frozen=True)
class TaskSettings:
    """The paper's, for one kind of concept (its table of hyper-parameters)."""

    start: int
    """S: the first key step of 50; 0 is the noisiest."""
    iterations: int
    """L."""
    trainable: NetworkTrainable


TASKS: dict[Task, TaskSettings] = {
    "object": TaskSettings(14, 750, "outside-cross-attention"),
    "style": TaskSettings(24, 500, "cross-attention"),
    "instance": TaskSettings(40, 200, "cross-attention"),
    "nudity": TaskSettings(14, 750, "outside-cross-attention"),
}
PAPER_STEPS = 50
SEVERAL_INSTANCES = 750  # L where more than one instance is unlearnt
WALKS_A_START = 8  # full walks after which the first key step moves on by one
LATEST_START = 0.9  # of the steps
HARDENED_ON = 4  # pictures of each concept


@dataclass(frozen=True)
class KeyStepSettings:
    mode: Literal["balanced", "paper"] = "balanced"
    task: Task = "object"
    """What the concept is; "instance" is a character or a face."""
    steps: int = PAPER_STEPS
    """E: sampling steps of a trajectory."""
    start: int | Literal["auto"] | None = None
    """S: the first key step. None: the paper's for the task, scaled to `steps`. "auto": measured
    for this concept and model (find_start.py)."""
    iterations: int | None = None
    """L: at most so many. None: the paper's for the task, or 240 in mode "balanced"."""
    trainable: NetworkTrainable | None = None
    """Which weights. None: the paper's for the task, or "cross-attention" in mode "balanced"."""
    rank: int = 0
    """Rank of the deltas; 0 trains full ones."""
    seed: int = 0
    anchor: str = ""
    """What the concept is drawn to. Empty: nothing (the paper), or a neutral word ("balanced")."""
    guidance: float = 3.0
    """Classifier-free guidance of the trajectories."""
    negative: float = 1.0
    """Mode "paper": how far beyond the anchor the concept is pushed."""
    empty_term: Literal["paper", "older script"] = "paper"
    """Mode "paper": the weights of the second term; the authors' older script had others."""
    learning_rate: float = 1e-5
    """Mode "paper": Adam's, the same for every weight."""
    augment: float = 0.05
    """Mode "paper": the share of the iterations, the last ones, whose prompts are augmented."""
    embedding_noise: float = 1e-5
    """Mode "paper": standard deviation of the noise on an augmented prompt's conditioning."""
    projection: Projection = "off"
    """What in the gradient works against other prompts is taken out (see preserve.py)."""
    rate: float = 0.1
    """Mode "balanced": the size of a step relative to the weights (model.spectral_scale)."""
    push: float | None = None
    """Mode "balanced": as `negative`. None: by task (closed_form.PUSH)."""
    start_solved: bool = True
    """Mode "balanced": begin with what can be solved in closed form (closed_form.py)."""
    retention: float = 4.0
    """Mode "balanced": weight of keeping other prompts' predictions."""
    near: float = 0.2
    """Mode "balanced": stop once this share of the concept's own prediction is left."""
    batch: int = 2
    """Mode "balanced": trajectories walked at once."""
    protect: tuple[str, ...] = ()
    """Mode "balanced": words whose prompts must stay what they are."""
    harden: float = 0.0
    """Mode "balanced": seconds of training against words that would bring the concept back
    (harden.py), once it is gone."""

    @property
    def kind(self) -> Kind:
        """What the concept is."""
        return KINDS[self.task]

    @property
    def first(self) -> int:
        """S in steps of this run; the paper's where it is yet to be found."""
        if isinstance(self.start, int):
            return self.start
        return round(TASKS[self.task].start * self.steps / PAPER_STEPS)

    def length(self, concepts: int) -> int:
        """L of this run."""
        if self.iterations is not None:
            return self.iterations
        if self.mode == "balanced":
            return 240
        several = self.task == "instance" and concepts > 1
        return SEVERAL_INSTANCES if several else TASKS[self.task].iterations

    @property
    def rows(self) -> int:
        """Latents that are kept for one backward pass, at most."""
        if self.mode == "paper":
            return 2 if self.projection == "off" else 4
        return 2 * self.batch + RetentionSet.AT_ONCE

    @property
    def beyond(self) -> float:
        """How far beyond the anchor the concept is pushed, in mode "balanced"."""
        return closed_form.PUSH[KINDS[self.task]] if self.push is None else self.push

    @property
    def weights(self) -> NetworkTrainable:
        if self.trainable is not None:
            return self.trainable
        return "cross-attention" if self.mode == "balanced" else TASKS[self.task].trainable


def key_step(
    model: DiffusionModel,
    concepts: Sequence[str],
    settings: KeyStepSettings = KeyStepSettings(),
    on_step: OnStep | None = None,
    resume: Resume | None = None,
) -> Erasure:
    """Unlearn concepts in the denoising network, at its key steps.

    The same seed gives the same erasure on one machine, unless it is hardened, which goes by the
    clock; also when the run was cut short and went on by `resume`, which the caller closes once the
    erasure is kept. Raises ValueError for bad input, before any work, and model.Diverged, which
    carries the last good erasure; `on_step` may raise to cancel. The model is afterwards what it
    was.
    """
    check_settings(concepts, settings, model.readings)
    concepts, settings = as_read(concepts, settings, model.readings)
    resume = resume or Resume()
    record = {"kind": KINDS[settings.task]}
    if settings.harden:
        check_takes_vectors(model)
    run_settings = settings
    if settings.start == "auto":
        found = found_start(model, concepts, settings, resume, on_step)
        record["key_steps"] = asdict(found)
        run_settings = replace(settings, start=found.start)
    run = paper if settings.mode == "paper" else balanced
    return run_method(
        model,
        "denoiser",
        settings.weights,
        "key_step",
        list(concepts),
        settings,
        lambda edit: run(model, edit, list(concepts), run_settings, on_step, resume),
        **record,
        start=run_settings.first,
    )


def check_settings(
    concepts: Sequence[str], settings: KeyStepSettings, read: Read | None = None
) -> None:
    """Raises ValueError with one sentence where they cannot be used. read: see `check_typed`."""
    check_concepts(concepts, None)
    # The paper's loss has the empty prompt where no anchor is named.
    kind = KINDS[settings.task] if settings.mode == "balanced" else None
    check_typed(concepts, settings.anchor, settings.protect, kind, read)
    check_hardening(settings.mode, settings.harden)
    check_start(settings.first, settings.steps)


def check_start(first: int, steps: int) -> None:
    """Raises ValueError with one sentence unless a trajectory of so many steps has this one."""
    if not 0 <= first < steps:
        raise ValueError(
            f"The first key step is {first}, but a trajectory of {steps} steps "
            f"has steps 0 to {steps - 1}; choose one of these or the task's own."
        )


def found_start(
    model: DiffusionModel,
    concepts: Sequence[str],
    settings: KeyStepSettings,
    resume: Resume,
    on_step: OnStep | None = None,
) -> KeySteps:
    """The key steps measured; of several concepts, those of the one that is decided first."""
    kind = KINDS[settings.task]
    words = PromptSampler(concepts, kind, random.Random(settings.seed), settings.anchor)
    neighbours = {"style": COMMON_STYLES, "character": ("man", "woman", "child")}
    own = {word.strip().lower() for word in (*concepts, words.anchor)}
    others = [word for word in neighbours.get(kind, COMMON_WORDS) if word not in own][:3]
    sentence = "a photo of a person, {} style" if kind == "style" else "a photo of a {}"

    def measure() -> torch.Tensor:
        found = [
            find_key_steps(
                model,
                sentence,
                concept,
                words.anchor,
                others,
                settings.steps,
                settings.guidance,
                settings.seed,
                on_step=on_step,
            )
            for concept in concepts
        ]
        earliest = min(found, key=lambda one: one.start)
        return torch.tensor([earliest.points, earliest.left], dtype=torch.float64)

    def check(kept: torch.Tensor) -> None:
        known = torch.tensor(points_of(settings.steps), dtype=torch.float64)
        fitting.check_tensor(kept, (2, len(known)), {torch.float64}, "measured start")
        is_so = bool((kept[0] == known).all() and (kept[1] >= 0).all() and (kept[1] <= 1).all())
        fitting.check(is_so, "its measured start is of other steps")

    points, left = resume.once("start", measure, check, 2**20).tolist()
    return KeySteps([int(point) for point in points], left, settings.steps)


def schedule(
    start: int, steps: int, iterations: int, concepts: int = 1
) -> Iterator[tuple[int, int]]:
    """(concept, step) of each iteration: the key steps walked in order, again and again.

    Every concept is walked in turn; after eight such rounds the walk begins one step later, never
    past nine tenths of the steps.
    """
    done, walks = 0, 0
    while True:
        for concept in range(concepts):
            for step in range(start, steps):
                if done == iterations:
                    return
                yield concept, step
                done += 1
        walks += 1
        if walks % WALKS_A_START == 0 and start + 1 <= LATEST_START * steps:
            start += 1


def predictions(
    model: DiffusionModel, x: torch.Tensor, t: float, *prompts: Conditioning
) -> tuple[torch.Tensor, ...]:
    """The network's prediction at the same x_t for each of several prompts, in one pass."""
    together = torch.cat([x] * len(prompts))
    return model.predict(together, at(t, together), Conditioning.cat(prompts)).chunk(len(prompts))


def erase_term(
    student: torch.Tensor, own: torch.Tensor, neutral: torch.Tensor, beyond: float
) -> torch.Tensor:
    """mse(e*(x, c'), e(x, 0) - g (e(x, c) - e(x, 0))): the concept's prediction, turned away."""
    return (student - (neutral - beyond * (own - neutral))).square().mean()


def empty_term(
    student: torch.Tensor, own: torch.Tensor, empty: torch.Tensor, beyond: float
) -> torch.Tensor:
    """mse(e*(x, 0), e(x, 0) - l1 (e(x, c) - e(x, 0))): the empty prompt's, turned a little."""
    return erase_term(student, own, empty, beyond)


def empty_weights(variant: str, noise: float, iteration: int) -> tuple[float, float]:
    """(l2, l1): the second term's weight, and how far it turns.

    noise: how far a latent is on its way to noise, in 0..1: the timestep, or a flow's sigma.
    """
    if variant == "paper":
        return 1e-4, 0.02 * (1 - noise)
    return 2e-5, iteration / 10000


def noise_share(model: DiffusionModel, t: float) -> float:
    """How far a latent at a timestep in 0..1000 is on its way to noise, in 0..1.

    Of a flow, which predicts noise less latents, the share that its own shift makes of the
    timestep; of diffusion the timestep's.
    """
    one = torch.ones(1, 1, 1, 1, device=model.device)
    none, middle = torch.zeros_like(one), at(500.0, one)
    if abs(model.target(one, none, middle).item() + 1) < 1e-3:
        return model.add_noise(none, one, at(t, one)).item()
    return t / 1000


def walk(
    run: Run, order: Iterator[tuple[int, int]], iteration: Callable[[int, int, int], float]
) -> None:
    """Call iteration(number, concept, step) for what is left of the order."""
    for number, (concept, step) in enumerate(order):
        if number >= run.done:
            iteration(number, concept, step)
            run.offer()


def paper(
    model: DiffusionModel,
    edit: Edit,
    concepts: list[str],
    settings: KeyStepSettings,
    on_step: OnStep | None,
    resume: Resume,
) -> None:
    """The paper's loop."""
    noise = torch.Generator().manual_seed(settings.seed)
    trajectory = Trajectory(model, settings.steps, settings.guidance, noise)
    optimiser = edit.adam((0.9, 0.999), 1e-8, rate=settings.learning_rate)
    rng = random.Random(settings.seed)
    total, times = settings.length(len(concepts)), timesteps(settings.steps)
    run = Run(
        resume,
        edit,
        steps=total,
        check=lambda more: fitting.check_names(more, (), "walk"),
        optimiser=optimiser,
        trajectory=trajectory,
        rng=rng,
    )
    words = PromptSampler(concepts, KINDS[settings.task], rng)
    shares, encoded = [noise_share(model, t) for t in times], EncodeCache(model)

    def iteration(number: int, which: int, step: int) -> None:
        concept, t = concepts[which], times[step]
        prompt, empty, anchor = encoded(concept), encoded(""), encoded(settings.anchor)
        x = trajectory.to(step, prompt, empty)
        asked = prompt
        if number >= (1 - settings.augment) * total:
            asked = noisy(
                encoded(augmented(rng, settings.task, concept)), settings.embedding_noise, noise
            )
        with edit.off():
            own, none, neutral = predictions(model, x, t, prompt, empty, anchor)
        student, student_none = predictions(model, x, t, asked, empty)
        weight, turn = empty_weights(settings.empty_term, shares[step], number)
        loss = erase_term(student, own, neutral, settings.negative)
        loss = loss + weight * empty_term(student_none, own, none, turn)
        keep = None
        if settings.projection != "off":
            others = [encoded(prompt) for prompt in words.others(2)]
            with edit.off():
                was = torch.cat(predictions(model, x, t, *others))
            keep = (torch.cat(predictions(model, x, t, *others)) - was).square().mean()
        value = edit.step(optimiser, loss, keep=keep, projection=settings.projection)
        if on_step:
            on_step(number + 1, total, value, edit)

    walk(run, schedule(settings.first, settings.steps, total, len(concepts)), iteration)


def noisy(prompt: Conditioning, deviation: float, generator: torch.Generator) -> Conditioning:
    noise = torch.randn(prompt.cross.shape, generator=generator).to(prompt.cross)
    return replace(prompt, cross=prompt.cross + deviation * noise)


def balanced(
    model: DiffusionModel,
    edit: Edit,
    concepts: list[str],
    settings: KeyStepSettings,
    on_step: OnStep | None,
    resume: Resume,
) -> None:
    """Ours: to a neutral word, other prompts held, until the concept is gone.

    It begins with what can be solved; the walk mends what is left. Other prompts are held on
    pictures that the original model drew of them, at the same noise.
    """
    noise = torch.Generator().manual_seed(settings.seed)
    trajectory = Trajectory(model, settings.steps, settings.guidance, noise, settings.batch)
    optimiser = edit.adam((0.9, 0.98), 1e-12, relative_rate=settings.rate)
    rng = random.Random(settings.seed)
    total, times = settings.length(len(concepts)), timesteps(settings.steps)
    count = settings.batch
    # Of each concept's last whole walk: how much of its own prediction is left. At the last steps,
    # where pictures are all but finished, there is little to erase.
    window = max(STOP_WINDOW, settings.steps - settings.first)
    run = Run(
        resume,
        edit,
        steps=total,
        check=lambda more: check_walk(more, len(concepts), window, count),
        optimiser=optimiser,
        trajectory=trajectory,
        rng=rng,
    )
    around = concepts, KINDS[settings.task]
    words = PromptSampler(*around, rng, settings.anchor, settings.protect)
    encoded = EncodeCache(model)
    push = settings.beyond
    if settings.start_solved and not run.done:
        closed_form.start(model, edit, optimiser, words, concepts, push)
    held = RetentionSet(model, edit, around, settings.protect, settings.seed, resume, on_step)
    recent = run.more.setdefault("recent", [[] for _ in concepts])

    def iteration(number: int, which: int, step: int) -> None:
        concept, t = concepts[which], times[step]
        if step != trajectory.step + 1:  # a new walk
            run.more["walked"] = words.sentences(count)
        walked = encoded(*(sentence.format(concept) for sentence in run.more["walked"]))
        x = trajectory.to(step, walked, encoded("").repeated(count))
        # Other sentences than those walked along: a walk is too long to see only two of them.
        sentences = words.sentences(count)
        own = encoded(*(sentence.format(concept) for sentence in sentences))
        neutral = encoded(*(sentence.format(words.anchor) for sentence in sentences))
        others, others_prompts = held.add_noise(rng, noise, t)
        prompts = Conditioning.cat([own, neutral, others_prompts])
        inputs = torch.cat([x, x, others])
        with edit.off():
            was = model.predict(inputs, at(t, inputs), prompts)
        now = model.predict(inputs, at(t, inputs), prompts)
        target = was[count : 2 * count] - push * (was[:count] - was[count : 2 * count])
        # Relative to how far the concept's prediction is from it at this step.
        far = (was[:count] - target).square().mean().clamp(min=1e-12)
        left = (now[:count] - target).square().mean() / far
        kept = (now[count:] - was[count:]).square().mean() / far
        value = edit.step(
            optimiser, left + settings.retention * kept, keep=kept, projection=settings.projection
        )
        recent[which] = [*recent[which][1 - window :], left.item()]
        if on_step:
            on_step(number + 1, total, value, edit)
        if all(len(some) == window and mean(some) <= settings.near for some in recent):
            raise Reached

    with suppress(Reached):
        walk(run, schedule(settings.first, settings.steps, total, len(concepts)), iteration)
    if settings.harden:
        prompts = [s.format(c) for c in concepts for s in words.sentences(HARDENED_ON)]
        with edit.off():
            pictures = resume.once_latents(
                "concepts",
                model,
                len(prompts),
                lambda: drawn(model, prompts, settings.seed, on_step, "drawing the concept"),
            )
        optimiser.state.clear()  # it is done, and hardening has its own
        Hardening(
            model,
            edit,
            concepts,
            words,
            push,
            settings.rate * closed_form.REST,
            settings.harden,
            settings.seed,
            on_step,
        ).network(held, pictures, times[settings.first :], settings.retention)


LONGEST = 200  # letters of a sentence


def check_walk(more: dict, concepts: int, window: int, count: int) -> None:
    """Raises Misfit for what is not kept of a walk in mode "balanced"."""
    fitting.check_names(more, ("recent", "walked"), "walk")
    recent, walked = more["recent"], more["walked"]
    fitting.check(isinstance(recent, list) and len(recent) == concepts, "its walk is of others")
    for some in recent:
        fitting.check_numbers(some, "walk", window)
    fitting.check(isinstance(walked, list) and len(walked) == count, "its walk is of others")
    for sentence in walked:
        # Any other gap than {} would have `format` do more than put the concept in.
        is_plain = isinstance(sentence, str) and re.fullmatch(r"[^{}]*\{\}[^{}]*", sentence)
        fitting.check(bool(is_plain) and len(sentence) <= LONGEST, "its walk has no sentences")


class Reached(Exception):
    """The concept is far enough gone."""
