"""The original model as the judge: a classifier, see detection.py. It needs nothing else."""

from __future__ import annotations

from ..detection import Seen, remains
from .judge import Judge, Question


def look(question: Question) -> list[Seen]:
    with question.original() as model:
        return remains(
            model,
            question.pictures,
            question.concepts,
            question.kind,
            others=question.others,
            draws=question.draws,
            seed=question.seed,
            progress=question.progress,
            things=question.things,
        )


JUDGE = Judge("original", "the original model", look)
