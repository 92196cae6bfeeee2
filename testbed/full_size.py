"""Stable Diffusion 1.5 at full size with random weights, in the real host: for speed and memory.

    python -m testbed.full_size            what few-shot unlearning needs, against drawing
    python -m testbed.full_size --json F   and the figures as JSON

Nothing is learnt on random weights; how long a step takes, how much memory it needs, and how far
one step of a given rate moves the conditioning do not depend on what the weights mean.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from . import pack
from .bench import machine

# The part of each measurement that runs in a process of its own, so that peaks do not mix.
CASES = ("drawing", "few_shot", "few_shot checkpointed", "few_shot on IconCanvas")

# The C library keeps freed memory for later, as it sees fit; told to give back every tensor's at
# once, a process on a CPU holds what its tensors need, as a GPU's counters say it.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "1048576"}


def random_model(dtype=None):
    """(MODEL, CLIP) of SD 1.5's layout, as the host's loader would build them, weights random."""
    import comfy.model_management as management
    import comfy.sd
    import comfy.supported_models
    import torch

    dtype = dtype or (torch.float16 if torch.cuda.is_available() else torch.bfloat16)
    layout = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 320,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "legacy": False,
        "context_dim": 768,
        "use_temporal_attention": False,
        "adm_in_channels": None,
    }
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():  # as the host's loader nodes run
        config = comfy.supported_models.SD15(layout)
        config.unet_config["dtype"] = dtype
        config.set_inference_dtype(dtype, None)
        model = config.get_model({}, "", device="cpu")
        patcher_class = comfy.model_patcher.CoreModelPatcher
        patcher = patcher_class(
            model, management.get_torch_device(), management.unet_offload_device()
        )
        clip = comfy.sd.CLIP(config.clip_target(), parameters=123_060_480)
        for root in (model.diffusion_model, clip.cond_stage_model):
            for module in root.modules():
                for name, parameter in module._parameters.items():
                    if parameter is None:
                        continue
                    if parameter.ndim > 1:
                        scale = 0.5 * parameter[0].numel() ** -0.5
                        values = torch.empty(parameter.shape).normal_(0, scale, generator=generator)
                        parameter.copy_(values)
                    else:
                        norm = isinstance(module, (torch.nn.LayerNorm, torch.nn.GroupNorm))
                        parameter.fill_(1.0 if norm and name == "weight" else 0.0)
    return patcher, clip


def measure_case(case: str, steps: int = 3, batch: int = 1) -> dict:
    """Seconds a step and peak memory of one case, weights included."""
    import torch

    package = pack.load()
    small = case.endswith("IconCanvas")
    patcher, clip = pack.checkpoint()[:2] if small else random_model()
    few_shot = package.unlearn.few_shot
    host = package.nodes.host.ComfyModel(patcher, clip, checkpointing=case.endswith("checkpointed"))
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
            with package.nodes.memory.PeakMemory() as memory:
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
                package.nodes.memory.PeakMemory() as memory,
                host.edit("encoder", settings.trainable, 0, 0) as edit,
            ):
                started = time.perf_counter()
                few_shot.balanced(host, edit, ["fox"], [x0], settings, on_step)
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
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print("RESULT " + json.dumps(measure_case(options.case)), flush=True)
        return
    results = []
    for case in CASES:
        output = subprocess.run(
            [sys.executable, "-m", "testbed.full_size", "--case", case],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, **RETURN_MEMORY},
        ).stdout
        results += [
            json.loads(line[7:]) for line in output.splitlines() if line.startswith("RESULT ")
        ]
    drawing = results[0]
    print(
        "| case | seconds a step | peak | less the training state, against drawing | "
        "conditioning moved after each step |\n|---|---|---|---|---|"
    )
    for r in results:
        net = r["peak_mb"] - r.get("training_state_mb", 0)
        ratio = "" if r["case"].endswith("IconCanvas") else f"{net / drawing['peak_mb']:.2f} x"
        moved = ", ".join(f"{m:.1%}" for m in r.get("moved", ()))
        print(f"| {r['case']} | {r['seconds']:.2f} | {r['peak_mb']} MB | {ratio} | {moved} |")
    print(
        f"\nBatch {drawing['batch']}, 64 x 64 latents, random weights but for IconCanvas; the "
        "training state is the deltas, their gradients and Adam's two moments.\n"
        f"Measured on {machine()}."
    )
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "cases": results}, indent=1))


if __name__ == "__main__":
    main()
