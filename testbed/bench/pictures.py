"""Pictures for the benchmark's rows: a strip for each, before above after, and pages of strips."""

from __future__ import annotations

from pathlib import Path

import testbed

from .plan import FEW

STRIPS = testbed.ROOT / "output" / "bench"  # one strip for each row
BESIDE = 170  # pixels beside a strip for its name


def strip_file(job: dict) -> Path:
    return STRIPS / "{method}-{mode}-{concept}-{seed}.png".format(**job)


def save_strip(file: Path, prompts, before, after) -> None:
    """Save three pictures of the concept's own prompts, three of its kind, and two of others."""
    import torch

    from ..model.report import grid

    by_measure = {
        m: [i for i, p in enumerate(prompts) if p.measure == m] for m in ("own", "in", "cross")
    }
    own, near, far = by_measure["own"], by_measure["in"], by_measure["cross"]
    chosen = [own[0], own[len(own) // 2], own[-1], *near[:3], far[0], far[-1]]
    file.parent.mkdir(parents=True, exist_ok=True)
    strip = grid(torch.cat([before[chosen], after[chosen]]), len(chosen))
    strip.resize((strip.width // 2, strip.height // 2)).save(file)


def typed_file(job: dict) -> Path:
    return STRIPS / "typed-{method}-{mode}-{concept}-{seed}.png".format(**job)


def save_typed(file: Path, asked, before, after) -> None:
    """Save a picture of one prompt in each way that people type it, with the prompts below."""
    import torch

    from ..model.reading import captioned

    first = {one.way: i for i, one in reversed(list(enumerate(asked)))}
    chosen = [first[way] for way in dict.fromkeys(one.way for one in asked)]
    pairs = torch.cat([before[chosen], after[chosen]], 1)
    file.parent.mkdir(parents=True, exist_ok=True)
    captioned([(asked[i].text, pair) for i, pair in zip(chosen, pairs)], len(chosen)).save(file)


def page_of_typed(jobs: list[dict]):
    """The pictures of prompts as people type them, of the default modes on FEW, one below the
    other. None if there are none."""
    from PIL import Image

    jobs = [job for job in jobs if job["mode"] == "balanced" and job["concept"] in FEW]
    files = [typed_file(job) for job in jobs if job["seed"] == jobs[0]["seed"]]
    strips = [Image.open(file) for file in files if file.exists()]
    if not strips:
        return None
    page = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), "white")
    top = 0
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height
    return page


def page_of_pictures(jobs: list[dict]):
    """The strips of the default modes with the first seed, with names, in two columns.

    None if there are no strips.
    """
    shown = [job for job in jobs if job["mode"] == "balanced" and job["seed"] == jobs[0]["seed"]]
    alone = len({job["method"] for job in shown}) == 1
    names = [job["concept"] if alone else f"{job['method']}\n{job['concept']}" for job in shown]
    half = -(-len(shown) // 2)
    return _page([list(zip(names, shown))[:half], list(zip(names, shown))[half:]])


def page_of_modes(jobs: list[dict]):
    """The strips of every measured mode with the first seed, in a column for each of FEW.

    None if there are no strips.
    """
    first = {
        (job["method"], job["mode"], job["concept"]): job
        for job in jobs
        if job["concept"] in FEW and job["seed"] == jobs[0]["seed"]
    }
    modes = list(dict.fromkeys((method, mode) for method, mode, _ in first))
    columns = [
        [
            (f"{method}\n{mode}\n{concept}", first.get((method, mode, concept)))
            for method, mode in modes
        ]
        for concept in FEW
    ]
    page = _page(columns)
    # Smaller, since there are many strips to compare.
    return page and page.resize((page.width * 2 // 3, page.height * 2 // 3)).quantize()


def _page(columns: list[list[tuple[str, dict | None]]]):
    """A page from columns of (name, job). A job without a strip leaves its place empty. None if no
    job has one."""
    from PIL import Image, ImageDraw

    strips = {
        (x, y): (name, Image.open(strip_file(job)))
        for x, column in enumerate(columns)
        for y, (name, job) in enumerate(column)
        if job and strip_file(job).exists()
    }
    if not strips:
        return None
    width, height = next(iter(strips.values()))[1].size
    rows = max(map(len, columns))
    page = Image.new("RGB", (len(columns) * (width + BESIDE), rows * (height + 8) + 20), "white")
    pen = ImageDraw.Draw(page)
    for x in range(len(columns)):
        says = "the concept (above before, below after), then what must stay"
        pen.text((x * (width + BESIDE) + BESIDE - 10, 4), says, fill="black")
    for (x, y), (name, picture) in strips.items():
        left, top = x * (width + BESIDE), y * (height + 8) + 20
        pen.text((left + 4, top + 4), name, fill="black")
        page.paste(picture, (left + BESIDE - 10, top))
    return page
