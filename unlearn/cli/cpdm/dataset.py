"""CPDM's data as folders: anchors, their prompts, and what a model made of these.

    anchors/        the works, one picture each
    caption.csv     a line for each: columns image (the anchor's file name) and prompt
    generated/      for each anchor nine pictures, named <anchor>_<number>

That is how the released code of arXiv 2403.12052 reads captions and names what it draws; the data
itself is its authors' to give. Other names of folders can be given.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..output import Failure
from ..pictures import ENDINGS
from ..texts import read_text

NUMBERED = re.compile(r"(.+)_\d+")
COUNT = 9
"""Pictures drawn of each anchor."""


@dataclass(frozen=True)
class Work:
    """An anchor and what was generated of it, in the order of the names."""

    anchor: Path
    generated: list[Path]

    @property
    def name(self) -> str:
        return self.anchor.stem


@dataclass(frozen=True)
class Caption:
    image: str
    """The anchor's file name."""
    prompt: str

    @property
    def name(self) -> str:
        return Path(self.image).stem

    def file(self, number: int) -> str:
        """The name of a generated picture; number: over the whole set."""
        return f"{self.name}_{number:05}.png"


LONGEST = 200  # bytes of an anchor's name, so that there is room for a number and an ending


def read_captions(file: Path) -> list[Caption]:
    """Raises Failure for a file that is missing or not as the set has it."""
    if not file.is_file():
        raise Failure(
            f"There is no {file}; write it with the columns image and prompt, a line for each "
            "anchor."
        )
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(file), newline="")))
    except (ValueError, csv.Error):
        raise Failure(f"{file} is no table in UTF-8; write it anew as CSV.") from None
    if not rows or not {"image", "prompt"} <= rows[0].keys():
        raise Failure(f"{file} has no line with the columns image and prompt; add them.")
    captions = [Caption(row["image"] or "", row["prompt"] or "") for row in rows]
    for line, caption in enumerate(captions, 2):
        if not caption.name or not caption.prompt.strip():
            raise Failure(f"Line {line} of {file} lacks an image or a prompt; complete it.")
        if not caption.name.isprintable() or len(caption.name.encode(errors="replace")) > LONGEST:
            raise Failure(
                f"The image in line {line} of {file} has a name that no file can have; correct it."
            )
    check_names([caption.name for caption in captions], file)
    return captions


def read_works(anchors: Path, generated: Path) -> list[Work]:
    """The anchors in the order of their names, each with its generated pictures, none or more.

    Raises Failure for a folder that is missing or empty, and for a picture of no anchor.
    """
    files = pictures(anchors)
    check_names([file.stem for file in files], anchors)
    works = {file.stem: Work(file, []) for file in files}
    for file in pictures(generated):
        numbered = NUMBERED.fullmatch(file.stem)
        work = works.get(numbered[1]) if numbered else None
        if work is None:
            raise Failure(
                f"{file.name} in {generated} is of no anchor in {anchors}: name it after its "
                "anchor, with an underscore and a number behind, or take it away."
            )
        work.generated.append(file)
    return list(works.values())


def pictures(folder: Path) -> list[Path]:
    """The picture files of a folder by name. Raises Failure where there are none."""
    if not folder.is_dir():
        raise Failure(f"There is no folder {folder}; name the one with the pictures.")
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS)
    if not found:
        raise Failure(f"{folder} holds no pictures ({', '.join(sorted(ENDINGS))}).")
    return found


def check_names(names: Sequence[str], where: Path) -> None:
    """Raises Failure where two anchors share a name."""
    for name, times in Counter(names).items():
        if times > 1:
            raise Failure(
                f"{name} is there {times} times in {where}, so that its generated pictures cannot "
                "be told apart; rename all but one."
            )


def check_same(before: Sequence[Work], after: Sequence[Work]) -> None:
    """Raises Failure unless the same was generated on both sides."""
    one, two = ({file.stem for work in side for file in work.generated} for side in (before, after))
    if one != two:
        raise Failure(
            f"{min(one ^ two)} was generated on one side only; build both with the same --count."
        )
