"""CPDM Copyright Metric: the node of unlearn/evaluate/cpdm/metric.py (arXiv 2403.12052)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import comfy.model_management as management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io, ui

from ..unlearn.evaluate.cpdm.inception import FILES, load_inception
from ..unlearn.evaluate.cpdm.metric import Distance, Metric, Pair
from ..unlearn.evaluate.cpdm.report import Report
from ..unlearn.evaluate.cpdm.sheet import SHOWN, cpdm_sheet
from .base import UnlearnNode
from .progress import tell

FOLDER = "inception"
ENDINGS = (".pth", ".safetensors")
MISSING = f"none in models/{FOLDER}: see the help page"
folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def inception_choices() -> list[str]:
    names = folder_paths.get_filename_list(FOLDER)
    # A list with nothing in it could not say what to do.
    return [name for name in names if name.endswith(ENDINGS)] or [MISSING]


def find_file(name: str) -> Path:
    """Raises ValueError when no models folder has it."""
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
            display_name="CPDM Copyright Metric",
            category="unlearn",
            description=(
                "Says how far generated pictures are from original works, in what they show and in "
                "how, and how much further after an erasure."
            ),
            inputs=[
                io.Image.Input(
                    "originals",
                    tooltip="The works. One for all, one for each generated picture, or one for "
                    "the same number of them each, in their order.",
                ),
                io.Image.Input(
                    "generated", tooltip="What the model made of the works' prompts, of any size."
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="From the stock Load CLIP Vision, with CLIP ViT-L/14 for figures as "
                    "the paper's. It says what is shown.",
                ),
                io.Combo.Input(
                    "inception",
                    options=inception_choices(),
                    tooltip=f"Weights of Inception v3 in models/{FOLDER}, of pytorch-fid or "
                    "torchvision. It says how it is shown.",
                ),
                io.Image.Input(
                    "generated_after",
                    optional=True,
                    tooltip="The same prompts and seeds after an erasure, as many pictures in the "
                    "same order.",
                ),
            ],
            outputs=[
                io.Image.Output("picture", display_name="picture"),
                io.String.Output("report", display_name="report"),
                io.Float.Output(
                    "distance",
                    display_name="distance",
                    tooltip="Mean of M_sem M_style, after the erasure where there is one.",
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
        # Twice its weights: it works on a batch of pictures beside them.
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
        """A file that was written anew is read anew. None: another node names it."""
        name = inception[0] if inception else None
        path = name and folder_paths.get_full_path(FOLDER, name)
        return f"{Path(path).stat().st_mtime_ns}" if path else ""

    @classmethod
    def validate_inputs(cls, inception=None) -> bool:
        for name in cls.typed(inception=inception).values():
            find_file(name)
        return True


def check_counts(
    originals: Sequence[torch.Tensor],
    generated: Sequence[torch.Tensor],
    after: Sequence[torch.Tensor] | None = None,
) -> None:
    """Raises ValueError with one sentence where it cannot be told what belongs together."""
    if len(generated) % len(originals):
        raise ValueError(
            f"{len(generated)} generated pictures cannot be shared out among {len(originals)} "
            "originals: give one original for all, one for each, or one for as many each."
        )
    if after is not None and len(after) != len(generated):
        raise ValueError(
            f"There are {len(generated)} pictures before the erasure and {len(after)} after: draw "
            "the same prompts and seeds on both sides."
        )


def pairs(originals: Sequence[torch.Tensor], generated: Sequence[torch.Tensor]) -> Iterator[Pair]:
    """The first of the generated are the first original's, and so on."""
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
    """Progress bar and status text; asks the host whether to stop."""
    bar, total = comfy.utils.ProgressBar(len(generated), node_id), len(generated)
    found = []
    for distance in metric.measure(pairs(originals, generated)):
        management.throw_exception_if_processing_interrupted()
        found.append(distance)
        bar.update_absolute(len(found), total)
        tell(node_id, f"{what}\n{len(found)} of {total}")
    return found
