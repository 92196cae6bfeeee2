"""What a judge is, and how it is asked. A judge says which pictures show a concept.

A judge of another package needs nothing from here: any object with a `name`, `settings` and `look`
will do (see registry.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...core.kind import Kind
from ...core.model import Open
from ...core.progress import SILENT, Progress
from ..detection import DRAWS, Seen


@dataclass(frozen=True)
class Question:
    """What a judge is asked. It reads what it needs."""

    pictures: torch.Tensor
    """(N, H, W, 3) in 0..1, on the CPU. All are finite."""
    concepts: Sequence[str]
    kind: Kind
    original: Open
    """Opens the original model, `with question.original() as model`."""
    others: Sequence[str] | None = None
    """For the original model: the words to compare with. None: the usual ones."""
    things: Sequence[str] = ()
    """For the original model, of a style: what the pictures may show beside it."""
    draws: int = DRAWS
    """For the original model: the classifier's draws for a picture."""
    seed: int = 0
    progress: Progress = SILENT
    """Call `progress.stage("judging", done, total)` after each picture: it may raise to cancel."""


def _nothing() -> None:
    return None


def _unknown() -> str:
    return ""


@dataclass(frozen=True)
class Judge:
    """A judge. Its file has one as JUDGE, and `registry.py` finds it there."""

    key: str
    """In menus, on the command line and in records: nudenet."""
    name: str
    """In sentences: NudeNet."""
    look: Callable[[Question], Sequence[Any]]
    """An answer for each picture: True where it shows the concept, or a `detection.Seen`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What decides its answers, such as a threshold, for the record: values that JSON holds."""
    check: Callable[[], None] = _nothing
    """Raises ValueError with one sentence where it cannot judge, for example since its package is
    not installed. It is called before anything is drawn."""
    version: Callable[[], str] = _unknown
    """The version of its package, for the record; "" where it has none."""

    def record(self) -> dict:
        """Who judged, as JSON for an erasure's record."""
        found: dict[str, Any] = {"key": self.key, "name": self.name}
        if version := self.version():
            found["version"] = version
        return {**found, "settings": dict(self.settings)} if self.settings else found


def judged(judge: Judge, question: Question) -> list[Seen]:
    """What the judge says of each picture. A picture that is not finite shows nothing.

    Raises ValueError where the judge does not answer once for each picture, and what it raises.
    """
    seen = [Seen(False, None) for _ in question.pictures]
    finite = [i for i, one in enumerate(question.pictures) if one.isfinite().all()]
    if not finite:
        return seen
    answers = list(judge.look(replace(question, pictures=question.pictures[finite])))
    if len(answers) != len(finite):
        raise ValueError(
            f"The judge {judge.name} answered {len(answers)} times for {len(finite)} pictures; "
            "update it, or choose another judge."
        )
    for i, answer in zip(finite, answers):
        seen[i] = answer if hasattr(answer, "shown") else Seen(bool(answer), None)
    return seen
