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

from collections.abc import Sequence
from dataclasses import dataclass, fields

from ..core.erasure import Erasure
from ..core.kind import CLOSEST, QUALITIES, Kind
from ..core.model import TextModel
from ..core.progress import OnStep, Progress, as_progress
from ..core.token_reading import Read
from ..prompts.anchor_choice import anchored
from ..prompts.other_names import other_names
from ..prompts.word_checks import as_read, check_typed
from .parts import shared, way_left
from .parts.concepts import check_concepts
from .parts.encoder_solver import solved
from .parts.hard_rounds import hardened
from .parts.method import Method
from .parts.run import made
from .parts.settings import MethodSettings, constant, setting
from .parts.solve_prompts import OVERSHOOT, SolveSettings

MOST = 1000  # concepts


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
    other_names: bool = setting(
        True,
        "Take out with a concept its plural and those synonyms that the text encoder reads as it.",
        optional=True,
    )
    harden_rounds: int = setting(
        0,
        "Rounds of hardening: words that bring the concept back are sought, and what they show is "
        "taken out, too. 0: none. 3 are usually enough; each takes two to four times as long as "
        "the erasure.",
        at_least=0,
        at_most=10,
        optional=True,
    )
    seed: int = shared.seed()
    protect: tuple[str, ...] = shared.protect(modes=())
    sentences: int = constant(96, "Prompts of each concept.")
    others: int = constant(512, "Prompts of other things, which must stay.")
    hold: float = constant(50.0, "Weight of the other prompts.")
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
    def gradients(self) -> bool:
        return self.harden_rounds > 0

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

    @property
    def solve(self) -> SolveSettings:
        """What the solve is told."""
        return SolveSettings(**{one.name: getattr(self, one.name) for one in fields(SolveSettings)})


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
    names: dict[str, list[str]] = {}
    if settings.other_names:
        names = other_names(model, concepts, settings.kind, progress)
        chosen["other_names"] = names
    told = list(concepts), names, settings.solve
    if settings.harden_rounds:
        hard = hardened(model, *told, settings.harden_rounds, progress)
        solver, chosen["revived"] = hard.solver, hard.revived
    else:
        solver = solved(model, *told, progress)
    left = solver.left_of
    alone = {
        one: solved(model, [one], names, settings.solve, progress).left_of[one]
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
