"""What a method's file says of itself, for the node, the command and the benchmark."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ...core.erasure import Erasure
from ...core.model import DiffusionModel, Part
from ...core.progress import OnStep, Progress, as_progress
from ...core.resume import Resume
from ...core.token_reading import Read
from .settings import Setting, settings_of


@dataclass(frozen=True)
class Method:
    """A published method. Its file has one as METHOD, and `registry.py` finds it there."""

    name: str
    """In records, in the command and in the benchmark: few_shot."""
    title: str
    """Of its node: Few-Shot Encoder Unlearn."""
    about: str
    """What it does, in a sentence or two: the node's description."""
    paper: str
    """Its number on arXiv."""
    part: Part
    """What it trains: "encoder" or "denoiser"."""
    settings: Any
    """A frozen dataclass of `setting`s (parts/settings.py)."""
    train: Callable[..., Erasure]
    """train(model, concepts, settings, progress), with `images` before `settings` where it takes
    pictures, and `resume` at the end where it resumes."""
    check: Callable[..., None]
    """check(concepts, settings, read), with `images` before `settings` where it takes pictures.
    Raises ValueError with one sentence for what cannot be used."""
    takes_pictures: bool = False
    encoder_alone: bool = False
    """Whether it needs nothing but the text encoder, which is a TextModel then."""
    counts: str = "steps"
    """What its record counts as steps."""
    resumes: bool = False
    """Whether a run that was cut short can go on."""
    curve: Mapping[str, str] = field(default_factory=dict)
    """By mode, "" where there is none: what its losses are, and how they are to run."""
    recorded: tuple[str, ...] = ()
    """What its records say beside what all say; without these a file counts as damaged."""

    @property
    def node_id(self) -> str:
        return re.sub(r"\W", "", self.title)

    @cached_property
    def described(self) -> dict[str, Setting]:
        """Its settings by the names of their fields."""
        return settings_of(self.settings)

    def run(
        self,
        model: DiffusionModel,
        concepts: Sequence[str],
        settings: Any,
        images: torch.Tensor | None = None,
        progress: Progress | OnStep | None = None,
        resume: Resume | None = None,
    ) -> Erasure:
        """Train an erasure. images: (N, H, W, 3) in 0..1, where it takes pictures; None: the model
        draws them. Raises what `train` raises."""
        more: list[Any] = [resume] if self.resumes else []
        return self.train(
            model, concepts, *self._own(images), settings, as_progress(progress), *more
        )

    def check_inputs(
        self,
        concepts: Sequence[str],
        settings: Any,
        images: torch.Tensor | None = None,
        read: Read | None = None,
    ) -> None:
        """Raises ValueError with one sentence where they cannot be used. read: the model's
        `readings`, where there is a model already."""
        self.check(concepts, *self._own(images), settings, read)

    def _own(self, images: torch.Tensor | None) -> list[torch.Tensor | None]:
        return [images] if self.takes_pictures else []
