"""The small workflows that the pack ships: python -m testbed.showcase.templates

They are made from the nodes as they are, so a node that gets an input needs no change here. Their
names are what ComfyUI's template browser shows, in the order of the numbers. The workflows that are
not among MADE were saved in the browser and stay as they are.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import testbed
from dev import HOST_VERSION

from ..host.server import Server
from .canvas import Canvas
from .template_notes import NOTES

FOLDER = testbed.ROOT / "workflows"
BLUE, BROWN, GREEN = "#3f789e", "#b06634", "#8A8"
SIZE = 128
"""Of IconCanvas's pictures."""
CONCEPT, ANCHOR = "mushroom", "pineapple"
PROMPT = "a photo of a mushroom in noto style"
TOP, HEIGHT = 0, 960
"""Of all columns."""
CHECKPOINT = {
    "name": "v1-5-pruned-emaonly-fp16.safetensors",
    "url": "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
    "v1-5-pruned-emaonly-fp16.safetensors",
    "directory": "checkpoints",
}
MODEL, CLIP, VAE = range(3)
"""The outputs of Load Checkpoint."""
Output = tuple[int, int]
"""A node, and the place of one of its outputs."""
Build = Callable[[Canvas], None]


def made(name: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """A workflow of MADE. info: what the host tells of each node."""
    canvas = Canvas(name, info, HOST_VERSION)
    canvas.note(NOTES[name], (0, TOP), (400, HEIGHT))
    MADE[name](canvas)
    return canvas.workflow()


class Column:
    """Places for nodes, one below the other."""

    def __init__(self, left: int, width: int) -> None:
        self.left, self.width, self.top = left, width, TOP

    def __call__(self, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The place and the size of the next node."""
        at = self.left, self.top
        self.top += height + 70
        return at, (self.width, height)


def checkpoint(canvas: Canvas, column: Column) -> int:
    file = "iconcanvas.safetensors"
    return canvas.node("CheckpointLoaderSimple", *column(98), models=[CHECKPOINT], ckpt_name=file)


def picture_size(canvas: Canvas, column: Column) -> Output:
    title = "Picture size (SD 1.5: 512)"
    return canvas.node("PrimitiveInt", *column(82), title=title, value=SIZE), 0


def concept(canvas: Canvas, column: Column) -> Output:
    return canvas.node("PrimitiveString", *column(60), title="Concept", value=CONCEPT), 0


def compare(
    canvas: Canvas, column: Column, base: int, size: Output, height: int = HEIGHT, **values: Any
) -> int:
    sides = {"width": size, "height": size}
    parts = {"model": (base, MODEL), "clip": (base, CLIP), "vae": (base, VAE)}
    return canvas.node("CompareErasure", *column(height), **parts, **sides, **values)


def compare_and_save(
    canvas: Canvas, left: int, base: int, size: Output, made_by: int, part: str, **values: Any
) -> None:
    """The last column: before and after, and the file. made_by: the node that made the erasure."""
    column, save = Column(left, 560), {"clip": "SaveErasedCLIP", "model": "SaveErasedModel"}[part]
    erased = {f"erased_{part}": (made_by, 0)}
    seen = compare(canvas, column, base, size, HEIGHT - 180, **erased, **values)
    kept = canvas.node(save, *column(110), erasure=(made_by, "ERASURE"))
    canvas.group("Before and after, and the file", GREEN, seen, kept)


def train(
    canvas: Canvas, method: str, left: int, base: int, word: Output, size: Output, **values: Any
) -> None:
    """The training node, and what follows it."""
    sockets = {"model": (base, MODEL), "clip": (base, CLIP), "vae": (base, VAE)}
    common = {"concept": word, "size": size, "anchor": ANCHOR, "main": True}
    node = canvas.node(method, *Column(left, 420)(HEIGHT), **sockets, **common, **values)
    canvas.group("Erase", BROWN, node)
    part = "clip" if "Encoder" in method else "model"
    compare_and_save(canvas, left + 500, base, size, node, part, concept=word)


def erase(method: str) -> Build:
    """A workflow that erases a mushroom and compares."""

    def build(canvas: Canvas) -> None:
        column = Column(480, 320)
        base = checkpoint(canvas, column)
        word, size = concept(canvas, column), picture_size(canvas, column)
        canvas.group("A model and a concept", BLUE, base, word[0], size[0])
        train(canvas, method, 880, base, word, size)

    return build


def with_pictures(canvas: Canvas) -> None:
    column, second = Column(480, 260), Column(780, 230)
    base = checkpoint(canvas, column)
    shots = [picture(canvas, column, i, f"Picture {i}") for i in (1, 2)]
    second.top = 240
    both = canvas.node("ImageBatch", *second(46), title="Both", image1=shots[0], image2=shots[1])
    word, size = concept(canvas, second), picture_size(canvas, second)
    inputs = (base, *(node for node, _ in shots), both, word[0], size[0])
    canvas.group("A model, and pictures of the concept", BLUE, *inputs)
    train(canvas, "FewShotEncoderUnlearn", 1060, base, word, size, images=(both, 0))


def picture(canvas: Canvas, column: Column, number: int, title: str) -> Output:
    file = f"iconcanvas_mushroom_{number}.png"
    return canvas.node("LoadImage", *column(330), title=title, image=file), 0


def asked(canvas: Canvas, column: Column, clip: Output, title: str, text: str) -> Output:
    return canvas.node("CLIPTextEncode", *column(100), title=title, clip=clip, text=text), 0


def sampled(canvas: Canvas, column: Column, model: Output, **values: Any) -> Output:
    usual = {"seed": 7, "cfg": 7.5, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    return canvas.node("KSampler", *column(262), model=model, **usual, **values), 0


def use(part: str) -> Build:
    """A workflow that draws with a saved erasure of the CLIP or of the MODEL."""

    def build(canvas: Canvas) -> None:
        column = Column(470, 290)
        base, size = checkpoint(canvas, column), picture_size(canvas, column)
        load = {"clip": "LoadErasedCLIP", "model": "LoadErasedModel"}[part]
        whole = {"clip": (base, CLIP), "model": (base, MODEL)}
        given = {part: whole[part], "erasure_name": f"erased_{part}_00001_.safetensors"}
        loaded = canvas.node(load, *Column(830, 280)(200), main=True, **given)
        canvas.group("A model and its erasure", BLUE, base, size[0], loaded)
        now = {**whole, part: (loaded, 0)}
        column = Column(1180, 260)
        positive = asked(canvas, column, now["clip"], "Prompt", PROMPT)
        negative = asked(canvas, column, now["clip"], "Negative prompt", "")
        empty = canvas.node("EmptyLatentImage", *column(106), width=size, height=size)
        given = {"positive": positive, "negative": negative, "latent_image": (empty, 0)}
        drawn = sampled(canvas, Column(1510, 260), now["model"], **given)
        decoded = canvas.node("VAEDecode", *Column(1840, 230)(46), samples=drawn, vae=(base, VAE))
        shown = canvas.node("PreviewImage", *Column(2110, 280)(280), images=(decoded, 0))
        column = Column(1840, 550)
        column.top = 350
        erased = {f"erased_{part}": (loaded, 0), "concept": CONCEPT}
        seen = compare(canvas, column, base, size, HEIGHT - column.top, **erased)
        draws = (positive[0], negative[0], empty, drawn[0], decoded, shown)
        canvas.group("Draw, and compare", GREEN, *draws, seen)

    return build


def two(canvas: Canvas) -> None:
    column, second = Column(480, 320), Column(880, 360)
    base, size = checkpoint(canvas, column), picture_size(canvas, column)
    canvas.group("A model", BLUE, base, size[0])
    words = ((CONCEPT, ANCHOR), ("cat", "rabbit"))
    erasures = [
        canvas.node(
            "ClosedFormEncoderUnlearn", *second(445), clip=(base, CLIP), concept=one, anchor=anchor
        )
        for one, anchor in words
    ]
    canvas.group("Erase", BROWN, *erasures)
    parts = {f"erasure_{i}": (node, "ERASURE") for i, node in enumerate(erasures, 1)}
    place = Column(1320, 340)(300)
    joined = canvas.node("CombineErasedCLIP", *place, clip=(base, CLIP), main=True, **parts)
    canvas.group("Combine", BROWN, joined)
    both = ", ".join(one for one, _ in words)
    compare_and_save(canvas, 1740, base, size, joined, "clip", concept=both)


def distance(canvas: Canvas) -> None:
    column = Column(450, 260)
    base, work = checkpoint(canvas, column), picture(canvas, column, 1, "Original")
    given = {"clip": (base, CLIP), "concept": CONCEPT, "anchor": ANCHOR}
    erased = canvas.node("ClosedFormEncoderUnlearn", *Column(760, 300)(440), **given)
    file = "clip-vit-large-patch14.safetensors"
    sees = canvas.node("CLIPVisionLoader", *column(58), clip_name=file)
    canvas.group("A model, an original, an erasure", BLUE, base, work[0], sees, erased)
    column, second, third = Column(1130, 240), Column(1420, 260), Column(1730, 230)
    clips = {"before": (base, CLIP), "after": (erased, 0)}
    positive = {
        when: asked(canvas, column, clip, f"Prompt, {when}", PROMPT) for when, clip in clips.items()
    }
    negative = asked(canvas, column, (base, CLIP), "Negative prompt", "")
    sides = {"width": SIZE, "height": SIZE}
    empty = canvas.node(
        "EmptyLatentImage", *column(106), title="Picture size (SD 1.5: 512)", **sides
    )
    nodes, drawn = [*(node for node, _ in positive.values()), negative[0], empty], []
    for when in clips:
        given = {"positive": positive[when], "negative": negative, "latent_image": (empty, 0)}
        third.top = second.top
        one = sampled(canvas, second, (base, MODEL), title=f"Draw {when}", **given)
        decoded = canvas.node("VAEDecode", *third(46), samples=one, vae=(base, VAE))
        drawn.append((decoded, 0))
        nodes += [one[0], decoded]
    canvas.group("Draw before and after", BROWN, *nodes)
    given = {"originals": work, "generated": drawn[0], "generated_after": drawn[1]}
    metric = canvas.node(
        "CopyrightMetric",
        *Column(2000, 380)(HEIGHT),
        main=True,
        clip_vision=(sees, 0),
        inception="pt_inception-2015-12-05-6726825d.pth",
        **given,
    )
    canvas.group("Measure", GREEN, metric)


SECONDS = "01 Erase in seconds (Closed-Form)"
PICTURES = "02 Erase with pictures (Few-Shot)"
USE_CLIP = "03 Use a saved erasure"
KEY_STEP = "04 Erase from the denoiser (Key-Step)"
DOMAIN = "05 Erase from the denoiser (Domain-Correction)"
USE_MODEL = "06 Use a saved erasure of the denoiser"
COMBINE = "07 Combine two erasures"
DISTANCE = "10 Measure the distance to an original (CPDM)"
MADE = {
    SECONDS: erase("ClosedFormEncoderUnlearn"),
    PICTURES: with_pictures,
    USE_CLIP: use("clip"),
    KEY_STEP: erase("KeyStepUNetUnlearn"),
    DOMAIN: erase("DomainCorrectionUNetUnlearn"),
    USE_MODEL: use("model"),
    COMBINE: two,
    DISTANCE: distance,
}
TRAINING = (SECONDS, PICTURES, KEY_STEP, DOMAIN)


def text(workflow: Mapping[str, Any]) -> str:
    """As a file."""
    return json.dumps(workflow, indent=2) + "\n"


def write(names: Sequence[str], folder: Path = FOLDER) -> list[Path]:
    with tempfile.TemporaryDirectory() as temporary, Server(Path(temporary)) as server:
        info = server.object_info()
    files = [folder / f"{name}.json" for name in names]
    for name, file in zip(names, files):
        file.write_text(text(made(name, info)), encoding="utf-8", newline="\n")
    return files


if __name__ == "__main__":
    for file in write(sys.argv[1:] or [*MADE]):
        print(file.relative_to(testbed.ROOT))
