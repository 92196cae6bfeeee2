"""Few-Shot Encoder Unlearn: the node of unlearn/few_shot.py (arXiv 2405.07288 and 2407.14209)."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..unlearn.erasure import Erasure, ErasureError, images_hash
from ..unlearn.few_shot import FewShotSettings, check_concepts, few_shot
from ..unlearn.model import Diverged
from ..unlearn.prompts import split_concepts
from .apply import erased_clip
from .host import ComfyModel, signature
from .memory import PeakMemory
from .report import Progress, loss_curve, tell

ErasureType = io.Custom("ERASURE")


class FewShotEncoderUnlearn(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewShotEncoderUnlearn",
            display_name="Few-Shot Encoder Unlearn",
            category="unlearn",
            description=(
                "Takes a concept out of a text encoder with a few pictures of it, in seconds. The "
                "result goes wherever a CLIP goes, also into AnimateDiff and other video nodes."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model that draws with this text encoder. It is only read."
                ),
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder to take the concept out of. The one "
                    "connected here stays what it is.",
                ),
                io.Vae.Input("vae", tooltip="Turns pictures into latents."),
                io.String.Input(
                    "concept",
                    default="",
                    tooltip="The word or name to unlearn. Several "
                    "are separated by commas and go into one erasure.",
                ),
                io.Combo.Input(
                    "kind",
                    options=["object", "style", "character"],
                    default="object",
                    tooltip="What the concept is: it decides the sentences it is named in "
                    "('a photo of a ...' or 'a painting in the style of ...').",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="A few pictures of the concept, all of "
                    "one size; with several concepts the same number of each, in their "
                    "order. Without any the model draws them itself.",
                ),
                io.Int.Input(
                    "shots",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="How many pictures of each "
                    "concept the model draws where none are connected.",
                ),
                io.Int.Input(
                    "size",
                    default=512,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Width and height in pixels of the pictures that the model draws.",
                ),
                io.Combo.Input(
                    "mode",
                    options=["balanced", "paper"],
                    default="balanced",
                    tooltip="balanced: bounded, keeps other concepts and stops by itself. "
                    "paper: the published algorithm and settings, for comparison.",
                ),
                io.Combo.Input(
                    "trainable",
                    options=["mlp-final-attn", "mlp", "attention", "all"],
                    default="mlp-final-attn",
                    tooltip="Which weights are trained. The paper "
                    "describes mlp-final-attn; its released code trained all.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=256,
                    tooltip="0 trains full deltas (the "
                    "paper). A rank of 4 to 32 makes the file 18 to 130 times smaller.",
                ),
                io.Int.Input(
                    "max_steps",
                    default=120,
                    min=1,
                    max=10000,
                    tooltip="balanced: it stops here at the latest.",
                ),
                io.Int.Input(
                    "epochs", default=4, min=1, max=100, tooltip="paper: passes over the pictures."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="The same seed gives the same erasure on one machine.",
                ),
                io.String.Input(
                    "protect",
                    default="",
                    optional=True,
                    tooltip="balanced: words, "
                    "separated by commas, that must keep their meaning, such as close "
                    "relatives of the concept.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="loras/erased",
                    optional=True,
                    tooltip="Where in the output folder the erasure is kept. The stock Load "
                    "LoRA node finds what lies in output/loras.",
                ),
            ],
            outputs=[
                io.Clip.Output(
                    "erased_clip", display_name="CLIP", tooltip="The erased text encoder."
                ),
                ErasureType.Output(
                    "erasure",
                    display_name="ERASURE",
                    tooltip="The weight changes, with where they came from: for Save and Combine.",
                ),
                io.Image.Output("loss_curve", display_name="loss curve"),
                io.LossMap.Output("loss_map", display_name="LOSS_MAP"),
                io.String.Output("summary", display_name="summary"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        concept,
        kind,
        shots,
        size,
        mode,
        trainable,
        rank,
        max_steps,
        epochs,
        seed,
        images=None,
        protect="",
        filename_prefix="loras/erased",
    ) -> io.NodeOutput:
        concepts = split_concepts(concept)
        check_concepts(concepts, images)
        settings = FewShotSettings(
            mode=mode,
            kind=kind,
            trainable=trainable,
            rank=rank,
            shots=shots,
            max_steps=max_steps,
            epochs=epochs,
            seed=seed,
            protect=tuple(word.strip() for word in protect.split(",") if word.strip()),
        )
        drawn_at = None if images is not None else size
        key = training_key("few_shot", concepts, settings, images, drawn_at, model, clip)
        file = erasure_file(filename_prefix, concepts, key)
        node_id = cls.hidden.unique_id
        erasure = trained_before(file, key)
        if erasure is None:
            sides = (size, size) if images is None else tuple(images.shape[1:3])
            host = ComfyModel(model, clip, vae, sides)
            planned = host.prepare(settings.batch, trainable, rank)
            with PeakMemory() as memory, host.training():
                started = time.monotonic()
                progress = Progress(
                    node_id,
                    f"unlearning {', '.join(concepts)}",
                    lambda: host.preview(f"a photo of a {concepts[0]}", seed),
                )
                try:
                    erasure = few_shot(host, concepts, images, settings, progress)
                except Diverged as error:
                    aside = file.with_name(f"{file.stem}_unfinished.safetensors")
                    error.erasure.save(aside)
                    raise RuntimeError(
                        f"{error} What was reached after step {len(error.history)} is kept in "
                        f"{aside.name}."
                    ) from error
            erasure = Erasure(erasure.deltas, {**erasure.record, "key": key}).with_measured(
                seconds=round(time.monotonic() - started, 2),
                peak_mb=memory.peak >> 20,
                recomputed=planned.checkpointing,
            )
            erasure.save(file)
            again = ""
        else:
            again = "Trained before with these inputs; read from the file.\n"
        result, _ = erased_clip(clip, erasure)
        losses = erasure.record["loss"]
        text = again + summary(erasure, file, movement(clip, result, concepts))
        tell(node_id, text)
        return io.NodeOutput(
            result, erasure, loss_curve(losses), {"loss": losses}, text, ui=ui.PreviewText(text)
        )


def training_key(method: str, concepts, settings, images, size, model, clip) -> str:
    """A hash of all that decides what training yields."""
    inputs = {
        "method": method,
        "concepts": concepts,
        "settings": asdict(settings),
        "size": size,
        "images": None if images is None else images_hash(images),
        "model": signature(model),
        "clip": signature(clip.patcher),
        "skip": clip.layer_idx,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def output_file(path: str) -> Path:
    """A path in the output folder. Raises ValueError when it leaves it."""
    output = Path(folder_paths.get_output_directory()).resolve()
    file = (output / path).resolve()
    if not file.is_relative_to(output):
        raise ValueError(
            f"filename_prefix {path!r} leaves ComfyUI's output folder; use a path inside it, for "
            "example: loras/erased"
        )
    return file


def erasure_file(prefix: str, concepts: list[str], key: str) -> Path:
    """Where a trained erasure is kept."""
    words = "-".join("".join(c if c.isalnum() else "_" for c in name) for name in concepts)[:60]
    return output_file(prefix) / f"{words}_{key[:8]}.safetensors"


def trained_before(file: Path, key: str) -> Erasure | None:
    """The erasure in the file, if it was trained from the very same inputs."""
    if not file.is_file():
        return None
    try:
        erasure = Erasure.load(file)
    except ErasureError:
        return None  # not ours, or damaged: it is trained again and replaced
    return erasure if erasure.record.get("key") == key else None


def movement(clip, erased, concepts: list[str]) -> dict[str, float]:
    """How far each concept's conditioning moved, relative to its own length."""
    moved = {}
    for concept in concepts:
        before, after = (
            c.encode_from_tokens(c.tokenize(f"a photo of a {concept}")) for c in (clip, erased)
        )
        moved[concept] = ((after - before).norm() / before.norm()).item()
    return moved


def summary(erasure: Erasure, file: Path, moved: dict[str, float]) -> str:
    record, measured = erasure.record, erasure.record.get("measured", {})
    strength = ", ".join(f"{name} {value:.0%}" for name, value in moved.items())
    return (
        f"Erased from the text encoder: {', '.join(erasure.concepts)} ({record['kind']}).\n"
        f"Its conditioning moved by: {strength}.\n"
        f"{record['steps']} steps ({record['settings']['mode']}), "
        f"{measured.get('seconds', 0):.1f} s, peak memory {measured.get('peak_mb', 0)} MB.\n"
        f"File: {file.name}, {file.stat().st_size / 1e6:.1f} MB.\n"
        "Suppressed, not removed for good: probe it before you rely on it."
    )
