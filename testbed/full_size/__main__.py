"""Speed and memory of Stable Diffusion 1.5 at full size, with random weights, in the real host.

    python -m testbed.full_size                  what the methods need, compared with drawing
    python -m testbed.full_size --part encoder   only few-shot unlearning; closed_form: only that;
                                                 unet: the methods for the denoiser; wan: Wan 2.1
                                                 with UMT5-XXL, from measured parts
    python -m testbed.full_size --json F         also write the figures as JSON (those of other
                                                 parts stay), and all of them as a page beside it

Nothing is learnt on random weights. But the time and the memory of a step, and how far one step
moves the conditioning, do not depend on what the weights mean.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import testbed

from ..host.machine import machine
from ..model import pack
from ..perf import wan as full_size_wan
from ..perf.models import random_model
from . import closed_form as full_size_closed_form
from . import unet as full_size_unet

# Each case runs in a process of its own, so that it has its own memory peak.
CASES = {
    "encoder": ("drawing", "few_shot", "few_shot checkpointed", "few_shot on IconCanvas"),
    "closed_form": full_size_closed_form.CASES,
    "unet": ("drawing 2", "drawing 6", *full_size_unet.CASES),
    "wan": ("wan",),
}

# The C library keeps freed memory for later. With these settings it returns the memory of every
# tensor at once, so a process on a CPU holds only what its tensors need.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "1048576"}


def measure_case(case: str, steps: int = 3, batch: int = 1) -> dict:
    """The seconds of a step and the peak memory of one case, with its weights."""
    import torch

    package = pack.load()
    small = case.endswith("IconCanvas")
    patcher, clip = pack.checkpoint()[:2] if small else random_model()
    few_shot = package.unlearn.methods.few_shot
    host = package.nodes.backend.model.ComfyModel(
        patcher, clip, checkpointing=case.endswith("checkpointed")
    )
    side = 16 if small else 64
    x0 = torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(1)).to(
        host.device
    )
    result: dict = {"case": case, "batch": batch}
    with torch.inference_mode(), host.training():
        condition = host.encode(["a photo of a fox"]).repeated(batch)
        t = torch.full((batch,), 500.0, device=host.device)

        def forward() -> None:
            with torch.no_grad():
                host.predict(x0, t, condition)

        forward()  # warm
        if case == "drawing":
            with package.unlearn.core.peak_memory.PeakMemory(host.device) as memory:
                started = time.perf_counter()
                for _ in range(steps):
                    forward()
                result["seconds"] = (time.perf_counter() - started) / steps
        else:
            settings = few_shot.FewShotSettings(batch=batch, max_steps=steps)
            before = host.encode(["a photo of a fox"]).cross.detach()
            moved: list[float] = []

            def on_step(step, total, loss, edit) -> None:
                with torch.no_grad():
                    now = host.encode(["a photo of a fox"]).cross
                moved.append(((now - before).norm() / before.norm()).item())

            with (
                package.unlearn.core.peak_memory.PeakMemory(host.device) as memory,
                host.edit("encoder", settings.trainable, 0, 0) as edit,
            ):
                started = time.perf_counter()
                progress = package.unlearn.core.progress.as_progress(on_step)
                few_shot.balanced(host, edit, ["fox"], [x0], settings, progress)
                result["seconds"] = (time.perf_counter() - started) / steps
                # Delta, gradient and Adam's two moments, all float32.
                result["training_state_mb"] = (
                    4 * 4 * sum(p.numel() for p in edit.parameters()) >> 20
                )
            result["moved"] = [round(m, 4) for m in moved]
    result["peak_mb"] = memory.peak >> 20
    result["base_mb"] = memory.base >> 20
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m testbed.full_size",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", choices=CASES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print("RESULT " + json.dumps(measured(options.case)), flush=True)
        return
    parts = [options.part] if options.part else list(CASES)
    results = {part: [in_process(case) for case in CASES[part]] for part in parts}
    print("\n\n".join(TABLES[part](results[part]) for part in parts))
    print(f"\nMeasured on {machine()}.")
    if options.json:
        kept = json.loads(options.json.read_text()) if options.json.exists() else {}
        kept |= {part: {"machine": machine(), "cases": results[part]} for part in parts}
        options.json.write_text(json.dumps(kept, indent=1))
        options.json.with_suffix(".md").write_text(page(kept), encoding="utf-8")


def page(kept: dict) -> str:
    """Everything in the JSON file, as Markdown."""
    titles = {
        "encoder": "Few-Shot Encoder Unlearn on Stable Diffusion 1.5",
        "closed_form": "Closed-Form Encoder Unlearn on Stable Diffusion 1.5",
        "unet": "The methods for the denoiser, on Stable Diffusion 1.5",
        "wan": "Few-Shot Encoder Unlearn on Wan 2.1",
    }
    parts = [
        "# Full size: speed and memory",
        "Made by `python -m testbed.full_size --json docs/full_size.json`. The models have their "
        "full size and random weights: nothing is learnt, but time and memory do not depend on "
        "what the weights mean.",
    ]
    for part, title in titles.items():
        if part in kept:
            table = TABLES[part](kept[part]["cases"])
            parts += [f"## {title}", table, f"Measured on {kept[part]['machine']}."]
    return "\n\n".join(parts) + "\n"


def measured(case: str) -> dict:
    if case in full_size_unet.CASES:
        return full_size_unet.measure_unet(case)
    if case in full_size_closed_form.CASES:
        return full_size_closed_form.measure_closed_form(case)
    if case == "wan":
        return full_size_wan.measure_wan()
    if case.startswith("drawing "):
        return full_size_unet.measure_drawing(int(case.split()[1]))
    return measure_case(case)


def in_process(case: str) -> dict:
    output = subprocess.run(
        [sys.executable, "-m", "testbed.full_size", "--case", case],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=testbed.ROOT,
        env={**os.environ, **RETURN_MEMORY},
    ).stdout
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def encoder_table(results: list[dict]) -> str:
    drawing = results[0]
    lines = [
        "| case | seconds a step | peak | less the training state, against drawing | "
        "conditioning moved after each step |",
        "|---|---|---|---|---|",
    ]
    for r in results:
        net = r["peak_mb"] - r.get("training_state_mb", 0)
        ratio = "" if r["case"].endswith("IconCanvas") else f"{net / drawing['peak_mb']:.2f} x"
        moved = ", ".join(f"{m:.1%}" for m in r.get("moved", ()))
        lines.append(
            f"| {r['case']} | {r['seconds']:.2f} | {r['peak_mb']} MiB | {ratio} | {moved} |"
        )
    return "\n".join(lines) + (
        f"\n\nBatch {drawing['batch']}, 64 x 64 latents; IconCanvas has its own weights. The "
        "training state is the deltas, their gradients and Adam's two moments."
    )


def unet_table(results: list[dict]) -> str:
    drawing = {r["batch"]: r for r in results if r["case"].startswith("drawing")}
    lines = [
        "| case | latents at once | seconds a step | its denoiser evaluations alone | ratio | "
        "peak | training state | the rest, against drawing as many |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        state, bare = r.get("training_state_mb", 0), r.get("bare_seconds")
        memory = (r["peak_mb"] - state) / drawing[r["batch"]]["peak_mb"]
        lines.append(
            f"| {r['case']} | {r['batch']} | {r['seconds']:.1f} | "
            + (f"{bare:.1f} | {r['seconds'] / bare:.2f} x" if bare else " | ")
            + f" | {r['peak_mb']} MiB | {state} MiB | {memory:.2f} x |"
        )
    return "\n".join(lines) + (
        "\n\n64 x 64 latents, blocks recomputed. The training state is the deltas, their gradients "
        "and Adam's two moments."
    )


TABLES = {
    "encoder": encoder_table,
    "closed_form": full_size_closed_form.closed_form_table,
    "unet": unet_table,
    "wan": full_size_wan.wan_table,
}


if __name__ == "__main__":
    main()
