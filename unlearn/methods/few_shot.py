"""Few-shot encoder unlearning: Fuchi and Takagi, arXiv 2405.07288 (BMVC 2024).

Gradient ascent on the denoising loss of a few pictures, through the frozen denoiser into the text
encoder. Mode "paper" is the paper's algorithm and settings; "balanced", the default, is ours:
bounded, with retention, and it stops by itself. With pictures drawn by the model itself this is
also the encoder half of Liu and Tan's text-to-video unlearning, arXiv 2407.14209.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F

from ..core.conditioning import Conditioning
from ..core.denoising import NoiseSampler, ascent_loss, denoising_loss
from ..core.edit import Edit
from ..core.erasure import Erasure
from ..core.gradient_projection import Projection
from ..core.kind import Kind
from ..core.model import DiffusionModel
from ..core.progress import OnStep, Progress, as_progress
from ..core.prompt_spread import prompt_spread
from ..core.token_reading import Read
from ..core.token_slots import check_takes_vectors
from ..core.trainable import Trainable
from ..prompts.anchor_choice import anchored
from ..prompts.sampler import PromptSampler
from ..prompts.templates import paper_templates
from ..prompts.word_checks import as_read, check_typed
from .parts import shared
from .parts.adversarial import OTHERS, SECONDS, SENTENCES, Hardening, check_hardening
from .parts.concepts import STOP_WINDOW, check_concepts, concept_latents, pictures_record
from .parts.few_shot_end import far_enough
from .parts.few_shot_pictures import paper_latents
from .parts.method import Method
from .parts.run import run_method
from .parts.settings import BALANCED, PAPER, MethodSettings, Mode, constant, setting
from .parts.solved_start import Start, begun, solved_start

# How far beyond the anchor a concept is drawn, as a share of their distance. A picture always has
# some style, so the anchor alone does not take a style away. This is a share of conditioning;
# closed_form.OVERSHOOT is one of keys and values, and was tuned by itself.
OVERSHOOT = {"object": 0.0, "style": 0.5, "character": 0.0, "action": 0.0}
HELD, NAMED = 6, 2  # prompts of a step: of other things, and with the neutral word in place


@dataclass(frozen=True)
class FewShotSettings(MethodSettings):
    mode: Mode = shared.mode()
    kind: Kind = shared.kind()
    trainable: Trainable = setting(
        "mlp-final-attn",
        "Which weights are trained. The paper describes mlp-final-attn; the first releases of its "
        "code trained all.",
    )
    rank: int = shared.rank()
    shots: int = setting(
        4,
        "How many pictures of each concept the model draws where none are given.",
        at_least=1,
        at_most=64,
    )
    batch: int = setting(
        2, "Pictures of a step. 1 takes least memory.", at_least=1, at_most=64, optional=True
    )
    seed: int = shared.seed()
    projection: Projection = shared.projection("off")
    epochs: int = setting(
        4, "Passes over the pictures.", modes=PAPER, at_least=1, at_most=100
    )  # the authors' example has 4, their default is 5
    learning_rate: float = constant(1e-5, "Adam's, the same for every weight.", modes=PAPER)
    max_steps: int = setting(
        120,
        "So many steps for each concept, at most.",
        modes=BALANCED,
        at_least=1,
        at_most=10000,
        option="steps",
    )
    rate: float = constant(
        0.03,
        "The size of a step relative to the weights (core.edit.spectral_scale).",
        modes=BALANCED,
    )
    beta: float = constant(
        1.0, "How sharply the erasing gradient fades as the concept's loss grows.", modes=BALANCED
    )
    target: float = constant(
        1.4,
        "Stop once the concept's loss is this many times the original model's...",
        modes=BALANCED,
    )
    near: float = constant(
        0.12,
        "... and its prompts are this near to the neutral ones (relative squared distance).",
        modes=BALANCED,
    )
    retention: float = constant(
        4.0, "Weight of keeping other prompts' conditioning.", modes=BALANCED
    )
    anchor: str = setting(
        "",
        "What is drawn in the concept's place. Another thing of its kind keeps the style of a "
        "prompt best; closest chooses one. Empty, or neutral: a neutral word by kind.",
        modes=BALANCED,
        optional=True,
    )
    pull: float = constant(
        6.0,
        "Weight of drawing the concept's prompts to the anchor's. What else a prompt says stays.",
        modes=BALANCED,
    )
    push: float | None = constant(
        None,
        "How far beyond the anchor's prompts, away from the concept's. None: by kind.",
        modes=BALANCED,
    )
    protect: tuple[str, ...] = shared.protect()
    start_solved: bool = constant(
        True, "Begin with what one solve takes out, if there is an anchor.", modes=BALANCED
    )
    harden: float = shared.harden(SECONDS)

    @property
    def prompts_kept(self) -> int:
        if self.mode == "paper":
            return self.batch if self.projection == "off" else self.batch + HELD
        plain = self.batch + HELD + NAMED
        return max(plain, 2 * (SENTENCES + OTHERS)) if self.harden else plain

    @property
    def uses_anchor(self) -> bool:
        return self.mode == "balanced"

    @property
    def further(self) -> float:
        return OVERSHOOT[self.kind] if self.push is None else self.push


def few_shot(
    model: DiffusionModel,
    concepts: Sequence[str],
    images: torch.Tensor | None = None,
    settings: FewShotSettings = FewShotSettings(),
    progress: Progress | OnStep | None = None,
) -> Erasure:
    """Unlearn concepts in the text encoder from a few pictures of them.

    images: (N, H, W, 3) in 0..1, shared out evenly when there are several concepts (the first N/k
    are the first concept's); None lets the model draw `settings.shots` of each. The same seed gives
    the same erasure on one machine, unless it is hardened, which goes by the clock.

    Raises ValueError for bad input, before any work, and Diverged, which carries the last
    good erasure, when the loss stops being finite; `progress` may raise to cancel. The model is
    afterwards what it was.
    """
    progress = as_progress(progress)
    check_settings(concepts, images, settings, model.readings)
    concepts, settings = as_read(concepts, settings, model.readings)
    settings, chosen = anchored(model, concepts, settings, progress=progress)
    if settings.harden:
        check_takes_vectors(model)
    loaded = paper_latents if settings.mode == "paper" else concept_latents
    pictures = loaded(
        model, concepts, images, settings.kind, settings.shots, settings.seed, progress
    )
    run = paper
    if settings.mode == "balanced":
        solves = settings.start_solved and settings.anchor  # the neutral word would harm others
        start = solved_start(model, concepts, settings, progress) if solves else None
        run = partial(balanced, start=start)
        if start:
            chosen["other_names"] = start.names
    return run_method(
        model,
        "encoder",
        settings.trainable,
        "few_shot",
        list(concepts),
        settings,
        lambda edit: run(model, edit, list(concepts), pictures, settings, progress),
        kind=settings.kind,
        images=pictures_record(pictures, images),
        **chosen,
    )


def check_settings(
    concepts: Sequence[str],
    images: torch.Tensor | None,
    settings: FewShotSettings,
    read: Read | None = None,
) -> None:
    """Raises ValueError with one sentence where they cannot be used. read: see `check_typed`."""
    check_concepts(concepts, images)
    kind = settings.kind if settings.mode == "balanced" else None
    check_typed(concepts, settings.anchor, settings.protect, kind, read)
    check_hardening(settings.mode, settings.harden)


def bounded_loss(d: torch.Tensor, d_ref: torch.Tensor, beta: float) -> torch.Tensor:
    """Ours: (2 / beta) softplus(beta (1 - d / d_ref)), in the shape of NPO (arXiv 2404.05868).

    It falls as ascent does while the edited model's loss d is near the original's d_ref, and fades
    to zero as d grows: there is nothing to gain from a model that merely breaks. Relative to d_ref,
    since the denoising loss of a clean and of a noisy latent differ a hundredfold.
    """
    return (2 / beta) * F.softplus(beta * (1 - d / d_ref)).mean()


def paper(
    model: DiffusionModel,
    edit: Edit,
    concepts: list[str],
    pictures: list[torch.Tensor],
    settings: FewShotSettings,
    progress: Progress,
) -> None:
    """The paper's loop: every picture once an epoch, in batches, each in a template drawn anew."""
    rng, prompt_rng = random.Random(settings.seed), random.Random(settings.seed)
    draw = NoiseSampler(model, settings.seed)
    words = PromptSampler(concepts, settings.kind, random.Random(settings.seed))
    optimiser = edit.adam((0.9, 0.98), 1e-6, rate=settings.learning_rate)
    items = [(concept, x0) for concept, latents in zip(concepts, pictures) for x0 in latents]
    per_epoch = -(-len(items) // settings.batch)
    total = settings.epochs * per_epoch
    for _ in range(settings.epochs):
        rng.shuffle(items)
        for i in range(0, len(items), settings.batch):
            batch = items[i : i + settings.batch]
            x_t, t, target = draw.add_noise(torch.stack([x0 for _, x0 in batch]))
            prompts = [
                prompt_rng.choice(paper_templates(settings.kind)).format(concept)
                for concept, _ in batch
            ]
            loss = ascent_loss(denoising_loss(model, x_t, t, target, model.encode(prompts)))
            keep = None
            if settings.projection != "off":
                others = words.others(HELD)
                with edit.off():
                    was = model.encode(others)
                keep = model.encode(others).distance(was).mean()
            value = edit.step(
                optimiser, loss, weight_decay=1e-8, keep=keep, projection=settings.projection
            )
            progress.step(len(edit.history), total, value, edit)


def balanced(
    model: DiffusionModel,
    edit: Edit,
    concepts: list[str],
    pictures: list[torch.Tensor],
    settings: FewShotSettings,
    progress: Progress,
    start: Start | None = None,
) -> None:
    """Ours: bounded ascent, other prompts held in place, until the concept is far enough gone."""
    draw = NoiseSampler(model, settings.seed)
    words = PromptSampler(
        concepts, settings.kind, random.Random(settings.seed), settings.anchor, settings.protect
    )
    optimiser = edit.adam((0.9, 0.98), 1e-12, relative_rate=settings.rate)
    begins_solved = begun(edit, optimiser, start)
    with edit.off():
        # Changes of conditioning count relative to how far prompts lie apart in this encoder.
        spread = prompt_spread(model, words.common[:16])
    # Of the last steps on each concept: its loss ratio, its distance from the neutral prompts.
    recent: dict[str, deque] = {concept: deque(maxlen=2 * STOP_WINDOW) for concept in concepts}
    neutral_words = {concept: words.neutral(concept, model) for concept in concepts}
    total = settings.max_steps * len(concepts)
    for step in range(total):
        concept, latents = concepts[step % len(concepts)], pictures[step % len(concepts)]
        chosen = [words.rng.randrange(len(latents)) for _ in range(settings.batch)]
        x_t, t, target = draw.add_noise(latents[chosen])
        own = [words.prompt(concept) for _ in chosen]
        others, sentences = words.others(HELD), words.sentences(NAMED)
        named = [sentence.format(concept) for sentence in sentences]
        neutral = [sentence.format(neutral_words[concept]) for sentence in sentences]

        with edit.off():
            own_was, others_was, named_was, neutral_was = encoded(
                model, own, others, named, neutral
            )
            d_ref = denoising_loss(model, x_t, t, target, own_was)
        own_is, others_is, named_is = encoded(model, own, others, named)
        d = denoising_loss(model, x_t, t, target, own_is)
        aim = neutral_was.extrapolate_from(named_was, settings.further)
        kept = others_is.distance(others_was).mean() / spread
        from_neutral = named_is.distance(aim).mean() / spread
        loss = (
            bounded_loss(d, d_ref, settings.beta)
            + settings.retention * kept
            + settings.pull * from_neutral
        )
        value = edit.step(optimiser, loss, keep=kept, projection=settings.projection)
        progress.step(step + 1, total, value, edit)
        recent[concept].append(((d.detach() / d_ref).mean().item(), from_neutral.item()))
        if all(
            far_enough(steps, settings.target, settings.near, begins_solved)
            for steps in recent.values()
        ):
            break
    if settings.harden:
        optimiser.state.clear()  # it is done, and hardening has its own
        Hardening(
            model,
            edit,
            concepts,
            words,
            settings.further,
            settings.rate,
            settings.harden,
            settings.seed,
            progress,
        ).encoder()


def encoded(model: DiffusionModel, *groups: list[str]) -> list[Conditioning]:
    """The conditioning of several lists of prompts, encoded at once."""
    together = model.encode([prompt for group in groups for prompt in group])
    ends = list(accumulate(map(len, groups)))
    return [together[end - len(group) : end] for end, group in zip(ends, groups)]


METHOD = Method(
    name="few_shot",
    title="Few-Shot Encoder Unlearn",
    about="Takes a concept out of a text encoder with a few pictures of it. The result goes "
    "wherever a CLIP goes, also into AnimateDiff and other video nodes.",
    paper="2405.07288",
    part="encoder",
    settings=FewShotSettings,
    train=few_shot,
    check=check_settings,
    takes_pictures=True,
    curve={
        "balanced": "It falls, and jumps, since each step draws other noise and sentences. The "
        "training ends by itself once the concept is far enough gone.",
        "paper": "Minus the error on the pictures, which is driven up: it falls, and has no lower "
        "end. It jumps, since each step draws other noise.",
    },
)
