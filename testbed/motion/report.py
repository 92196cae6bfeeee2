"""The motion module's report: do clips show the right thing, and do they move as the word says?

    python -m testbed motion-report

writes docs/motion.md and docs/motion_sheet.png.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

from ..host import process as host
from ..host.machine import machine
from ..host.workers import processes
from ..model import drawings, pack
from ..model.captions import moving
from ..model.judge import Judge
from ..model.measure import GUIDANCE, Prompt, draw, portrait, styled
from ..model.phrases import MOTION_WORDS
from ..model.reading import STEPS
from ..model.report import DOCS, grid
from ..model.vocabulary import CHARACTERS, FRAMES, HELD_OUT, MOTIONS, OBJECTS, STYLES
from . import clips, motion
from . import estimate as motion_estimate

BARS = {"object": 0.92, "motion": 0.95}
WORDINGS = 3  # of each motion
FEW = 4  # the second way to normalise is measured on every fourth clip


@dataclass(frozen=True)
class Shot:
    """What a clip should show, and how it should move."""

    prompt: Prompt
    motion: str | None
    wording: int
    """Which of the motion's wordings the prompt has."""


def shot(prompt: Prompt, word: str | None, wording: int = 0) -> Shot:
    """word: None for a prompt that names no motion: the clip should stand still."""
    if word is None:
        return Shot(prompt, None, wording)
    return Shot(replace(prompt, text=moving(prompt.text, word, wording)), word, wording)


def shots() -> list[Shot]:
    """Every object in two motions and two styles, every character in one motion, in all the
    wordings by turns; and every fourth object in no motion."""
    chosen = []
    for i, name in enumerate(OBJECTS):
        for turn in (0, 1):
            # In steps of two motions, so that every style gets every motion.
            word = MOTIONS[(i + 2 * turn) % len(MOTIONS)]
            prompt = styled(name, STYLES[(i + 3 * turn) % len(STYLES)], "own")
            chosen.append(shot(prompt, word, (i + turn) % WORDINGS))
    for i, name in enumerate(CHARACTERS):
        chosen.append(shot(portrait(name, "own"), MOTIONS[i % len(MOTIONS)], i % WORDINGS))
    still = [styled(name, STYLES[i % len(STYLES)], "own") for i, name in enumerate(OBJECTS[::4])]
    return chosen + [shot(prompt, None) for prompt in still]


@functools.lru_cache
def loaded(file: Path) -> tuple[torch.nn.Module, motion.Motion]:
    """The host's model of IconCanvas, and the motion module in the file."""
    host.start("--use-pytorch-cross-attention")
    model = pack.load().nodes.backend.model.ComfyModel(
        *pack.checkpoint(), size=(drawings.SIZE,) * 2
    )
    return model, motion.load(file).to(model.device)


def take(some: list[Shot], seed: int, file: Path, by: motion.Normalised | None) -> torch.Tensor:
    """Clips (N, FRAMES, 128, 128, 3). by: how features are normalised; None draws one picture for
    each shot, (N, 1, 128, 128, 3), by the image model alone."""
    model, modules = loaded(file)
    with torch.inference_mode(), model.training():
        if by is None:
            return draw(model, [s.prompt for s in some], seed, STEPS)[:, None].cpu()
        with motion.inserted(model.network.diffusion_model, modules.normalise(by)):
            frames = [s.prompt for s in some for _ in range(FRAMES)]
            return draw(model, frames, seed, STEPS).unflatten(0, (-1, FRAMES)).cpu()


def film(
    pool: ProcessPoolExecutor,
    some: list[Shot],
    seed: int,
    file: Path,
    by: motion.Normalised | None,
    batch: int = 4,
) -> torch.Tensor:
    """`take` for all shots, `batch` at once in each of the processes."""
    waiting = [
        pool.submit(take, some[i : i + batch], seed + i * FRAMES, file, by)
        for i in range(0, len(some), batch)
    ]
    return torch.cat([one.result() for one in tqdm(waiting, desc="clips" if by else "pictures")])


def judged(some: list[Shot], made: torch.Tensor, judge: Judge) -> list[dict]:
    """For each clip (N, frames, 128, 128, 3): {"right": for every frame whether the judge sees what
    was asked for, "shows": None}."""
    rows = []
    for one, frames in zip(some, made, strict=True):
        kind = "object" if one.prompt.object else "character"
        wanted = getattr(one.prompt, kind)
        rows.append({"right": [seen[kind] == wanted for seen in judge(frames)], "shows": None})
    return rows


def score(some: list[Shot], made: torch.Tensor, judge: Judge) -> list[dict]:
    """As `judged`; "shows" is the motion word that the clip shows, or None."""
    shown = motion_estimate.words(made.movedim(-1, 2))
    return [{**row, "shows": word} for row, word in zip(judged(some, made, judge), shown)]


def share(values) -> float:
    values = list(values)
    return sum(values) / max(1, len(values))


def figures(some: list[Shot], rows: list[dict]) -> dict[str, float]:
    """{"object", "character"}: the share of right frames; {"motion", "still"}: the share of right
    clips, of those that are told to move and of those that are not."""

    def right(kind: str) -> float:
        return frames_right(some, rows, lambda prompt: getattr(prompt, kind) is not None)

    return {
        "object": right("object"),
        "character": right("character"),
        "motion": share(row["shows"] == s.motion for s, row in zip(some, rows) if s.motion),
        "still": share(row["shows"] is None for s, row in zip(some, rows) if not s.motion),
    }


def frames_right(some: list[Shot], rows: list[dict], of: Callable[[Prompt], bool]) -> float:
    """The share of frames in clips of these prompts in which the judge sees what was asked for."""
    return share(r for s, row in zip(some, rows) if of(s.prompt) for r in row["right"])


def unseen(prompt: Prompt) -> bool:
    """Whether the prompt asks for a held-out pair of object and style."""
    return (prompt.object, prompt.style) in HELD_OUT


def true_clips(some: list[Shot]) -> torch.Tensor:
    """The drawings themselves, moved by rule: the best figures that the measures can give."""
    made = []
    for one in some:
        p = one.prompt
        picture = drawings.of(p.object or p.character)[STYLES.index(p.style) if p.style else 0]
        picture = picture.movedim(-1, 0)
        moves = clips.clip(picture[None], one.motion)[0] if one.motion else None
        made.append(picture.expand(FRAMES, -1, -1, -1) if moves is None else moves)
    return torch.stack(made).movedim(2, -1)


def sheet(some: list[Shot], made: torch.Tensor, file: Path, each: int = 4) -> None:
    """`each` clips of every motion word, two in a row, at half size, with their prompts."""
    rows, names = [], []
    for word in MOTIONS:
        mine = [i for i, s in enumerate(some) if s.motion == word]
        # Spread over the list. Its last entries are characters.
        chosen = mine[:: max(1, (len(mine) - 1) // (each - 1))][: each - 1] + mine[-1:]
        for pair in (chosen[:2], chosen[2:]):
            rows.append(torch.cat([made[i] for i in pair]))
            names.append([some[i].prompt.text for i in pair])
    pictures = grid(torch.cat(rows), 2 * FRAMES)
    pictures = pictures.resize(
        (pictures.width // 2, pictures.height // 2), Image.Resampling.LANCZOS
    )
    line, side = 14, pictures.height // len(rows)
    whole = Image.new("RGB", (pictures.width, len(rows) * (side + line)), "white")
    pen = ImageDraw.Draw(whole)
    for i, pair in enumerate(names):
        top = i * (side + line)
        for j, text in enumerate(pair):
            pen.text((4 + j * pictures.width // 2, top), text, fill="black")
        strip = pictures.crop((0, i * side, pictures.width, (i + 1) * side))
        whole.paste(strip, (0, top + line))
    whole.save(file, optimize=True)


@dataclass(frozen=True)
class Measured:
    """Rows as from `score`, all for the same shots; `together` only for every FEW-th."""

    alone: list[dict]
    """Each frame normalised by itself."""
    together: list[dict]
    """The frames of a clip normalised together."""
    still: list[dict]
    """The image model alone, without the motion module: one picture for each shot."""
    true: list[dict]
    """The drawings themselves, moved by rule."""
    seconds: float
    """For each clip."""


def table(some: list[Shot], found: Measured) -> list[str]:
    """The figures, beside the best that can be reached."""

    def line(what: str, of: Callable[[Prompt], bool], bar: str = "") -> str:
        shares = (frames_right(some, r, of) for r in (found.alone, found.still, found.true))
        ours, still, true = (f"{x:.1%}" for x in shares)
        return f"| {what} | {ours} | {bar} | {still} | {true} |"

    ours, true = (figures(some, rows) for rows in (found.alone, found.true))
    return [
        "| what | measured | bar | image model, still | true drawings, moved |",
        "|---|---|---|---|---|",
        line("object right, share of frames", lambda p: bool(p.object), f"{BARS['object']:.0%}"),
        line("in a style that it was trained in", lambda p: bool(p.object) and not unseen(p)),
        line("in a style that it was never seen in", unseen),
        line("character right, share of frames", lambda p: bool(p.character)),
        f"| motion right, share of clips | {ours['motion']:.1%} | {BARS['motion']:.0%} | | "
        f"{true['motion']:.1%} |",
        f"| no motion where none is named | {ours['still']:.1%} | | | {true['still']:.1%} |",
        f"| seconds a clip, in batches of 4, on all cores | {found.seconds:.1f} | | | |",
    ]


def by_word(some: list[Shot], rows: list[dict]) -> list[str]:
    lines = [
        "| motion | object or character right | motion right | taken for |",
        "|---|---|---|---|",
    ]
    for word in MOTIONS:
        mine = [row for s, row in zip(some, rows) if s.motion == word]
        wrong = [row["shows"] or "none" for row in mine if row["shows"] != word]
        taken = ", ".join(f"{w} {wrong.count(w)}" for w in sorted(set(wrong)))
        seen = share(r for row in mine for r in row["right"])
        agree = share(row["shows"] == word for row in mine)
        lines.append(f"| {word} | {seen:.0%} | {agree:.0%} | {taken} |")
    return lines


def by_wording(some: list[Shot], rows: list[dict]) -> str:
    """A sentence with the share of clips that move as told, for each wording."""
    shares = []
    for wording in range(WORDINGS):
        told = [(s, r) for s, r in zip(some, rows) if s.motion and s.wording == wording]
        right = [r["shows"] == s.motion for s, r in told]
        example = MOTION_WORDS[MOTIONS[0]][wording]
        shares.append(f'{share(right):.0%} as "{example}"')
    return f"Motion right, by wording: {', '.join(shares)}."


def page(some: list[Shot], found: Measured) -> str:
    few, rows = some[::FEW], found.alone
    alone, together = figures(few, rows[::FEW]), figures(few, found.together)
    by_frame = [share(row["right"][k] for row in rows) for k in range(FRAMES)]
    lines = [
        "# The motion module",
        "",
        f"Made by `python -m testbed motion-report`: {len(some)} clips of {FRAMES} frames, every "
        "object in two motions and two styles, every character in one, and every fourth object in "
        "none. "
        f"{STEPS} steps, guidance {GUIDANCE:g}. The judge looks at each frame. The motion is "
        "estimated from the pixels (testbed/motion/estimate.py) and must be that of the prompt's "
        "last words. Beside each figure stands what can be reached at best: by single pictures "
        "that the image model draws from the same prompts without a motion module, and by drawings "
        "that are moved by rule.",
        "",
        *table(some, found),
        "",
        *by_word(some, rows),
        "",
        by_wording(some, rows),
        "",
        "Right by frame, first to last: " + ", ".join(f"{x:.0%}" for x in by_frame) + ".",
        "",
        "AnimateDiff normalises each frame by itself, diffusers all frames of a clip together. On "
        f"every fourth clip, the first way: objects {alone['object']:.0%}, motion "
        f"{alone['motion']:.0%}; the second way: objects {together['object']:.0%}, motion "
        f"{together['motion']:.0%}.",
        "",
        "![contact sheet](motion_sheet.png)",
        "",
        f"Measured on {machine()}.",
    ]
    return "\n".join(lines) + "\n"


def write(file: Path = motion.WEIGHTS, folder: Path = DOCS, seed: int = 5000) -> None:
    """Draw the clips, judge them, and write the report."""
    some, judge = shots(), Judge()
    with processes() as pool:
        still = film(pool, some, seed, file, None)
        started = time.perf_counter()
        made = film(pool, some, seed, file, "frame")
        seconds = (time.perf_counter() - started) / len(some)
        together = film(pool, some[::FEW], seed, file, "clip")
    found = Measured(
        score(some, made, judge),
        score(some[::FEW], together, judge),
        judged(some, still, judge),
        score(some, true_clips(some), judge),
        seconds,
    )
    folder.mkdir(exist_ok=True)
    text = page(some, found)
    (folder / "motion.md").write_text(text, encoding="utf-8")
    sheet(some, made, folder / "motion_sheet.png")
    print(text)
