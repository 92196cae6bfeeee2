"""CPDM's data as folders: anchors, their prompts, and generated pictures.

    anchors/        the works, one picture each
    caption.csv     a line for each: columns image (the anchor's file name) and prompt
    generated/      for each anchor nine pictures, named <anchor>_<number>

The released code of arXiv 2403.12052 uses the same names. The data itself is not part of this
package. Options can name other folders.
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
"""Pictures for each anchor."""


@dataclass(frozen=True)
class Work:
    """An anchor and its generated pictures, in the order of their names."""

    anchor: Path
    generated: list[Path]

    @property
    def name(self) -> str:
        return self.anchor.stem


@dataclass(frozen=True)
class Caption:
    """A line of caption.csv."""

    image: str
    """The anchor's file name."""
    prompt: str

    @property
    def name(self) -> str:
        return Path(self.image).stem

    def file(self, number: int) -> str:
        """The file name of a generated picture. Numbers run over the whole set."""
        return f"{self.name}_{number:05}.png"


LONGEST = 200  # the most bytes of an anchor's name, which leaves room for number and ending


def read_captions(file: Path) -> list[Caption]:
    """The captions in a file. Raises Failure for a file that is missing or not in this format."""
    if not file.is_file():
        raise Failure(
            f"There is no {file}; write it with the columns image and prompt, one line per anchor."
        )
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(file), newline="")))
    except (ValueError, csv.Error):
        raise Failure(f"{file} is not a CSV table in UTF-8; save it as one.") from None
    if not rows or not {"image", "prompt"} <= rows[0].keys():
        raise Failure(f"{file} has no lines with the columns image and prompt; add them.")
    captions = [Caption(row["image"] or "", row["prompt"] or "") for row in rows]
    for line, caption in enumerate(captions, 2):
        if not caption.name or not caption.prompt.strip():
            raise Failure(f"Line {line} of {file} lacks an image or a prompt; complete it.")
        if not caption.name.isprintable() or len(caption.name.encode(errors="replace")) > LONGEST:
            raise Failure(
                f"The image in line {line} of {file} is not a valid file name; correct it."
            )
    check_names([caption.name for caption in captions], file)
    return captions


def read_works(anchors: Path, generated: Path) -> list[Work]:
    """The anchors in the order of their names, each with its generated pictures, if any.

    Raises Failure for a folder that is missing or empty, and for a picture without an anchor.
    """
    files = pictures(anchors)
    check_names([file.stem for file in files], anchors)
    works = {file.stem: Work(file, []) for file in files}
    for file in pictures(generated):
        numbered = NUMBERED.fullmatch(file.stem)
        work = works.get(numbered[1]) if numbered else None
        if work is None:
            raise Failure(
                f"{file.name} in {generated} belongs to no anchor in {anchors}; rename it to the "
                "anchor's name with an underscore and a number, or remove it."
            )
        work.generated.append(file)
    return list(works.values())


def pictures(folder: Path) -> list[Path]:
    """The picture files of a folder in the order of their names. Raises Failure where there are
    none."""
    if not folder.is_dir():
        raise Failure(f"There is no folder {folder}; name the one with the pictures.")
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS)
    if not found:
        raise Failure(f"{folder} holds no pictures ({', '.join(sorted(ENDINGS))}); put some there.")
    return found


def check_names(names: Sequence[str], where: Path) -> None:
    """Raises Failure where two anchors share a name."""
    for name, times in Counter(names).items():
        if times > 1:
            raise Failure(
                f"There are {times} anchors named {name} in {where}, so their generated pictures "
                "cannot be told apart; rename all but one."
            )


def check_same(before: Sequence[Work], after: Sequence[Work]) -> None:
    """Raises Failure unless both sides have the same generated pictures."""
    names = [{file.stem for work in side for file in work.generated} for side in (before, after)]
    if names[0] != names[1]:
        raise Failure(
            f"{min(names[0] ^ names[1])} was drawn only before or only after the erasure; build "
            "both with the same --count."
        )
