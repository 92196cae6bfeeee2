"""KSCU's settings: Zhang et al., arXiv 2507.06526, and ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...core.gradient_projection import Projection
from ...core.kind import Kind
from ...core.trainable import NetworkTrainable
from . import closed_form
from .retention import RetentionSet

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


@dataclass(frozen=True)
class KeyStepSettings:
    mode: Literal["balanced", "paper"] = "balanced"
    task: Task = "object"
    """What the concept is; "instance" is a character or a face."""
    steps: int = PAPER_STEPS
    """E: sampling steps of a trajectory."""
    start: int | Literal["auto"] | None = None
    """S: the first key step. None: the paper's for the task, scaled to `steps`. "auto": measured
    for this concept and model (key_step_search.py)."""
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
    """How what harms other prompts is taken out of the gradient (gradient_projection.py)."""
    rate: float = 0.1
    """Mode "balanced": the size of a step relative to the weights (core.edit.spectral_scale)."""
    push: float | None = None
    """Mode "balanced": as `negative`. None: by task (closed_form.OVERSHOOT)."""
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
    (parts/adversarial.py), once it is gone."""

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
        return closed_form.OVERSHOOT[KINDS[self.task]] if self.push is None else self.push

    @property
    def weights(self) -> NetworkTrainable:
        if self.trainable is not None:
            return self.trainable
        return "cross-attention" if self.mode == "balanced" else TASKS[self.task].trainable
