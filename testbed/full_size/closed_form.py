"""The closed form at full size: seconds and memory beside the bare passes of its prompts."""

from __future__ import annotations

import time

from ..model import pack
from ..perf.models import random_model

CASES = ("closed_form", "closed_form on IconCanvas")


def measure_closed_form(case: str) -> dict:
    """One concept: encoding all of its prompts, and the whole erasure, in seconds and MiB.

    Both run twice, and the second time counts.
    """
    import torch

    package = pack.load()
    clip = (pack.checkpoint() if case.endswith("IconCanvas") else random_model())[1]
    science = package.unlearn.methods.closed_form
    host = package.nodes.backend.encoder_model.ComfyEncoder(clip)
    settings = science.ClosedFormSettings(anchor="koala")
    result: dict = {"case": case}
    peak = package.unlearn.core.peak_memory.PeakMemory
    with torch.inference_mode(), host.training():
        prompts = science.Prompts.of(host, ["fox"], settings)
        result["prompts"] = sum(map(len, prompts.batches))
        for _ in range(2):
            with peak(host.device) as memory:
                started = time.perf_counter()
                for some in prompts.batches:
                    host.read(some)
                result["bare_seconds"] = time.perf_counter() - started
            result["bare_mb"] = memory.peak >> 20
            with peak(host.device) as memory:
                started = time.perf_counter()
                erasure = science.closed_form(host, ["fox"], settings)
                result["seconds"] = time.perf_counter() - started
            result["peak_mb"] = memory.peak >> 20
    result["file_mb"] = sum(2 * t.numel() for t in erasure.state_dict().values()) / 1e6
    result["ranks"] = [delta["lora_down"].shape[0] for delta in erasure.deltas.values()]
    return result


def closed_form_table(results: list[dict]) -> str:
    lines = [
        "| case | prompts | seconds | encoding them alone | ratio | peak | encoding alone | ratio "
        "| file | ranks |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        ranks = f"{min(r['ranks'])} to {max(r['ranks'])}"
        lines.append(
            f"| {r['case']} | {r['prompts']} | {r['seconds']:.1f} | {r['bare_seconds']:.1f} | "
            f"{r['seconds'] / r['bare_seconds']:.2f} x | {r['peak_mb']} MiB | {r['bare_mb']} MiB | "
            f"{r['peak_mb'] / r['bare_mb']:.2f} x | {r['file_mb']:.1f} MB | {ranks} |"
        )
    return "\n".join(lines) + (
        "\n\nOne concept with an anchor, 4 layers of IconCanvas's text encoder and 12 of CLIP-L. "
        "Random weights have no low rank, so the file of CLIP-L is larger than a real one's."
    )
