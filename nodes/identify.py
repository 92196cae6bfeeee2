"""Identify Concept: the node for unlearn/evaluate/classifier.py (arXiv 2303.16203)."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..unlearn.core.images import check_images
from ..unlearn.evaluate.classifier import check_candidates, identify, parse_words
from ..unlearn.evaluate.classifier_report import bars, report
from ..unlearn.evaluate.collateral import neighbours, proposal, to_protect
from ..unlearn.prompts.typed import joined
from .backend.checks import check_clip, check_vae
from .backend.model import ComfyModel
from .backend.words import usable
from .base import UnlearnNode
from .progress import RowProgress, tell
from .sockets import kind_input, seed_input
from .widgets import advanced


class IdentifyConcept(UnlearnNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentifyConcept",
            display_name="Identify Concept",
            category="unlearn/check",
            search_aliases=["what is this", "interrogate", "caption", "classify", "unlearn"],
            description=(
                "Finds what your model itself calls the thing in some pictures: the word to "
                "unlearn. Nothing is trained."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that is asked. It is only read."),
                io.Clip.Input("clip", tooltip="The original text encoder of this model."),
                io.Vae.Input("vae", tooltip="Turns pictures into latents."),
                io.Image.Input(
                    "images",
                    tooltip="A few pictures of one thing, or in one style, in the size that the "
                    "model draws. Four are better than one.",
                ),
                io.String.Input(
                    "candidates",
                    default="",
                    multiline=True,
                    tooltip="The words to choose from, separated by commas or line breaks. Empty: "
                    "the built-in words of the kind: 254 things, 63 styles, 66 characters or "
                    "78 actions.",
                ),
                kind_input(),
                io.Int.Input(
                    "draws",
                    default=64,
                    min=12,
                    max=4096,
                    advanced=True,
                    tooltip="How often each of the last remaining words is tried, each time with "
                    "other noise. More is slower and more certain.",
                ),
                *advanced(
                    seed_input(
                        "The seed of the noise. The same seed gives the same ranking on one "
                        "machine."
                    )
                ),
                io.Clip.Input(
                    "erased_clip",
                    optional=True,
                    tooltip="The text encoder after an erasure of this concept. The node then "
                    "proposes words to protect: those that the erasure moved too.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "word", display_name="word", tooltip="The best word. Connect it to `concept`."
                ),
                io.String.Output("report", display_name="report"),
                io.Image.Output("chart", display_name="chart", tooltip="The best words as bars."),
                io.String.Output(
                    "neighbours",
                    display_name="neighbours",
                    tooltip="Words to protect. Connect it to `protect`. Empty without erased_clip.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,  # a list of pictures is one set
        )

    @classmethod
    def work(
        cls, model, clip, vae, images, candidates, kind, draws, seed, erased_clip=None
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        check_images(images)
        words = parse_words(candidates, kind)
        check_clip(clip)
        words = check_candidates(usable(clip, words, "candidate") if candidates.strip() else words)
        host = ComfyModel(model, clip, vae, tuple(images.shape[1:3]))
        check_vae(vae)
        host.check_encoder()
        host.prepare_asking()
        with host.training():
            ranking = identify(host, images, words, kind, draws, seed, RowProgress(node_id))
            found = []
            if erased_clip is not None:
                erased = ComfyModel(model, erased_clip)
                found = neighbours(host.encode, erased.encode, words, kind, [ranking.best])
        protect = to_protect(found)
        text = report(ranking, len(images))
        if erased_clip is not None:
            text += "\n" + proposal(protect)
        tell(node_id, text)
        return io.NodeOutput(
            joined([ranking.best]),
            text,
            bars(ranking),
            joined([one.word for one in protect]),
            ui=ui.PreviewText(text),
        )

    @classmethod
    def validate_inputs(cls, candidates=None, kind=None) -> bool:
        with cls.telling():
            typed = cls.typed(candidates=candidates, kind=kind)
            if len(typed) == 2:
                parse_words(typed["candidates"], typed["kind"])
        return True
