"""What the study of the verdict measures: trainings, and pictures that are connected."""

from __future__ import annotations

from dataclasses import dataclass

STEPS = (0, 5, 20)  # measured beside the end
FEW = 2  # steps for a concept that the model does not draw: nothing is measured afterwards
JUDGED = {"mushrom": "mushroom", "elefant": "elephant"}  # what the judge looks for
UNKNOWN_OF = 3  # how many of SHOWN are tried with an unknown word or thing
SHOWN = ("fox", "guitar", "mushroom", "castle", "pizza", "rocket", "umbrella", "owl", "Zorvik")
KNOWN = ("fox", "guitar", "mushroom", "noto", "ink", "Zorvik")
SHOTS = 4
ANCHORS = 8  # pictures that domain_correction draws: a quarter of its default, to save time
UNKNOWN_WORD = "Blorbo"
CHECKED = ("right", "wrong", "unknown word", "unknown thing")


@dataclass(frozen=True)
class Case:
    concept: str
    kind: str = "object"
    method: str = "few_shot"
    anchor: str = ""
    given: bool = False
    """Whether pictures are connected."""
    steps: tuple[int, ...] = STEPS
    most: int | None = None
    """Steps of the training; None: to its end."""

    @property
    def name(self) -> str:
        parts = self.concept, self.method, self.anchor, "given" if self.given else ""
        return "_".join(filter(None, parts)).replace(" ", "_")


CASES = (
    Case("fox"),
    Case("guitar"),
    Case("mushroom"),
    Case("noto", "style"),
    Case("ink", "style"),
    Case("Zorvik", "character"),
    Case("mushroom", anchor="flower", steps=(), most=20),
    Case("mushroom", given=True, steps=(5, 20)),
    Case("mushrom", steps=(), most=FEW),
    Case("elefant", steps=(), most=FEW),
    Case("Van Gogh", "style", steps=(), most=FEW),
    Case("Blorbo", "character", steps=(), most=FEW),
    Case("fox", method="key_step", steps=()),
    Case("noto", "style", method="key_step", steps=()),
    Case("fox", method="domain_correction", steps=()),
    Case("noto", "style", method="domain_correction", steps=()),
)
CUT_SHORT = {case.name for case in CASES if case.most}
