"""What the study of transfer to video measures: concepts, groups and jobs."""

from __future__ import annotations

from dataclasses import dataclass

from .. import ROOT
from ..model.measure import STEPS

SHOTS = (1, 2, 4, 8)
SOURCES = ("real", "drawn")


# Measured with every number of pictures: an object, a style and a character.
SINGLES = ("fox", "ink", "Zorvik")


# Several concepts in one encoder, with GROUP_SHOTS pictures of each. Each is also erased alone.
GROUPS = (("fox", "guitar"), ("fox", "guitar", "pizza", "castle"))
GROUP_SHOTS = 4


SEED = 0
STRIPS = ROOT / "output" / "transfer"


@dataclass(frozen=True)
class Effort:
    """How much is drawn and trained."""

    own: int = 7
    """Clips of each concept. near: of others of its kind; far: of other kinds."""
    near: int = 4
    far: int = 2
    steps: int = STEPS
    """Sampling steps of a clip."""
    erasing: int = 120
    """Most training steps for each concept."""


FULL = Effort()
QUICK = Effort(own=2, near=1, far=1, steps=2, erasing=2)


@dataclass(frozen=True)
class Job:
    """One encoder to erase and measure; with shots 0 the unedited one."""

    concepts: tuple[str, ...]
    shots: int = 0
    source: str = ""

    @property
    def compared(self) -> bool:
        """Whether the job is part of the comparison of several concepts in one encoder."""
        among = any(set(self.concepts) <= set(group) for group in GROUPS)
        return among and self.shots == GROUP_SHOTS

    @property
    def name(self) -> str:
        return "-".join((*self.concepts, str(self.shots), self.source)).strip("-")


def jobs(
    singles: tuple[str, ...] = SINGLES,
    shots: tuple[int, ...] = SHOTS,
    groups: tuple[tuple[str, ...], ...] = GROUPS,
) -> list[Job]:
    """All jobs. The unedited model for each set of concepts comes first."""
    members = [(concept,) for group in groups for concept in group]
    # The longest first, so that the processes end at about the same time.
    wanted = [
        Job(group, GROUP_SHOTS, source)
        for group in (*sorted(groups, key=len, reverse=True), *members)
        for source in SOURCES
    ]
    wanted += [
        Job((concept,), count, source)
        for concept in singles
        for count in shots
        for source in SOURCES
    ]
    wanted = list(dict.fromkeys(wanted))
    unedited = list(dict.fromkeys(Job(job.concepts) for job in wanted))
    return [*unedited, *wanted]


def job_of(row: dict) -> Job:
    return Job(tuple(row["concepts"]), row["shots"], row["source"])
