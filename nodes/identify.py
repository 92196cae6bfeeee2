"""Identify Concept: the node of unlearn/identify.py (arXiv 2303.16203)."""

from __future__ import annotations

import time

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io, ui
from PIL import Image, ImageDraw, ImageFont

from ..unlearn.identify import Ranking, identify, parse_words
from ..unlearn.model import check_images
from ..unlearn.neighbours import Neighbour, neighbours
from ..unlearn.sheet import as_images
from .host import ComfyModel
from .report import DARK, PALE, tell
from .sockets import kind_input, seed_input

SHOWN = 10  # words in the chart and in the report
PROPOSED = 6  # neighbours to protect
NOTICEABLE = 0.05  # of a word's own length: less than this needs no protection


class IdentifyConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentifyConcept",
            display_name="Identify Concept",
            category="unlearn",
            description=(
                "Says what your model itself calls the thing in some pictures: the word to "
                "unlearn. Nothing is trained."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that is asked. It is only read."),
                io.Clip.Input("clip", tooltip="The original text encoder of this model."),
                io.Vae.Input("vae", tooltip="Turns pictures into latents."),
                io.Image.Input(
                    "images",
                    tooltip="A few pictures of one thing, or in one style, of the size that the "
                    "model draws. Four do better than one.",
                ),
                io.String.Input(
                    "candidates",
                    default="",
                    multiline=True,
                    tooltip="The words to choose from, separated by commas or lines. Empty: a few "
                    "hundred everyday ones.",
                ),
                kind_input(),
                io.Int.Input(
                    "draws",
                    default=64,
                    min=12,
                    max=4096,
                    tooltip="How often the words that are left in the end are tried, each time "
                    "with other noise. More is slower and surer.",
                ),
                seed_input("Of the noise. The same seed gives the same ranking on one machine."),
                io.Clip.Input(
                    "erased_clip",
                    optional=True,
                    tooltip="The text encoder after an erasure of this concept: the words that it "
                    "moved along with it are then proposed for protection.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "word", display_name="word", tooltip="The best word, for `concept`."
                ),
                io.String.Output("report", display_name="report"),
                io.Image.Output("chart", display_name="chart", tooltip="The best words as bars."),
                io.String.Output(
                    "neighbours",
                    display_name="neighbours",
                    tooltip="What to protect, for `protect`; empty without an erased_clip.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, clip, vae, images, candidates, kind, draws, seed, erased_clip=None
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        check_images(images)
        words = parse_words(candidates, kind)
        host = ComfyModel(model, clip, vae, tuple(images.shape[1:3]))
        host.check_encoder()
        with host.training():
            ranking = identify(host, images, words, kind, draws, seed, Counting(node_id))
            found = []
            if erased_clip is not None:
                erased = ComfyModel(model, erased_clip)
                found = neighbours(host.encode, erased.encode, words, kind, [ranking.best])
        protect = [one for one in found[:PROPOSED] if one.moved >= NOTICEABLE]
        text = report(ranking, len(images))
        if erased_clip is not None:
            text += "\n" + proposal(protect)
        tell(node_id, text)
        return io.NodeOutput(
            ranking.best,
            text,
            bars(ranking),
            ", ".join(one.word for one in protect),
            ui=ui.PreviewText(text),
        )


class Counting:
    """on_row of the classifier: progress bar and status text; asks the host whether to stop."""

    def __init__(self, node_id: str | None, what: str = "asking the model") -> None:
        self.node_id, self.what = node_id, what
        self.bar = comfy.utils.ProgressBar(1, node_id)
        self.told = 0.0

    def __call__(self, done: int, total: int, leader: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(done, total)
        if done == total or time.monotonic() - self.told > 0.5:
            self.told = time.monotonic()
            tell(self.node_id, f"{self.what}\n{done} of {total} rows, ahead: {leader}")


def report(ranking: Ranking, pictures: int) -> str:
    """The ranking in words."""
    first = ranking.words[0]
    lines = [f"The model calls it: {first.word} (confidence {sureness(ranking)})."]
    if first.explained <= 0:
        lines.append(
            "But no candidate says more about the pictures than an empty prompt does: name others."
        )
    for place, word in enumerate(ranking.words[:SHOWN], 1):
        lines.append(f"{place}. {word.word}: explains {word.explained:.1%}, {word.draws} draws")
    lines.append(
        f"{len(ranking.words)} candidates, {pictures} pictures, {ranking.evaluations} evaluations "
        "of the network."
    )
    return "\n".join(lines)


def sureness(ranking: Ranking) -> str:
    """The confidence in words; certain it never is."""
    return "over 99%" if ranking.confidence > 0.99 else f"{ranking.confidence:.0%}"


def proposal(found: list[Neighbour]) -> str:
    if not found:
        return "No other candidate is moved noticeably by the erasure: nothing to protect."
    moved = ", ".join(f"{one.word} {one.moved:.0%}" for one in found)
    return f"To protect, with how far the erasure moves each: {moved}."


def bars(ranking: Ranking) -> torch.Tensor:
    """The best words as bars, (1, height, 512, 3): how much each explains, and its standard error
    against the first, which is dark."""
    words = ranking.words[:SHOWN]
    line, left, width, top = 24, 150, 512, 10
    font = ImageFont.load_default(13)
    image = Image.new("RGB", (width, top + line * len(words) + 2 * line), "white")
    pen = ImageDraw.Draw(image)
    errors = [word.error if word.error < 1 else 0.0 for word in words]
    low = min(0.0, *(word.explained - error for word, error in zip(words, errors)))
    high = max(low + 1e-6, *(word.explained + error for word, error in zip(words, errors)), 0.0)

    def place(value: float) -> float:
        return left + (width - left - 60) * (value - low) / (high - low)

    for i, (word, error) in enumerate(zip(words, errors)):
        y = top + i * line
        pen.text((left - 8, y + 3), shortened(word.word), fill="black", font=font, anchor="ra")
        ends = sorted((place(0.0), place(word.explained)))
        pen.rectangle([ends[0], y + 2, ends[1], y + line - 6], fill=PALE if i else DARK)
        if error:
            span = [place(word.explained + sign * error) for sign in (-1, 1)]
            pen.line([(span[0], y + 9), (span[1], y + 9)], fill="dimgray")
        pen.text((width - 4, y + 3), f"{word.explained:.1%}", fill="black", font=font, anchor="ra")
    bottom = top + line * len(words)
    pen.line([(place(0.0), top - 4), (place(0.0), bottom)], fill="black")
    pen.text(
        (width // 2, bottom + 8),
        f"share of the loss explained; confidence in {shortened(words[0].word)}: "
        f"{sureness(ranking)}",
        fill="black",
        font=font,
        anchor="ma",
    )
    return as_images(image)


def shortened(word: str) -> str:
    return word if len(word) <= 20 else word[:19] + "..."
