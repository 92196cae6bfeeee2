"""Pictures of the benchmark's rows: a strip each, before above after, and a page of them."""

from __future__ import annotations

from pathlib import Path

STRIPS = Path(__file__).parent.parent / "output" / "bench"  # pictures of each row


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
    from PIL import Image, ImageDraw

    shown = [job for job in jobs if job["mode"] == "balanced" and job["seed"] == jobs[0]["seed"]]
    files = [(job["concept"], strip_file(job)) for job in shown]
    pictures = [(name, Image.open(file)) for name, file in files if file.exists()]
    if not pictures:
        raise SystemExit("bench: no pictures were kept for these rows; use another --json file.")
    width, height = pictures[0][1].size
    rows = -(-len(pictures) // 2)
    page = Image.new("RGB", (2 * (width + 90), rows * (height + 8) + 20), "white")
    pen = ImageDraw.Draw(page)
    for i, (name, picture) in enumerate(pictures):
        x, y = (i // rows) * (width + 90), (i % rows) * (height + 8) + 20
        pen.text((x + 4, y + height // 2 - 6), name, fill="black")
        page.paste(picture, (x + 80, y))
    for x in (0, width + 90):
        pen.text(
            (x + 80, 4),
            "the concept (above before, below after), then what must stay",
            fill="black",
        )
    return page
