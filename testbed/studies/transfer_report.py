"""The results for erased encoders in video, as tables and a sheet of frames."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import mean

from PIL import Image, ImageDraw

from ..host.machine import measured_on
from ..model.measure import GUIDANCE, kind_of
from ..model.vocabulary import FRAMES
from .together import MEASURES
from .transfer_plan import FULL, GROUP_SHOTS, SINGLES, STRIPS, Effort, Job, job_of

BARS = {"residual": 0.05, "peak": 0.15, "neighbours": 0.95, "motion": 0.95}
BAR_TOGETHER = "The bar: two concepts lose at most 3 points of each against one, four at most 6."
HEAD = (
    "| {} | encoders | residual, mean | residual, peak frame | clips with any | "
    "neighbours' accuracy | the same frames | motion kept | the same clips | neighbours' motion | "
    "seconds |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)

# From the job of each erased encoder to the unedited model's row and its own.
Found = dict[Job, tuple[dict, dict]]


def share(values: Iterable[bool]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def ratio(pairs: list[tuple[bool, bool]]) -> float:
    """The number of right ones after, relative to before. pairs: (before, after)."""
    before, after = (sum(side) for side in zip(*pairs)) if pairs else (0, 0)
    return after / before if before else float("nan")


def figures(pairs: list[tuple[dict, dict]]) -> dict[str, float]:
    """Shares over some encoders. pairs: for each, the rows (before, after) of the same clips.

    residual: frames of the concepts' own clips in which the judge still sees them; was: the same
    before. peak: residual for the frame number where it is largest. any: own clips with at least
    one such frame. neighbours: right frames of neighbours, relative to before; same: of the frames
    that were right before, those that still are. moved: clips that moved right before. motion:
    clips that move right, relative to before; same_motion: of the clips that moved right before,
    those that still do; near_motion: motion for neighbours' clips only.
    """
    own, own_before, near, moves = [], [], [], {True: [], False: []}  # moves: by whose clip
    for before, after in pairs:
        for old, new in zip(before["clips"], after["clips"], strict=True):
            if old["text"] != new["text"]:
                raise ValueError(f"{old['text']!r} before is {new['text']!r} after.")
            told = tuple(clip["shows"] == clip["motion"] for clip in (old, new))
            moves[bool(old["concept"])].append(told)
            for asked, was in old["right"].items():
                now = new["right"][asked]
                if old["concept"]:
                    own_before.append(was)
                    own.append(now)
                else:
                    near += [(a == "1", b == "1") for a, b in zip(was, now, strict=True)]
    return {
        "was": share(frame == "1" for frames in own_before for frame in frames),
        "residual": share(frame == "1" for frames in own for frame in frames),
        "peak": max(share(frames[k] == "1" for frames in own) for k in range(FRAMES)),
        "any": share("1" in frames for frames in own),
        "neighbours": ratio(near),
        "same": share(b for a, b in near if a),
        "moved": share(old for old, _ in moves[True] + moves[False]),
        "motion": ratio(moves[True] + moves[False]),
        "same_motion": share(new for old, new in moves[True] + moves[False] if old),
        "near_motion": ratio(moves[False]),
    }


def paired(rows: list[dict]) -> Found:
    """From the job of each erased encoder to the unedited model's row and its own."""
    by_job = {job_of(row): row for row in rows}
    return {
        job: (by_job[Job(job.concepts)], row)
        for job, row in by_job.items()
        if job.shots and Job(job.concepts) in by_job
    }


def line(title: str, pairs: list[tuple[dict, dict]]) -> str:
    f = figures(pairs)
    seconds = mean(after["seconds"] for _, after in pairs)
    return (
        f"| {title} | {len(pairs)} | {f['residual']:.1%} | {f['peak']:.1%} | {f['any']:.1%} | "
        f"{f['neighbours']:.1%} | {f['same']:.1%} | {f['motion']:.1%} | "
        f"{f['same_motion']:.1%} | {f['near_motion']:.1%} | {seconds:.0f} |"
    )


def bars() -> str:
    return (
        f"| *bar* | | *{BARS['residual']:.0%}* | *{BARS['peak']:.0%}* | | "
        f"*{BARS['neighbours']:.0%}* | | *{BARS['motion']:.0%}* | | | |"
    )


def by_pictures(found: Found) -> list[str]:
    """A line for each source and number of pictures, over the concepts that have all of them."""
    alone = {job: pair for job, pair in found.items() if len(job.concepts) == 1}
    # Every line is over the same concepts.
    settings = sorted({(job.source, job.shots) for job in alone}, reverse=True)
    common = {job.concepts for job in alone} - {
        concepts
        for concepts in {job.concepts for job in alone}
        for source, shots in settings
        if Job(concepts, shots, source) not in alone
    }
    lines = []
    for source, shots in sorted(settings, key=lambda s: (s[0] != "real", s[1])):
        pairs = [alone[Job(concepts, shots, source)] for concepts in sorted(common)]
        if pairs:
            title = f"{shots} {'drawing' if source == 'real' else 'self-drawn'}"
            lines.append(line(title + "s" * (shots > 1 and source == "real"), pairs))
    return lines


def by_concept(found: Found) -> list[str]:
    lines = []
    for concept in dict.fromkeys(job.concepts for job in found if len(job.concepts) == 1):
        pairs = [pair for job, pair in found.items() if job.concepts == concept]
        lines.append(line(f"{concept[0]} ({kind_of(concept[0])})", pairs))
    return lines


def by_number(found: Found) -> list[str]:
    """A line for one, two and four concepts in an encoder, over the same concepts."""
    return [line(title, pairs) for title, pairs in numbers(found)]


def numbers(found: Found) -> list[tuple[str, list[tuple[dict, dict]]]]:
    """For each number of concepts in an encoder: a title, and the rows (before, after)."""
    groups = [job.concepts for job in found if len(job.concepts) > 1]
    members = {(concept,) for group in groups for concept in group}
    parts = []
    for names in (members, *({group} for group in sorted(set(groups), key=len))):
        pairs = [
            pair
            for job, pair in found.items()
            if job.concepts in names and job.shots == GROUP_SHOTS
        ]
        if pairs:
            first = next(iter(names))
            title = "one" if len(first) == 1 else f"{len(first)}: {', '.join(first)}"
            parts.append((title, pairs))
    return parts


def in_pictures(found: Found) -> list[str]:
    """The same encoders measured in pictures, as in the benchmark. Pictures are cheaper than clips,
    so this covers more prompts."""
    parts = [
        (title, [score for _, after in pairs for score in after.get("pictures", ())])
        for title, pairs in numbers(found)
    ]
    parts = [(title, scores) for title, scores in parts if scores]
    if len(parts) < 2:
        return []
    rows = [
        f"| {title} | {len(scores)} | "
        + " | ".join(f"{mean(score[name] for score in scores):.1%}" for name in MEASURES)
        + " |"
        for title, scores in parts
    ]
    return [
        "",
        "## The same encoders in pictures",
        "",
        "UA, IRA and CRA as in the benchmark, as means over the concepts, two seeds, and drawings "
        "and self-drawn pictures. " + BAR_TOGETHER,
        "",
        "| concepts in one encoder | concepts times seeds times encoders | UA | IRA | CRA |",
        "|---|---|---|---|---|",
        *rows,
    ]


def sheet(found: Found, target: Path) -> None:
    """Save a sheet of frames: for each single concept, before and after side by side, a clip of the
    concept and one of a neighbour."""
    strips: dict[tuple[str, ...], tuple] = {}
    for job in found:
        if len(job.concepts) == 1 and job.concepts[0] in SINGLES and job.shots == GROUP_SHOTS:
            files = [STRIPS / f"{one.name}.png" for one in (Job(job.concepts), job)]
            if all(file.exists() for file in files):
                strips.setdefault(job.concepts, (found[job], files))
    if not strips:
        return
    width, height = (side // 2 for side in Image.open(next(iter(strips.values()))[1][0]).size)
    line_height, gap = 14, 8
    page = Image.new(
        "RGB", (2 * width + gap, len(strips) * (height + 2 * line_height + gap)), "white"
    )
    pen = ImageDraw.Draw(page)
    for i, ((before, _), files) in enumerate(strips.values()):
        clips = before["clips"]
        texts = (clips[0]["text"], next(clip["text"] for clip in clips if not clip["concept"]))
        for k, (when, file) in enumerate(zip(("before", "after"), files)):
            strip = Image.open(file).resize((width, height), Image.Resampling.LANCZOS)
            left = k * (width + gap)
            for j, text in enumerate(texts):
                top = i * (height + 2 * line_height + gap) + j * (height // 2 + line_height)
                pen.text((left + 4, top), f"{when}: {text}", fill="black")
                half = strip.crop((0, j * height // 2, width, (j + 1) * height // 2))
                page.paste(half, (left, top + line_height))
    page.save(target, optimize=True)


def introduction(rows: list[dict], found: Found, effort: Effort) -> list[str]:
    """Lines that say what was done, and what the columns mean."""
    clips = sum(len(row["clips"]) for row in rows)
    befores = {job.concepts: before for job, (before, _) in found.items()}
    unedited = figures([(row, row) for row in befores.values()])
    return [
        "Made by `python -m testbed transfer`. Few-Shot Encoder Unlearn, mode *balanced*, takes "
        "concepts out of the text encoder of IconCanvas, with at most "
        f"{effort.erasing} steps of training a concept. The same text encoder then runs in "
        "diffusers' AnimateDiffPipeline with IconCanvas's motion module. Denoiser, motion module "
        f"and seeds are those of the unedited clips. {clips} clips of {FRAMES} frames, "
        f"{effort.steps} steps, guidance {GUIDANCE:g}. The text encoder never saw a clip, and no "
        "prompt that it was trained with has a word for a motion.",
        "",
        "* **residual**: the share of the frames of the concept's own clips in which the judge "
        f"still sees it. In the unedited model's clips it sees it in {unedited['was']:.1%}. "
        "**Peak frame**: the same for that one of the eight frames where it is seen most. **Clips "
        "with any**: the share of clips in which it is seen in at least one frame.",
        "* **neighbours' accuracy**: of clips that do not name the concept, the share of frames in "
        "which the judge sees what the prompt asks for, relative to the unedited model. **The same "
        "frames**: of the frames that were right before, the share that still are; frames that "
        "became right do not count.",
        "* **motion kept**: the share of clips, the concept's own and the neighbours', that move "
        "as the prompt says (testbed/motion/estimate.py), relative to the unedited model, where "
        f"{unedited['moved']:.1%} do. A clip that begins to makes up for one that stops to. **The "
        "same clips**: of the clips that did before, the share that still do. **Neighbours' "
        "motion**: as motion kept, for their clips alone.",
        "* **seconds**: of erasing, on one core a text encoder, all cores busy.",
        "",
        "A picture always has some style. If the judge only guessed among the seven styles and "
        "*none of them*, a style's residual would be about one in eight.",
    ]


def tables(found: Found) -> list[str]:
    groups = any(len(job.concepts) > 1 for job in found)
    pictures = by_pictures(found)
    parts = (
        ("pictures", "By the number of pictures", pictures),
        ("concept", "By concept, over all numbers of pictures", by_concept(found)),
        (
            "concepts in one encoder",
            f"Several concepts in one encoder, {GROUP_SHOTS} pictures of each",
            by_number(found) if groups else [],
        ),
    )
    lines = []
    for first, title, body in parts:
        if body:
            lines += ["", f"## {title}", "", HEAD.format(first), *body, bars()]
            if body is pictures:
                lines += ["", "Means over the concepts that were measured with every number."]
    if groups:
        lines += in_pictures(found)
    return lines


def write(rows: list[dict], folder: Path, effort: Effort = FULL) -> None:
    """Write transfer.md and, if the strips of frames exist, transfer_sheet.png."""
    found = paired(rows)
    if not found:
        raise SystemExit("transfer: nothing is measured yet; run it without --no-run.")
    lines = [
        "# An erased text encoder in clips",
        "",
        *introduction(rows, found, effort),
        *tables(found),
        "",
        "![before and after](transfer_sheet.png)",
        "",
        measured_on(rows),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "transfer.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sheet(found, folder / "transfer_sheet.png")
    print("\n".join(lines))
