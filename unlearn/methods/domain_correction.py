"""Domain correction, DoCo: Wu et al., arXiv 2405.15304 (AAAI 2025).

What the denoiser makes of the concept's prompts is moved into the domain of an anchor's, by a
discriminator that cannot tell them apart any more, while gradients that would harm other prompts
are left out. Mode "paper" is the paper's algorithm and settings; "balanced", the default, also
draws the two together directly, holds other prompts in place, and stops by itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

import torch

from ..core.conditioning import Conditioning
from ..core.edit import Edit
from ..core.erasure import Erasure
from ..core.gradient_projection import Projection
from ..core.kind import CLOSEST, NEUTRAL, Kind
from ..core.model import DiffusionModel
from ..core.progress import OnStep, Progress, as_progress
from ..core.resume import Resume, Run
from ..core.token_reading import Read
from ..core.trainable import NetworkTrainable
from ..files import state_checks
from ..prompts.anchor_choice import anchored
from ..prompts.sampler import PromptSampler
from ..prompts.word_checks import as_read, asked_anchor, check_typed
from .parts import closed_form, shared
from .parts.anchor_pictures import Anchors
from .parts.concepts import STOP_WINDOW, check_concepts
from .parts.discriminator import Discriminator, discriminator_loss, generator_loss
from .parts.doco_paper import Batch, Paper
from .parts.method import Method
from .parts.retention import EncodeCache, RetentionSet
from .parts.run import run_method
from .parts.settings import BALANCED, PAPER, MethodSettings, Mode, constant, setting


@dataclass(frozen=True)
class DomainCorrectionSettings(MethodSettings):
    mode: Mode = shared.mode()
    kind: Kind = shared.kind()
    anchor: str = setting(
        "",
        "What is drawn in the concept's place, for example dog for a certain breed; closest "
        "chooses it. Empty, or neutral: a neutral word by kind. For a style in mode paper: what "
        "is painted.",
        optional=True,
    )
    pictures: int | None = setting(
        None,
        "How many pictures of the anchor the model draws first.",
        at_least=1,
        at_most=10000,
        own="32, in mode paper 1000",
        option="shots",
        label="shots",
    )
    prompts: int = constant(200, "From how many different prompts they are drawn, at most.")
    iterations: int | None = setting(
        None,
        "So many steps, at most.",
        at_least=1,
        at_most=100000,
        own="240, in mode paper 2000",
        option="steps",
        label="max_steps",
    )
    alone: int | None = constant(
        None,
        "Steps at first that train the discriminator alone. None: a tenth of the iterations, in "
        "mode paper half of them.",
    )
    trainable: NetworkTrainable = setting(
        "cross-attention-kv", "Which weights are trained.", widget=None
    )
    rank: int = shared.rank()
    seed: int = shared.seed()
    batch: int | None = setting(
        None,
        "Pictures of a step.",
        at_least=1,
        at_most=64,
        own="4, in mode paper 8",
        widget=None,
    )
    projection: Projection = shared.projection("orthogonal")
    learning_rate: float = constant(4.8e-5, "AdamW's.", modes=PAPER)
    discriminator_rate: float | None = constant(
        None,
        "Adam's, of the discriminator.",
        own="1e-4, in mode paper for a style 5e-4",
    )
    rate: float = constant(
        0.1,
        "The size of a step relative to the weights (core.edit.spectral_scale).",
        modes=BALANCED,
    )
    adversarial: float = constant(0.1, "Weight of deceiving the discriminator.", modes=BALANCED)
    retention: float = constant(
        4.0, "Weight of keeping other prompts' predictions.", modes=BALANCED
    )
    start_solved: bool = constant(
        True, "Begin with what can be solved in closed form (closed_form.py).", modes=BALANCED
    )
    near: float = constant(
        0.2, "Stop once this share of the distance from the anchor is left.", modes=BALANCED
    )
    protect: tuple[str, ...] = shared.protect()
    as_released: bool = setting(
        False,
        "The discriminator also takes the gradient of deceiving it, which the authors' code leaves "
        "in it.",
        modes=PAPER,
        optional=True,
    )

    @property
    def judging_rate(self) -> float:
        """The discriminator's."""
        if self.discriminator_rate is not None:
            return self.discriminator_rate
        return 5e-4 if self.mode == "paper" and self.kind == "style" else 1e-4

    @property
    def uses_anchor(self) -> bool:
        # For a style the paper's anchor is what is painted.
        return self.mode == "balanced" or self.kind != "style"

    @property
    def rows(self) -> int:
        size = self.of("batch", 8, 4)
        return 2 * size if self.mode == "paper" else 2 * size + RetentionSet.AT_ONCE

    def of(self, name: str, paper: int, balanced: int) -> int:
        """A number of this run: the user's own, or the mode's."""
        own = getattr(self, name)
        return own if own is not None else paper if self.mode == "paper" else balanced


def domain_correction(
    model: DiffusionModel,
    concepts: Sequence[str],
    settings: DomainCorrectionSettings = DomainCorrectionSettings(),
    progress: Progress | OnStep | None = None,
    resume: Resume | None = None,
) -> Erasure:
    """Unlearn concepts in the denoiser's cross-attention.

    The same seed gives the same erasure on one machine, also when the run was cut short and went on
    by `resume`, which the caller closes once the erasure is kept. Raises ValueError for bad input,
    before any work, and Diverged, which carries the last good erasure; `progress` may raise to
    cancel. The model is afterwards what it was.
    """
    progress = as_progress(progress)
    check_settings(concepts, settings, model.readings)
    if not settings.uses_anchor and asked_anchor(settings.anchor) in (NEUTRAL, CLOSEST):
        settings = replace(settings, anchor="")
    concepts, settings = as_read(concepts, settings, model.readings)
    settings, chosen = anchored(model, concepts, settings, progress=progress)
    resume = resume or Resume()
    return run_method(
        model,
        "denoiser",
        settings.trainable,
        "domain_correction",
        list(concepts),
        settings,
        lambda edit: correct(model, edit, list(concepts), settings, progress, resume),
        kind=settings.kind,
        **chosen,
    )


def check_settings(
    concepts: Sequence[str], settings: DomainCorrectionSettings, read: Read | None = None
) -> None:
    """Raises ValueError with one sentence where they cannot be used. read: see `check_typed`."""
    check_concepts(concepts, None)
    check_typed(concepts, settings.anchor, settings.protect, settings.kind, read)
    if settings.prompts < 1 or settings.of("pictures", 1000, 32) < 1:
        raise ValueError("It learns from anchor pictures: let the model draw at least one of them.")


def correct(
    model: DiffusionModel,
    edit: Edit,
    concepts: list[str],
    settings: DomainCorrectionSettings,
    progress: Progress,
    resume: Resume,
) -> None:
    """Both modes' loop: discriminator and denoiser in turn, on noised anchor pictures."""
    total, size = settings.of("iterations", 2000, 240), settings.of("batch", 8, 4)
    alone = settings.of("alone", total // 2, total // 10)
    rng = random.Random(settings.seed)
    noise = torch.Generator().manual_seed(settings.seed)
    anchors = Anchors(model, edit, concepts, settings, resume, progress)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        side, padding = min(anchors.x0.shape[-2:]), 1 if settings.mode == "paper" else 2
        judge = Discriminator(anchors.x0.shape[1], side, padding).to(model.device)
    judging = torch.optim.Adam(judge.parameters(), settings.judging_rate, betas=(0.5, 0.999))
    mode = Paper if settings.mode == "paper" else Balanced
    erasing = mode(model, edit, anchors, concepts, settings, resume, progress)
    optimiser = erasing.optimiser

    def check(more: dict) -> None:
        state_checks.check_names(more, {"number", *(more.keys() & {"left"})}, "count of steps")
        state_checks.check(type(more["number"]) is int, "its count of steps is no number")
        state_checks.check_number(more["number"], "count of steps", 1, total)
        state_checks.check_numbers(more.get("left", []), "rest", STOP_WINDOW)

    parts = {"judge": judge, "judging": judging, "rng": rng, "noise": noise}
    run = Run(resume, edit, steps=total, check=check, optimiser=optimiser, **parts)
    encoded = EncodeCache(model)
    if not run.more:
        erasing.begin()

    for number in range(run.more.get("number", 0), total):
        chosen = [rng.randrange(anchors.count) for _ in range(size)]
        pairs = [anchors.pair(i, number) for i in chosen]
        x0, named = erasing.shown(chosen, [c for _, c in pairs], rng, noise)
        fresh = torch.randn(x0.shape, generator=noise).to(x0)
        t = torch.randint(0, 1000, (size,), generator=noise).float().to(x0.device)
        x_t = model.add_noise(x0, fresh, t)
        wanted, asked = encoded(*(a for a, _ in pairs)), encoded(*named)
        with edit.off():
            anchor = model.predict(x_t, t, wanted)
            real = model.predict_x0(x_t, t, anchor)
        with torch.set_grad_enabled(number >= alone):
            student = model.predict(x_t, t, asked)
            fake = model.predict_x0(x_t, t, student)
        batch = Batch(number, x_t, t, wanted, asked, anchor, student)
        judging.zero_grad()
        if erasing.FIRST and number >= alone:
            value = erasing.step(batch, generator_loss(judge(fake)), rng, noise)
            if not settings.as_released:
                judging.zero_grad()  # in the released code the gradient of deceiving it stays there
        judged = erasing.JUDGED * discriminator_loss(judge(real), judge(fake.detach()))
        judged.backward()
        judging.step()
        if number < alone:
            value = judged.item()
        elif not erasing.FIRST:
            value = erasing.step(batch, generator_loss(judge(fake)), rng, noise)
        run.more["number"] = number + 1
        progress.phase("warm-up" if number < alone else "erasing")
        progress.step(number + 1, total, value, edit)
        if erasing.reached(run.more):
            break
        run.offer()


class Balanced:
    """Ours: to the anchor's prediction itself, too, with other prompts and the anchor's held."""

    FIRST = False  # the discriminator learns before the denoiser
    JUDGED = 1.0

    def __init__(self, model, edit, anchors, concepts, settings, resume, progress) -> None:
        self.model, self.edit, self.settings = model, edit, settings
        self.optimiser = edit.adam((0.9, 0.98), 1e-12, relative_rate=settings.rate)
        around = concepts, settings.kind
        self.held = RetentionSet(
            model, edit, around, settings.protect, settings.seed, resume, progress
        )
        self.left = 1.0
        self.around, self.x0 = around, anchors.x0

    def begin(self) -> None:
        """What can be solved is done before the first step."""
        settings, (concepts, kind) = self.settings, self.around
        if settings.start_solved:
            rng = random.Random(settings.seed)
            words = PromptSampler(concepts, kind, rng, settings.anchor, settings.protect)
            closed_form.start(
                self.model, self.edit, self.optimiser, words, concepts, closed_form.OVERSHOOT[kind]
            )

    def shown(self, chosen, named, rng, noise) -> tuple[torch.Tensor, list[str]]:
        """The latents and the prompts as they were drawn."""
        return self.x0[chosen], named

    def step(self, batch: Batch, deceived: torch.Tensor, rng, noise) -> float:
        t = torch.randint(0, 1000, (RetentionSet.AT_ONCE,), generator=noise).float().to(batch.t)
        others, prompts = self.held.add_noise(rng, noise, t)
        inputs, times = torch.cat([batch.x_t, others]), torch.cat([batch.t, t])
        kept_prompts = Conditioning.cat([batch.wanted, prompts])
        with self.edit.off():
            own = self.model.predict(batch.x_t, batch.t, batch.asked)
            was = torch.cat([batch.anchor, self.model.predict(others, t, prompts)])
        # Relative to how far the concept's prediction was from the anchor's.
        far = (own - batch.anchor).square().mean().clamp(min=1e-12)
        left = (batch.student - batch.anchor).square().mean() / far
        kept = (self.model.predict(inputs, times, kept_prompts) - was).square().mean() / far
        loss = left + self.settings.adversarial * deceived + self.settings.retention * kept
        self.left = left.item()
        return self.edit.step(
            self.optimiser, loss, keep=kept, projection=self.settings.projection, clip=0.0
        )

    def reached(self, more: dict) -> bool:
        """Whether the concept is far enough gone, on average over the last steps."""
        if self.edit.history:
            more["left"] = [*more.get("left", [])[1 - STOP_WINDOW :], self.left]
        recent = more.get("left", [])
        return len(recent) == STOP_WINDOW and mean(recent) <= self.settings.near


METHOD = Method(
    name="domain_correction",
    title="Domain-Correction UNet Unlearn",
    about="Takes a concept out of the denoiser: what it makes of the concept becomes what a "
    "discriminator cannot tell from an anchor's. Other prompts are protected in every step.",
    paper="2405.15304",
    part="denoiser",
    settings=DomainCorrectionSettings,
    train=domain_correction,
    check=check_settings,
    resumes=True,
    curve={
        "balanced": "Without the warm-up, in which only the discriminator learns. It may stay "
        "flat, since most is solved before the first step. The training ends by itself.",
        "paper": "Without the warm-up, in which only the discriminator learns. It need not fall: "
        "the denoiser deceives a discriminator that goes on learning.",
    },
)
