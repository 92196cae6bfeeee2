"""Encoder unlearning in closed form: one least-squares solve for each layer of the text encoder.

Ours, in the line of mass editing (MEMIT, arXiv 2210.07229) and its use on text encoders (ReFACT,
arXiv 2306.00738; EMCID, arXiv 2403.13807). It needs no picture and no denoiser. Each layer's
feed-forward part ends in a linear map whose output is added to the hidden states. From the first
layer that is read to the last, that map is changed so that the hidden states of the concept's
prompts become those of the same prompts with the anchor in its place, while other prompts keep
theirs. The last layers also lose the few directions in which the two kinds of prompts differ most,
which is what attacks look for.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..core.erasure import Erasure
from ..core.kind import CLOSEST, Kind
from ..core.model import TextModel
from ..core.progress import OnStep, Progress, as_progress
from ..core.token_reading import Read
from ..prompts.anchor_choice import anchored
from ..prompts.sampler import PromptSampler
from ..prompts.word_checks import as_read, check_typed
from .parts import shared
from .parts.concepts import check_concepts
from .parts.layers import Place, Waiting, walk
from .parts.least_squares import compressed, solve
from .parts.method import Method
from .parts.run import made
from .parts.settings import MethodSettings, constant, setting

# How far beyond the anchor a concept is drawn, as a share of their distance in each layer. A
# picture always has some style, so the anchor alone does not take a style away.
OVERSHOOT: dict[Kind, float] = {"object": 0.0, "style": 0.6, "character": 0.0}
AT_ONCE = 32  # prompts of a batch
HELD = 12  # tokens of other prompts for each of a layer's inputs
PARTS = ("named", "neutral", "origin", "others")


@dataclass(frozen=True)
class ClosedFormSettings(MethodSettings):
    kind: Kind = shared.kind()
    anchor: str = setting(
        "",
        "What is drawn in the concept's place. Empty, or closest: the closest thing of its kind "
        "that the text encoder knows, for a style a plain rendering. neutral: a neutral word by "
        "kind, after which a prompt often draws nothing clear.",
    )
    strength: float = setting(
        1.0,
        "How far the concept's prompts move: 1 all the way to the anchor's, 0.5 half of it.",
        at_least=0.0,
        at_most=2.0,
    )
    seed: int = shared.seed(advanced=True)
    protect: tuple[str, ...] = shared.protect(modes=(), advanced=True)
    sentences: int = constant(96, "Prompts of each concept.")
    others: int = constant(512, "Prompts of other things, which must stay.")
    hold: float = constant(25.0, "Weight of the other prompts.")
    ridge: float = constant(1e-4, "Weight of the change itself, relative to what the layer reads.")
    push: float | None = constant(None, "How far beyond the anchor's prompts. None: by kind.")
    directions: int = constant(2, "Directions taken out of what the last layers write.")
    last: int = constant(2, "How many last layers lose directions.")
    keep: float = constant(0.99, "The share of the solve's effect that the low-rank change keeps.")

    rank: ClassVar[int] = 64
    """What a layer's change usually has less than; the solve decides."""

    @property
    def weights(self) -> str:
        return "mlp"

    @property
    def rows(self) -> int:
        return 1

    @property
    def empty_anchor(self) -> str:
        return CLOSEST

    @property
    def further(self) -> float:
        return OVERSHOOT[self.kind] if self.push is None else self.push


def closed_form(
    model: TextModel,
    concepts: Sequence[str],
    settings: ClosedFormSettings = ClosedFormSettings(),
    progress: Progress | OnStep | None = None,
) -> Erasure:
    """Unlearn concepts in the text encoder by one solve for each of its layers.

    The same seed gives the same erasure on one machine. Raises ValueError for bad input, before any
    work; `progress` may raise to cancel. The model is afterwards what it was.
    """
    progress = as_progress(progress)
    check_settings(concepts, settings, model.readings)
    concepts, settings = as_read(concepts, settings, model.readings)
    settings, chosen = anchored(model, concepts, settings, progress=progress)
    prompts = Prompts.of(model, list(concepts), settings)
    layers = len(model.encoder_layers())
    solver = Solver(prompts, settings, layers, progress)
    walk(model, prompts.batches, solver.at)
    base = model.fingerprints(solver.deltas)
    record = made(
        "closed_form",
        list(concepts),
        settings,
        base,
        solver.left,
        kind=settings.kind,
        **chosen,
    )
    return Erasure(solver.deltas, record)


def check_settings(
    concepts: Sequence[str], settings: ClosedFormSettings, read: Read | None = None
) -> None:
    """Raises ValueError with one sentence where they cannot be used. read: see `check_typed`."""
    check_concepts(concepts, None)
    if not settings.strength:
        raise ValueError("A strength of 0 changes nothing; choose one above 0, for example 1.")
    # An anchor that is chosen is never the concept; a style's is the neutral word.
    kind = settings.kind if settings.anchor or settings.kind == "style" else None
    check_typed(concepts, settings.anchor, settings.protect, kind, read)


@dataclass
class Prompts:
    """All prompts of a run in batches, and what each batch is."""

    batches: list[list[str]]
    parts: list[str]
    """Of each batch, one of PARTS. Those of "named", "neutral" and "origin" come in one order."""

    @staticmethod
    def of(model: TextModel, concepts: list[str], settings: ClosedFormSettings) -> Prompts:
        words = PromptSampler(
            concepts,
            settings.kind,
            random.Random(settings.seed),
            settings.anchor,
            settings.protect,
        )
        named, neutral = [], []
        for concept in concepts:
            anchor = words.neutral(concept, model)
            for sentence in words.sentences(settings.sentences):
                named.append(sentence.format(concept))
                neutral.append(sentence.format(anchor))
        found = Prompts([], [])
        for part, prompts in zip(PARTS, (named, neutral, named, words.others(settings.others))):
            for i in range(0, len(prompts), AT_ONCE):
                found.batches.append(prompts[i : i + AT_ONCE])
                found.parts.append(part)
        return found

    def split(self, values: Sequence) -> dict[str, list]:
        """The values of all batches, by part."""
        return {
            part: [value for value, own in zip(values, self.parts) if own == part] for part in PARTS
        }


class Solver:
    """Solves for each layer's change as the prompts come by, and collects the deltas."""

    def __init__(
        self, prompts: Prompts, settings: ClosedFormSettings, layers: int, progress: Progress
    ) -> None:
        self.prompts, self.settings, self.progress = prompts, settings, progress
        self.layers, self.done = layers, 0
        self.deltas: dict[str, dict[str, torch.Tensor]] = {}
        self.left: list[float] = []
        """Of each layer: the squared distance of the concept's prompts from their aim, as a share
        of how far they were from the anchor's."""

    def at(self, place: Place, waiting: list[Waiting]) -> list[torch.Tensor]:
        """What each batch's hidden states gain from this layer's change."""
        self.progress.stage("solving", self.done, self.layers)
        self.done += 1
        by_part = self.prompts.split(waiting)
        inputs = [flat(one.inputs) for one in by_part["named"]]
        wanted, apart = [], []
        for own, neutral, origin in zip(by_part["named"], by_part["neutral"], by_part["origin"]):
            away = flat(neutral.after.float() - origin.after.float())
            aim = flat(neutral.after.float()) + self.settings.further * away
            aim = aim.lerp(flat(origin.after.float()), 1 - self.settings.strength)
            wanted.append(aim - flat(own.after.float()))
            apart.append(away)
        held = sampled([flat(one.inputs) for one in by_part["others"]], HELD, self.settings.seed)
        change = solve(inputs, wanted, held, self.settings.hold, self.settings.ridge)
        up, down = compressed(change, inputs, self.settings.keep)
        weight = place.linear.weight.double()
        if self.done > self.layers - self.settings.last and self.settings.directions:
            out = main_directions(apart, self.settings.directions)
            part = min(1.0, self.settings.strength) * out.T @ (weight + up @ down)
            up, down = torch.cat([up, -out], 1), torch.cat([down, part])
        self.deltas[place.key] = {
            "lora_up": up.float().cpu().contiguous(),
            "lora_down": down.float().cpu().contiguous(),
        }
        added = [
            gain(one, up, down) if part in ("named", "others") else torch.zeros_like(one.after)
            for one, part in zip(waiting, self.prompts.parts)
        ]
        reached = map(flat, self.prompts.split(added)["named"])
        self.left.append(share(map(torch.sub, wanted, reached), apart))
        return added


def gain(one: Waiting, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """What a change of the layer adds to the hidden states of a batch."""
    return one.inputs.float() @ down.float().T @ up.float().T


def share(part: Iterable[torch.Tensor], whole: Iterable[torch.Tensor]) -> float:
    """The sum of squares of one list of tensors as a share of another's."""
    one, all_of_it = (float(sum(x.square().sum() for x in some)) for some in (part, whole))
    return one / max(all_of_it, 1e-30)


def sampled(parts: list[torch.Tensor], enough: int, seed: int) -> list[torch.Tensor]:
    """Random tokens of each part: `enough` times as many as the layer is wide, in all.

    Most tokens of a prompt are padding, each much like the next.
    """
    share = enough * parts[0].shape[1] / sum(map(len, parts))
    if share >= 1:
        return parts
    draw = torch.Generator().manual_seed(seed)
    return [part[torch.rand(len(part), generator=draw) < share] for part in parts]


def flat(x: torch.Tensor) -> torch.Tensor:
    """(tokens of all prompts, width)."""
    return x.flatten(0, -2)


def main_directions(apart: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """(width, count): the directions that hold most of these differences, orthonormal."""
    square = sum((part.T @ part).double() for part in apart)
    return torch.linalg.eigh(square).eigenvectors[:, -count:]


METHOD = Method(
    name="closed_form",
    title="Closed-Form Encoder Unlearn",
    about="Takes concepts out of a text encoder in seconds. It needs no picture and no model that "
    "draws. The result goes wherever a CLIP goes, also into AnimateDiff and other video nodes.",
    paper="2210.07229",
    part="encoder",
    settings=ClosedFormSettings,
    train=closed_form,
    check=check_settings,
    encoder_alone=True,
    counts="layers",
)
