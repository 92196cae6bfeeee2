"""What all training nodes hand on, and how they tell what was done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from comfy_api.latest import io, ui

from ..unlearn.core.erasure import Erasure
from ..unlearn.core.kind import Kind
from ..unlearn.evaluate import verdict as verdicts
from ..unlearn.methods.parts.method import Method
from ..unlearn.prompts.templates import sentence
from .backend.words import tokenized
from .charts import loss_curve
from .progress import tell
from .sockets import ErasureType


def movement(clip, erased, concepts: list[str], kind: Kind) -> dict[str, float]:
    """How far each concept's conditioning moved, in its kind's sentence, relative to its own
    length."""
    moved = {}
    for concept in concepts:
        before, after = (
            c.encode_from_tokens(tokenized(c, sentence(kind, concept))) for c in (clip, erased)
        )
        moved[concept] = ((after - before).norm() / before.norm()).item()
    return moved


def report_outputs() -> list[io.Output]:
    """What all training nodes hand on behind what is erased."""
    return [
        ErasureType.Output(
            "erasure",
            display_name="ERASURE",
            tooltip="The weight changes, with where they came from: for Save and Combine.",
        ),
        io.Image.Output("loss_curve", display_name="loss curve"),
        io.LossMap.Output("loss_map", display_name="LOSS_MAP"),
        io.String.Output("summary", display_name="summary"),
    ]


def outputs(
    node_id: str | None, method: Method, erased, erasure: Erasure, text: str, *own
) -> io.NodeOutput:
    """A training node's five outputs and its own, the text also shown in the node."""
    tell(node_id, text)
    losses, mode = erasure.record["loss"], erasure.record["settings"].get("mode", "")
    curve = loss_curve(losses, method.counts, method.curve.get(mode, ""))
    return io.NodeOutput(
        erased, erasure, curve, {"loss": losses}, text, *own, ui=ui.PreviewText(text)
    )


def summary(erasure: Erasure, file: Path | None, method: Method, moved: Mapping[str, float]) -> str:
    """What was trained and how strongly, in words: the verdict, which comes first, is not its."""
    record, measured = erasure.record, erasure.record.get("measured", {})
    strength = ", ".join(f"{name} {value:.0%}" for name, value in moved.items())
    where, what = {
        "encoder": ("The text encoder", "Its conditioning moved by"),
        "denoiser": ("The model", "Its prediction moved by"),
    }[method.part]
    mode = record["settings"].get("mode")
    return (
        f"{where} was changed for: {', '.join(erasure.concepts)} ({record['kind']}).\n"
        f"{what}: {strength}.\n"
        f"{record['steps']} {method.counts}{f' ({mode})' if mode else ''}, "
        f"{measured.get('seconds', 0):.1f} s, peak memory {measured.get('peak_mb', 0)} MiB "
        f"(estimated: {measured.get('estimated_mb', 0)} MiB beside the models).\n"
        f"{described(file)}\n"
        f"{verdicts.advice(record)}"
    ).rstrip()


def described(file: Path | None) -> str:
    if file is None:
        return "File: none, see above."
    try:
        return f"File: {file.name}, {file.stat().st_size / 1e6:.1f} MB."
    except OSError:
        return f"File: {file.name} is gone. Write the erasure with a Save node."
