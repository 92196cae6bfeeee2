"""What a step of the denoiser's methods costs at full size, compared with its denoiser evaluations.

Every call of the denoiser in a step is counted, with its number of latents and whether it needs
gradients. Then the same calls are made with nothing around them, and timed in the same run.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from ..model import pack
from ..perf.models import random_model

SIDE = 64  # of the latents
STEPS = 4  # the first is left out of the times, since it includes preparations
CASES = (
    "key_step paper",
    "key_step balanced",
    "domain_correction paper",
    "domain_correction balanced",
)


def settings_of(science, case: str):
    """Settings with one trajectory or anchor picture at a time. All train the cross-attention."""
    method, mode = case.split()
    if method == "key_step":
        return science.methods.key_step.KeyStepSettings(
            mode=mode, task="style", start=0, iterations=STEPS, batch=1
        )
    return science.methods.domain_correction.DomainCorrectionSettings(
        mode=mode, iterations=STEPS, alone=0, batch=1, pictures=1, prompts=1
    )


def measure_unet(case: str) -> dict:
    """Seconds of a step and of its denoiser evaluations alone, and the peak memory with weights.

    Blocks are recomputed in the backward pass. The pictures that a method draws before its first
    step are random latents here. This changes no cost, and drawing them would take an hour.
    """
    package = pack.load()
    science = package.unlearn
    patcher, clip = random_model()
    calls: Counter[tuple[int, bool]] = Counter()

    class Counted(package.nodes.backend.model.ComfyModel):
        def predict(self, x_t, t, conditioning):
            calls[len(x_t), torch.is_grad_enabled()] += 1
            return super().predict(x_t, t, conditioning)

    host = Counted(patcher, clip, checkpointing=True)
    settings = settings_of(science, case)
    times: list[float] = []

    def on_step(step, total, loss, edit) -> None:
        times.append(time.perf_counter())
        if step == 1:
            calls.clear()

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(), host.training():
        resume = science.core.resume.Resume(Path(folder) / "run", every=3600)
        held = science.methods.parts.retention.RetentionSet.COUNT
        for name, count in (("held", held), ("anchors", 1)):
            resume.once(name, lambda count=count: torch.randn(count, 4, SIDE, SIDE))
        learn = getattr(science, case.split()[0])
        with package.unlearn.core.peak_memory.PeakMemory(host.device) as memory:
            erasure = learn(host, ["fox"], settings, on_step, resume)
        evaluations = dict(calls)
        bare = sum(
            count * bare_seconds(host, settings, rows, grad)
            for (rows, grad), count in evaluations.items()
        )
    timed = len(times) - 1
    trained = sum(delta["diff"].numel() for delta in erasure.deltas.values())
    return {
        "case": case,
        "batch": settings.rows,
        "seconds": (times[-1] - times[0]) / timed,
        "bare_seconds": bare / timed,
        "evaluations": {
            f"{rows} latents{', gradients' if grad else ''}": count / timed
            for (rows, grad), count in evaluations.items()
        },
        "training_state_mb": 4 * 4 * trained >> 20,
        "peak_mb": memory.peak >> 20,
        "base_mb": memory.base >> 20,
    }


def bare_seconds(host, settings, rows: int, grad: bool) -> float:
    """Seconds of one evaluation of the denoiser. grad: with a backward pass to the trained weights,
    and with blocks recomputed as in a step."""
    x = torch.randn(rows, 4, SIDE, SIDE, device=host.device)
    t = torch.full((rows,), 500.0, device=host.device)
    context = host.encode(["a photo of a fox"]).cross.repeat(rows, 1, 1).detach()
    weights = list(host.selected("denoiser", trained_weights(settings)).values()) if grad else []
    for weight in weights:
        weight.requires_grad_(True)
    # A recomputed block needs a gradient only if its input needs one.
    x.requires_grad_(grad)
    network = host.network.diffusion_model
    dtype = host.network.get_dtype_inference()
    try:
        times = []
        for _ in range(2):
            started = time.perf_counter()
            with torch.set_grad_enabled(grad):
                output = network(x.to(dtype), t, context=context.to(dtype))
                if grad:
                    output.float().square().mean().backward()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return min(times)
    finally:
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None


def trained_weights(settings) -> str:
    return getattr(settings, "weights", None) or settings.trainable


def measure_drawing(rows: int) -> dict:
    """Seconds and peak memory of one denoiser evaluation in sampling, with `rows` latents."""
    package = pack.load()
    patcher, clip = random_model()
    host = package.nodes.backend.model.ComfyModel(patcher, clip)
    with torch.inference_mode(), host.training(), torch.no_grad():
        x = torch.randn(rows, 4, SIDE, SIDE, device=host.device)
        t = torch.full((rows,), 500.0, device=host.device)
        condition = host.encode(["a photo of a fox"]).repeated(rows)
        host.predict(x, t, condition)  # warm
        with package.unlearn.core.peak_memory.PeakMemory(host.device) as memory:
            started = time.perf_counter()
            host.predict(x, t, condition)
            seconds = time.perf_counter() - started
    return {
        "case": f"drawing {rows}",
        "batch": rows,
        "seconds": seconds,
        "peak_mb": memory.peak >> 20,
        "base_mb": memory.base >> 20,
    }
