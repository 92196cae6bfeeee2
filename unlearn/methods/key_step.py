"""Key-step concept unlearning, KSCU: Zhang et al., arXiv 2507.06526.

The denoiser is tuned only at those sampling steps in which the concept takes shape. Mode "paper" is
the paper's algorithm and settings; "balanced", the default, draws the concept to a neutral word,
holds other prompts in place, and stops by itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from statistics import mean
from typing import Any

import torch

from ..core.conditioning import Conditioning
from ..core.ddim import Trajectory, at, timesteps
from ..core.edit import Edit
from ..core.erasure import Erasure
from ..core.model import DiffusionModel
from ..core.progress import OnStep, Progress, as_progress
from ..core.resume import Resume, Run
from ..core.token_reading import Read
from ..core.token_slots import check_takes_vectors
from ..files import state_checks
from ..prompts.anchor_choice import anchored
from ..prompts.sampler import PromptSampler, anchor_of
from ..prompts.templates import augmented
from ..prompts.word_checks import as_read, check_typed
from .parts import closed_form
from .parts.adversarial import Hardening, check_hardening
from .parts.concepts import STOP_WINDOW, check_concepts
from .parts.key_step_search import found_start
from .parts.key_step_settings import KeyStepSettings
from .parts.key_step_terms import (
    empty_term,
    empty_weights,
    erase_term,
    noise_share,
    noisy,
    predictions,
)
from .parts.method import Method
from .parts.retention import EncodeCache, RetentionSet, drawn
from .parts.run import run_method
from .parts.walk import Reached, check_walk, latest_start, schedule, walk

HARDENED_ON = 4  # pictures of each concept


def key_step(
    model: DiffusionModel,
    concepts: Sequence[str],
    settings: KeyStepSettings = KeyStepSettings(),  # noqa: B008 (frozen)
    progress: Progress | OnStep | None = None,
    resume: Resume | None = None,
) -> Erasure:
    """Unlearn concepts in the denoiser, at its key steps.

    The same seed gives the same erasure on one machine, unless it is hardened, which goes by the
    clock; also when the run was cut short and went on by `resume`, which the caller closes once the
    erasure is kept. Raises ValueError for bad input, before any work, and Diverged, which
    carries the last good erasure; `progress` may raise to cancel. The model is afterwards what it
    was.
    """
    progress = as_progress(progress)
    check_settings(concepts, settings, model.readings)
    concepts, settings = as_read(concepts, settings, model.readings)
    settings = settings.fitted(model)
    resume = resume or Resume()
    settings, chosen = anchored(model, concepts, settings, progress=progress)
    record: dict[str, Any] = {"kind": settings.named_as, **chosen}
    if settings.harden:
        check_takes_vectors(model)
    run_settings = settings
    if settings.start == "auto":
        found = found_start(
            model,
            concepts,
            (settings.named_as, settings.anchor),
            settings.steps,
            guidance_of(model, settings)[0],
            settings.seed,
            resume,
            progress,
        )
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
        lambda edit: run(model, edit, list(concepts), run_settings, progress, resume),
        **record,
        start=run_settings.first,
    )


def check_settings(
    concepts: Sequence[str], settings: KeyStepSettings, read: Read | None = None
) -> None:
    """Raises ValueError with one sentence where they cannot be used. read: see `check_typed`."""
    check_concepts(concepts, None)
    # The paper's loss has the empty prompt where no anchor is named.
    kind = settings.named_as if settings.mode == "balanced" else None
    check_typed(concepts, settings.anchor, settings.protect, kind, read)
    check_hardening(settings.mode, settings.harden)
    check_start(settings.first, settings.steps)
    if settings.mode == "paper" and settings.precision == "bfloat16" and settings.rank:
        raise ValueError(
            "Precision bfloat16 rounds whole weights, which a rank does not have: choose rank 0, "
            "or precision float32."
        )


def check_start(first: int, steps: int) -> None:
    """Raises ValueError with one sentence unless a trajectory of so many steps has this one."""
    if not 0 <= first < steps:
        raise ValueError(
            f"The first key step is {first}, but a trajectory of {steps} steps "
            f"has steps 0 to {steps - 1}; choose one of these or the kind's own."
        )


def guidance_of(model: DiffusionModel, settings: KeyStepSettings) -> tuple[float, dict]:
    """(classifier-free guidance of the trajectories, what the denoiser is told of it instead).

    By Flux's recipe a denoiser that is told its guidance, as Flux dev is, draws by that alone.
    """
    guidance = settings.guidance
    assert guidance is not None  # `fitted` has decided it
    if settings.mode == "paper" and settings.recipe == "flux" and model.told_guidance:
        return 1.0, {"guidance": guidance}
    return guidance, {}


def paper(
    model: DiffusionModel,
    edit: Edit,
    concepts: list[str],
    settings: KeyStepSettings,
    progress: Progress,
    resume: Resume,
) -> None:
    """The paper's loop."""
    noise = torch.Generator().manual_seed(settings.seed)
    guidance, told = guidance_of(model, settings)
    trajectory = Trajectory(model, settings.steps, guidance, noise)
    edit.kept_as = torch.bfloat16 if settings.precision == "bfloat16" else None
    assert settings.learning_rate is not None  # `fitted` has decided it
    optimiser = edit.adam((0.9, 0.999), 1e-8, rate=settings.learning_rate)
    rng = random.Random(settings.seed)
    total, times = settings.length(len(concepts)), timesteps(settings.steps)
    run = Run(
        resume,
        edit,
        steps=total,
        check=lambda more: state_checks.check_names(more, (), "walk"),
        optimiser=optimiser,
        trajectory=trajectory,
        rng=rng,
    )
    words = PromptSampler(concepts, settings.named_as, rng)
    shares, encoded = [noise_share(model, t) for t in times], EncodeCache(model, told)
    pools = {one: augmented(random.Random(settings.seed), settings.kind, one) for one in concepts}
    latest = settings.steps - 1 if settings.is_older else latest_start(settings.steps)

    def iteration(number: int, which: int, step: int) -> None:
        concept, t = concepts[which], times[step]
        prompt, empty = encoded(concept), encoded("")
        anchor = encoded(anchor_of(settings.anchor, concept))
        if settings.is_older:
            trajectory.forget()
        x = trajectory.to(step, prompt, empty)
        asked = prompt
        if number >= (1 - settings.augment) * total:
            asked = noisy(encoded(rng.choice(pools[concept])), settings.embedding_noise, noise)
        with edit.off():
            own, none, neutral = predictions(model, x, t, prompt, empty, anchor)
        student, student_none = predictions(model, x, t, asked, empty)
        weight, turn = empty_weights(settings.empty_term, shares[step], step)
        loss = erase_term(student, own, neutral, settings.negative)
        loss = loss + weight * empty_term(student_none, own, none, turn)
        keep = None
        if settings.projection != "off":
            others = [encoded(prompt) for prompt in words.others(2)]
            with edit.off():
                was = torch.cat(predictions(model, x, t, *others))
            keep = (torch.cat(predictions(model, x, t, *others)) - was).square().mean()
        value = edit.step(optimiser, loss, keep=keep, projection=settings.projection)
        progress.step(number + 1, total, value, edit)

    order = schedule(settings.first, settings.steps, total, len(concepts), latest)
    walk(run, order, iteration)


def balanced(
    model: DiffusionModel,
    edit: Edit,
    concepts: list[str],
    settings: KeyStepSettings,
    progress: Progress,
    resume: Resume,
) -> None:
    """Ours: to a neutral word, other prompts held, until the concept is gone.

    It begins with what can be solved; the walk mends what is left. Other prompts are held on
    pictures that the original model drew of them, at the same noise.
    """
    noise = torch.Generator().manual_seed(settings.seed)
    guidance, _ = guidance_of(model, settings)
    trajectory = Trajectory(model, settings.steps, guidance, noise, settings.batch)
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
    around = concepts, settings.named_as
    words = PromptSampler(*around, rng, settings.anchor, settings.protect)
    encoded = EncodeCache(model)
    push = settings.beyond
    if settings.start_solved and not run.done:
        closed_form.start(model, edit, optimiser, words, concepts, push)
    held = RetentionSet(model, edit, around, settings.protect, settings.seed, resume, progress)
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
        neutral = encoded(*(sentence.format(words.anchors[concept]) for sentence in sentences))
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
        progress.step(number + 1, total, value, edit)
        if all(len(some) == window and mean(some) <= settings.near for some in recent):
            raise Reached

    # Ours may begin at nine tenths of the steps, the paper's only before.
    latest = 9 * settings.steps // 10
    order = schedule(settings.first, settings.steps, total, len(concepts), latest)
    with suppress(Reached):
        walk(run, order, iteration)
    if settings.harden:
        prompts = [s.format(c) for c in concepts for s in words.sentences(HARDENED_ON)]
        with edit.off():
            pictures = resume.once_latents(
                "concepts",
                model,
                len(prompts),
                lambda: drawn(model, prompts, settings.seed, progress, "drawing the concept"),
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
            progress,
        ).network(held, pictures, times[settings.first :], settings.retention)


METHOD = Method(
    name="key_step",
    title="Key-Step UNet Unlearn",
    about="Takes a concept out of the denoiser, at those sampling steps in which it takes shape. "
    "No pictures are needed, and it can be used together with an erased text encoder.",
    paper="2507.06526",
    part="denoiser",
    settings=KeyStepSettings,
    train=key_step,
    check=check_settings,
    resumes=True,
    curve={
        "balanced": "It begins near zero, since most is solved before the first step, and rises "
        "within each walk from noise to picture: it is relative to what the concept does at the "
        "step, which is little at the end. The training ends by itself.",
        "paper": "The same key steps are walked again and again, from noise to picture: it goes up "
        "and down within a walk, and falls from walk to walk.",
    },
    recorded=("start",),
)
