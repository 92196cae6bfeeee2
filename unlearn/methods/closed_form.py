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
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..core.erasure import Erasure
from ..core.kind import CLOSEST, QUALITIES, Kind
from ..core.model import TextModel
from ..core.progress import OnStep, Progress, as_progress
from ..core.token_reading import Read
from ..prompts.anchor_choice import anchored
from ..prompts.sampler import PromptSampler
from ..prompts.word_checks import as_read, check_typed
from .parts import shared, way_left
from .parts.concepts import check_concepts
from .parts.encoder_solver import Solver
from .parts.layer_ends import Place, places, read_together
from .parts.layers import walk
from .parts.method import Method
from .parts.run import made
from .parts.settings import MethodSettings, constant, setting

# How far beyond the anchor a concept is drawn, as a share of their distance in each layer. A
# picture always has some style, so the anchor alone does not take a style away.
OVERSHOOT: dict[Kind, float] = {"object": 0.0, "style": 0.6, "character": 0.0, "action": 0.0}
AT_ONCE = 32 * 77  # tokens of a batch
# What is kept of all prompts at one layer, in bytes: so much, or half of what the encoder's layers
# take themselves, whichever is more. Where prompts are long and layers wide, fewer are read.
KEPT = 2e9
# Fewer, too, where each prompt is a pass of its own, and so a thread with helpers of its own.
ALONE = 256
LEAST = 8  # prompts of each concept
MOST = 1000  # concepts
PARTS = ("named", "neutral", "origin", "others")


@dataclass(frozen=True)
class ClosedFormSettings(MethodSettings):
    kind: Kind = shared.kind()
    anchor: str = setting(
        "",
        "What is drawn in the concept's place. Empty, or closest: the closest thing of its kind "
        "that the text encoder knows; for a style a plain rendering, for an action standing still. "
        "neutral: a neutral word by kind, after which a prompt often draws nothing clear.",
    )
    strength: float = setting(
        1.0,
        "How far the concept's prompts move: 1 all the way to the anchor's, 0.5 half of it.",
        at_least=0.0,
        at_most=2.0,
    )
    seed: int = shared.seed()
    protect: tuple[str, ...] = shared.protect(modes=())
    sentences: int = constant(96, "Prompts of each concept.")
    others: int = constant(512, "Prompts of other things, which must stay.")
    hold: float = constant(25.0, "Weight of the other prompts.")
    ridge: float = constant(1e-4, "Weight of the change itself, relative to what the layer reads.")
    push: float | None = constant(None, "How far beyond the anchor's prompts. None: by kind.")
    directions: int = constant(2, "Directions taken out of what the last layers write.")
    last: int = constant(2, "How many last layers lose directions.")
    keep: float = constant(0.99, "The share of the solve's effect that the low-rank change keeps.")

    @property
    def rank(self) -> int:  # type: ignore[override]
        """What a layer's change usually has less than; the solve decides."""
        return 64

    @property
    def weights(self) -> str:
        return "mlp"

    @property
    def rows(self) -> int:
        return 1

    @property
    def prompts_kept(self) -> int:
        return 3 * self.sentences + self.others

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
    solver = _solved(model, list(concepts), settings, progress)
    left = solver.left_of
    alone = {
        one: _solved(model, [one], settings, progress).left_of[one]
        for one in way_left.compared(left)
    }
    if alone:
        chosen["left_alone"] = alone
    base = model.fingerprints(solver.deltas)
    record = made(
        "closed_form",
        list(concepts),
        settings,
        base,
        solver.left,
        kind=settings.kind,
        left=left,
        **chosen,
    )
    return Erasure(solver.deltas, record)


def _solved(
    model: TextModel, concepts: list[str], settings: ClosedFormSettings, progress: Progress
) -> Solver:
    prompts = Prompts.of(model, concepts, settings)
    solver = Solver(prompts, settings, len(model.encoder_layers()), progress)
    walk(model, prompts.batches, prompts.places, solver.at, prompts.still)
    return solver


def check_settings(
    concepts: Sequence[str], settings: ClosedFormSettings, read: Read | None = None
) -> None:
    """Raises ValueError with one sentence where they cannot be used. read: see `check_typed`."""
    check_concepts(concepts, None)
    if len(concepts) > MOST:
        raise ValueError(
            f"{len(concepts)} concepts are named, and {MOST} go into one erasure; make several and "
            "combine them."
        )
    if not settings.strength:
        raise ValueError("A strength of 0 changes nothing; choose one above 0, for example 1.")
    # An anchor that is chosen is never the concept; that of a quality is the neutral word.
    kind = settings.kind if settings.anchor or settings.kind in QUALITIES else None
    check_typed(concepts, settings.anchor, settings.protect, kind, read)


@dataclass
class Prompts:
    """All distinct prompts of a run in batches, and what each batch is.

    Many a prompt is drawn several times. It is read once, and counts as often as it was drawn. Of
    prompts with a concept the pair with the aim is what is distinct.
    """

    places: list[Place]
    """The layers of the text encoder where they will wait for one another."""
    batches: list[list[str]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    """Of each batch, one of PARTS. "named" and "origin" have the same batches."""
    numbers: list[list[int]] = field(default_factory=list)
    """Of each batch, the numbers of its prompts in their part."""
    drawn: list[list[int]] = field(default_factory=list)
    """Of each batch, how often each of its prompts was drawn."""
    owners: list[str] = field(default_factory=list)
    """Of each prompt with a concept, which one."""
    aims: list[int] = field(default_factory=list)
    """Of each prompt with a concept, the number of the same in "neutral"."""
    begun: list[int] = field(default_factory=list)
    """Of each of the others, how many batches it would begin if all were read as often as drawn."""

    @staticmethod
    def of(model: TextModel, concepts: list[str], settings: ClosedFormSettings) -> Prompts:
        words = PromptSampler(
            concepts,
            settings.kind,
            random.Random(settings.seed),
            settings.anchor,
            settings.protect,
        )
        sentences = [words.sentences(settings.sentences) for _ in concepts]
        others = words.others(settings.others)
        found = Prompts(places(model, sentences[0][0].format(concepts[0])))
        # Two prompts that are equally long tell whether the encoder reads several at once.
        distinct = list(Counter(others))
        pairs = (some[:2] for some in model.batches(distinct, AT_ONCE) if len(some) > 1)
        pair = [distinct[i] for i in next(pairs, [])]
        at_once = AT_ONCE if pair and read_together(model, pair) else 1
        few, rest = _that_fit(model, found.places, len(concepts), settings, at_once)
        drawn = []
        for concept, some in zip(concepts, sentences):
            anchor = words.neutral(concept, model)
            drawn += [(concept, s.format(concept), s.format(anchor)) for s in some[:few]]
        own, kept = Counter(drawn), Counter(others[:rest])
        found.owners = [owner for owner, _, _ in own]
        named, neutral = [text for _, text, _ in own], Counter(aim for _, _, aim in drawn)
        number = {aim: i for i, aim in enumerate(neutral)}
        found.aims = [number[aim] for _, _, aim in own]
        first = Counter(others[some[0]] for some in model.batches(others[:rest], at_once))
        found.begun = [first[prompt] for prompt in kept]
        counts = list(own.values()), list(neutral.values()), list(own.values()), list(kept.values())
        for part, prompts, times in zip(PARTS, (named, list(neutral), named, list(kept)), counts):
            for numbers in model.batches(prompts, at_once):
                found.batches.append([prompts[i] for i in numbers])
                found.parts.append(part)
                found.numbers.append(numbers)
                found.drawn.append([times[i] for i in numbers])
        return found

    @property
    def still(self) -> set[int]:
        """The numbers of the batches that go through the encoder as it was."""
        return {i for i, part in enumerate(self.parts) if part in ("neutral", "origin")}

    def split(self, values: Sequence) -> dict[str, list]:
        """The values of all batches, by part."""
        return {
            part: [value for value, own in zip(values, self.parts) if own == part] for part in PARTS
        }


def most_kept(model: TextModel) -> float:
    """Bytes that are kept of all prompts at one layer, at most."""
    own = sum(w.nbytes for _, layer in model.encoder_layers() for w in layer.parameters())
    return max(KEPT, own / 2)


def _that_fit(
    model: TextModel,
    found: Sequence[Place],
    concepts: int,
    settings: ClosedFormSettings,
    at_once: int,
) -> tuple[int, int]:
    """How many sentences of each concept and how many other prompts there is room for."""
    room = int(most_kept(model) / 4 / max(place.floats for place in found))
    if at_once == 1:
        room = min(room, ALONE)
    others = min(settings.others, room // 2)
    # A sentence is read with the concept, with the anchor, and by the original encoder.
    return min(settings.sentences, max(LEAST, (room - others) // (3 * concepts))), others


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
