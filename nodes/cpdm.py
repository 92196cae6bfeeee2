"""Measure Copyright (CPDM): the node of unlearn/evaluate/cpdm/metric.py (arXiv 2403.12052)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import comfy.model_management as management
import folder_paths
import torch
from comfy_api.latest import io, ui

from ..unlearn.evaluate.cpdm.inception import FILES, load_inception
from ..unlearn.evaluate.cpdm.metric import Distance, Metric, Pair
from ..unlearn.evaluate.cpdm.report import Report
from ..unlearn.evaluate.cpdm.sheet import SHOWN, cpdm_sheet
from .base import UnlearnNode
from .progress import PairProgress, tell

FOLDER = "inception"
ENDINGS = (".pth", ".safetensors")
MISSING = f"none in models/{FOLDER}: see the help page"
folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def inception_choices() -> list[str]:
    names = folder_paths.get_filename_list(FOLDER)
    # An empty list could not say what to do.
    return [name for name in names if name.endswith(ENDINGS)] or [MISSING]


def find_file(name: str) -> Path:
    """The path of an Inception file. Raises ValueError if no models folder has it."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None or not name.endswith(ENDINGS):
        raise ValueError(
            f"There is no such file in ComfyUI's models/{FOLDER}: get {FILES}, put it there and "
            "press R."
        )
    return Path(path)


class CopyrightMetric(UnlearnNode):
    FILES = ("inception",)
    ANY_SIZE = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CopyrightMetric",
            display_name="Measure Copyright (CPDM)",
            category="unlearn/check",
            search_aliases=["copyright", "similarity", "distance", "CPDM", "unlearn"],
            description=(
                "Measures how far generated pictures are from original works, in content and in "
                "style. With pictures from after an erasure it says how much further those are."
            ),
            inputs=[
                io.Image.Input(
                    "originals",
                    tooltip="The original works. Give one for all generated pictures, one for each "
                    "of them, or one for each group of equal size, in the same order.",
                ),
                io.Image.Input(
                    "generated",
                    tooltip="Pictures that the model drew from the works' prompts. Any size.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="Measures the content. From the stock Load CLIP Vision; the paper uses "
                    "CLIP ViT-L/14.",
                ),
                io.Combo.Input(
                    "inception",
                    options=inception_choices(),
                    tooltip=f"Measures the style. Weights of Inception v3 in models/{FOLDER}, from "
                    "pytorch-fid or torchvision.",
                ),
                io.Image.Input(
                    "generated_after",
                    optional=True,
                    tooltip="Pictures from the same prompts and seeds after an erasure, in the "
                    "same order.",
                ),
            ],
            outputs=[
                io.Image.Output("picture", display_name="picture"),
                io.String.Output("report", display_name="report"),
                io.Float.Output(
                    "distance",
                    display_name="distance",
                    tooltip="Mean of M_sem M_style: after the erasure if generated_after is "
                    "connected, otherwise of generated.",
                ),
                io.String.Output("json", display_name="JSON"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
            is_input_list=True,  # a list of pictures is one set
        )

    @classmethod
    def work(
        cls, originals, generated, clip_vision, inception, generated_after=None
    ) -> io.NodeOutput:
        sides = [generated] if generated_after is None else [generated, generated_after]
        check_counts(originals, *sides)
        network = load_inception(find_file(inception))
        # Twice the size of its weights leaves room for a batch of pictures.
        size = sum(w.numel() * w.element_size() for w in network.parameters())
        management.free_memory(2 * size, management.get_torch_device())
        network.to(management.get_torch_device())
        metric = Metric(lambda images: clip_vision.encode_image(images)["image_embeds"], network)
        node_id = cls.hidden.unique_id
        found = [
            measured(node_id, metric, originals, images, what)
            for images, what in zip(sides, ("comparing", "comparing after the erasure"))
        ]
        names = [pair.name for pair in pairs(originals, generated)]
        report = Report(names, *found, width=metric.width, is_fid=network.is_fid)
        text = "\n".join([*report.sentences(), "", report.table()])
        tell(node_id, text)
        picture = cpdm_sheet(report, *(list(pairs(originals, images))[:SHOWN] for images in sides))
        shown = ui.PreviewImage(picture, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        *_, last = report.means().values()
        return io.NodeOutput(
            picture, text, last["M_sem M_style"], json.dumps(report.record(), indent=1), ui=shown
        )

    @classmethod
    def fingerprint_inputs(cls, inception, **inputs) -> str:
        """The file's time: a file that changed is read again. inception is None when the name
        comes from another node."""
        name = inception[0] if inception else None
        path = name and folder_paths.get_full_path(FOLDER, name)
        return f"{Path(path).stat().st_mtime_ns}" if path else ""

    @classmethod
    def validate_inputs(cls, inception=None) -> bool:
        with cls.telling():
            for name in cls.typed(inception=inception).values():
                find_file(name)
        return True


def check_counts(
    originals: Sequence[torch.Tensor],
    generated: Sequence[torch.Tensor],
    after: Sequence[torch.Tensor] | None = None,
) -> None:
    """Raises ValueError if the numbers of pictures do not say which belong together."""
    if len(generated) % len(originals):
        raise ValueError(
            f"{len(generated)} generated pictures cannot be shared out among {len(originals)} "
            "originals: give one original for all of them, one for each, or one for each group "
            "of equal size."
        )
    if after is not None and len(after) != len(generated):
        raise ValueError(
            f"There are {len(generated)} pictures before the erasure and {len(after)} after: draw "
            "the same prompts and seeds on both sides."
        )


def pairs(originals: Sequence[torch.Tensor], generated: Sequence[torch.Tensor]) -> Iterator[Pair]:
    """Pair each generated picture with its original: the first group with the first, and so on."""
    each = len(generated) // len(originals)
    for i, picture in enumerate(generated):
        work, number = divmod(i, each)
        name = f"{work + 1}" if each == 1 else f"{work + 1}.{number + 1}"
        yield Pair(str(work), name, originals[work][..., :3], picture[..., :3])


def measured(
    node_id: str | None,
    metric: Metric,
    originals: Sequence[torch.Tensor],
    generated: Sequence[torch.Tensor],
    what: str,
) -> list[Distance]:
    """The distances of all pairs, with a progress bar. what: the first line of the status text."""
    progress, found = PairProgress(node_id, what), []
    for distance in metric.measure(pairs(originals, generated)):
        found.append(distance)
        progress(len(found), len(generated))
    return found
