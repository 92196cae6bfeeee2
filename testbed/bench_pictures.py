"""Pictures of the benchmark's rows: a strip each, before above after, and a page of them."""

from __future__ import annotations

from pathlib import Path

from .bench_plan import FEW

STRIPS = Path(__file__).parent.parent / "output" / "bench"  # pictures of each row
BESIDE = 170  # pixels beside a strip, for its name


def strip_file(job: dict) -> Path:
    return STRIPS / "{method}-{mode}-{concept}-{seed}.png".format(**job)


def save_strip(file: Path, prompts, before, after) -> None:
    """Three of the concept's own prompts, three of its kind, two of others: before above after."""
    import torch

    from .report import grid

    by_measure = {
        m: [i for i, p in enumerate(prompts) if p.measure == m] for m in ("own", "in", "cross")
    }
    own, near, far = by_measure["own"], by_measure["in"], by_measure["cross"]
    chosen = [own[0], own[len(own) // 2], own[-1], *near[:3], far[0], far[-1]]
    file.parent.mkdir(parents=True, exist_ok=True)
    strip = grid(torch.cat([before[chosen], after[chosen]]), len(chosen))
    strip.resize((strip.width // 2, strip.height // 2)).save(file)


def page_of_pictures(jobs: list[dict]):
    """The first seed's strips of the default modes, named, in two columns."""
    shown = [job for job in jobs if job["mode"] == "balanced" and job["seed"] == jobs[0]["seed"]]
    alone = len({job["method"] for job in shown}) == 1
    names = [job["concept"] if alone else f"{job['method']}\n{job['concept']}" for job in shown]
    half = -(-len(shown) // 2)
    return _page([list(zip(names, shown))[:half], list(zip(names, shown))[half:]])


def page_of_modes(jobs: list[dict]):
    """The first seed's strips of every mode that was measured, a column for each of FEW."""
    columns = [
        [
            (f"{job['method']}\n{job['mode']}\n{concept}", job)
            for job in jobs
            if job["concept"] == concept and job["seed"] == jobs[0]["seed"]
        ]
        for concept in FEW
    ]
    return _page(columns)


def _page(columns: list[list[tuple[str, dict]]]):
    """(name, job) of each strip that was kept, in columns."""
    from PIL import Image, ImageDraw

    columns = [
        [(name, Image.open(strip_file(job))) for name, job in column if strip_file(job).exists()]
        for column in columns
    ]
    every = [picture for column in columns for _, picture in column]
    if not every:
        raise SystemExit("bench: no pictures were kept for these rows; use another --json file.")
    width, height = every[0].size
    rows = max(map(len, columns))
    page = Image.new("RGB", (len(columns) * (width + BESIDE), rows * (height + 8) + 20), "white")
    pen = ImageDraw.Draw(page)
    for i, column in enumerate(columns):
        left = i * (width + BESIDE)
        says = "the concept (above before, below after), then what must stay"
        pen.text((left + BESIDE - 10, 4), says, fill="black")
        for row, (name, picture) in enumerate(column):
            top = row * (height + 8) + 20
            pen.text((left + 4, top + 4), name, fill="black")
            page.paste(picture, (left + BESIDE - 10, top))
    return page
