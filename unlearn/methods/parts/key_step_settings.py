"""KSCU's settings: Zhang et al., arXiv 2507.06526, and ours."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, replace
from typing import Literal

from ...core.gradient_projection import Projection
from ...core.kind import Kind, current_kind
from ...core.model import DiffusionModel
from ...core.trainable import NetworkTrainable
from . import closed_form, shared
from .adversarial import SECONDS
from .key_step_terms import is_flow
from .retention import RetentionSet
from .settings import BALANCED, PAPER, MethodSettings, Mode, constant, setting

KeyStepKind = Literal["object", "style", "character", "nudity"]
Recipe = Literal["stable diffusion", "flux"]


@dataclass(frozen=True)
class KindSettings:
    """The paper's, for one kind of concept (its table of hyper-parameters)."""

    start: int
    """S: the first key step of 50; 0 is the noisiest."""
    iterations: int
    """L."""
    trainable: NetworkTrainable


# The paper calls a character an instance.
BY_KIND: dict[KeyStepKind, KindSettings] = {
    "object": KindSettings(14, 750, "outside-cross-attention"),
    "style": KindSettings(24, 500, "cross-attention"),
    "character": KindSettings(40, 200, "cross-attention"),
    "nudity": KindSettings(14, 750, "outside-cross-attention"),
}
PAPER_STEPS = 50
OLDER_STARTS: dict[KeyStepKind, int] = {"object": 15, "nudity": 15}
"""S in the authors' older script, where it is another."""
FLUX_STEPS = 28
FLUX_STARTS: dict[KeyStepKind, int] = {"object": 8, "style": 14, "character": 22, "nudity": 8}
"""S of FLUX_STEPS in the authors' code for Flux, which trains the attention for every kind."""
SEVERAL_CHARACTERS = 750  # L where more than one is unlearnt


@dataclass(frozen=True)
class KeyStepSettings(MethodSettings):
    mode: Mode = shared.mode()
    kind: KeyStepKind = shared.kind(widget="task")
    steps: int = setting(
        PAPER_STEPS,
        "Sampling steps of the pictures that it walks through (E in the paper).",
        at_least=4,
        at_most=1000,
        option=None,
    )
    start: int | Literal["auto"] | None = setting(
        None,
        "The first step that is trained (S in the paper); 0 is the noisiest. auto: measured for "
        "this concept and model.",
        at_least=0,
        own="the paper's for the kind",
        widget=None,  # the node has two for it
    )
    iterations: int | None = setting(
        None,
        "So many steps, at most (L in the paper).",
        at_least=1,
        at_most=100000,
        own="240, in mode paper the paper's for the kind",
        option="steps",
        label="max_steps",
    )
    trainable: NetworkTrainable | None = setting(
        None,
        "Which weights are trained.",
        own="cross-attention, in mode paper the paper's for the kind",
        own_choice="by task",
    )
    rank: int = shared.rank()
    seed: int = shared.seed()
    anchor: str = setting(
        "",
        "What is drawn in the concept's place; closest chooses it, neutral is a neutral word by "
        "kind. Empty: in mode balanced the neutral word, in mode paper nothing.",
        optional=True,
    )
    guidance: float | None = constant(
        None,
        "Guidance of the trajectories: classifier-free, or the number that a denoiser is told.",
        own="3, in mode paper with Flux's recipe 3.5",
    )
    negative: float = constant(1.0, "How far beyond the anchor the concept is pushed.", modes=PAPER)
    empty_term: Literal["paper", "older script"] = constant(
        "paper",
        "The authors' older script has other weights of the second term, another start for objects "
        "and nudity, and a fresh trajectory for each iteration.",
        modes=PAPER,
    )
    learning_rate: float | None = constant(
        None,
        "Adam's, the same for every weight.",
        modes=PAPER,
        own="1e-5, with Flux's recipe 1e-4",
    )
    augment: float = constant(
        0.05,
        "The share of the iterations, the last ones, whose prompts are augmented.",
        modes=PAPER,
    )
    embedding_noise: float = constant(
        1e-5,
        "Standard deviation of the noise on an augmented prompt's conditioning.",
        modes=PAPER,
    )
    projection: Projection = shared.projection("off")
    rate: float = constant(
        0.1,
        "The size of a step relative to the weights (core.edit.spectral_scale).",
        modes=BALANCED,
    )
    push: float | None = constant(
        None, "As `negative`. None: by kind (closed_form.OVERSHOOT).", modes=BALANCED
    )
    start_solved: bool = constant(
        True, "Begin with what can be solved in closed form (closed_form.py).", modes=BALANCED
    )
    retention: float = constant(
        4.0, "Weight of keeping other prompts' predictions.", modes=BALANCED
    )
    near: float = constant(
        0.2, "Stop once this share of the concept's own prediction is left.", modes=BALANCED
    )
    batch: int = setting(
        2, "Trajectories walked at once.", modes=BALANCED, at_least=1, at_most=64, widget=None
    )
    protect: tuple[str, ...] = shared.protect()
    harden: float = shared.harden(SECONDS)
    recipe: Recipe | None = setting(
        None,
        "Which of the authors' two scripts is followed: its rate, guidance, first key steps and "
        "weights. Flux's is made for 28 steps.",
        modes=PAPER,
        own="flux for flow models, else stable diffusion",
        own_choice="by model",
        optional=True,
        option=None,  # the command knows no Flux
    )
    precision: Literal["float32", "bfloat16"] = setting(
        "float32",
        "bfloat16 rounds the trained weights after each step, as in the authors' training. Many "
        "steps are then too small to move a weight.",
        modes=PAPER,
        optional=True,
        option=None,  # the command's --precision is that of the file
    )
    task: InitVar = None
    """The old name of `kind`; "instance" was a character."""

    def __post_init__(self, task: str | None) -> None:
        object.__setattr__(self, "kind", current_kind(task or self.kind))

    @property
    def named_as(self) -> Kind:
        return "object" if self.kind == "nudity" else self.kind

    @property
    def first(self) -> int:
        """S in steps of this run; the paper's where it is yet to be found."""
        if isinstance(self.start, int):
            return self.start
        if self.mode == "paper" and self.recipe == "flux":
            return round(FLUX_STARTS[self.kind] * self.steps / FLUX_STEPS)
        own = BY_KIND[self.kind].start
        if self.mode == "paper" and self.is_older:
            own = OLDER_STARTS.get(self.kind, own)
        return round(own * self.steps / PAPER_STEPS)

    @property
    def is_older(self) -> bool:
        """Whether it follows the authors' older script."""
        return self.empty_term == "older script"

    def fitted(self, model: DiffusionModel) -> KeyStepSettings:
        """What is left to the model is decided: the recipe, and its guidance and rate."""
        recipe = self.recipe
        if self.mode == "paper" and recipe is None:
            recipe = "flux" if is_flow(model) else "stable diffusion"
        is_flux = self.mode == "paper" and recipe == "flux"
        guidance, rate = (3.5, 1e-4) if is_flux else (3.0, 1e-5)
        return replace(
            self,
            recipe=recipe,
            guidance=guidance if self.guidance is None else self.guidance,
            learning_rate=rate if self.learning_rate is None else self.learning_rate,
        )

    def length(self, concepts: int) -> int:
        """L of this run."""
        if self.iterations is not None:
            return self.iterations
        if self.mode == "balanced":
            return 240
        several = self.kind == "character" and concepts > 1
        return SEVERAL_CHARACTERS if several else BY_KIND[self.kind].iterations

    @property
    def rows(self) -> int:
        if self.mode == "paper":
            return 2 if self.projection == "off" else 4
        return 2 * self.batch + RetentionSet.AT_ONCE

    @property
    def beyond(self) -> float:
        """How far beyond the anchor the concept is pushed, in mode "balanced"."""
        return closed_form.OVERSHOOT[self.named_as] if self.push is None else self.push

    @property
    def weights(self) -> NetworkTrainable:
        if self.trainable is not None:
            return self.trainable
        is_attention = self.mode == "balanced" or self.recipe == "flux"
        return "cross-attention" if is_attention else BY_KIND[self.kind].trainable
