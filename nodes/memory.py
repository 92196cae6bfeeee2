"""The memory that a training run will need: an estimate, before it begins."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management as management
import torch

from ..unlearn.model import Part

# What a training step needs of the network, beyond the loaded weights and the training state, in
# the host's own unit for drawing (memory_required with a memory-saving attention), by the part that
# is trained: in full, and with every block recomputed. The first are measured on Stable Diffusion
# 1.5 at batch 1 (python -m testbed.full_size; docs/full_size.json), a tenth added; of the second
# only the recomputed one is.
UNITS = {"encoder": (31.0, 11.5), "unet": (36.0, 12.0)}
TRAINING_STATE = 16  # bytes a trained value: delta, gradient and Adam's two moments in float32


@dataclass(frozen=True)
class MemoryPlan:
    """What a run will need beyond the loaded weights, in bytes, and whether blocks are
    recomputed."""

    activations: int
    state: int
    free: int
    checkpointing: bool


def plan(
    network: torch.nn.Module,
    part: Part,
    shape: tuple[int, ...],
    trained: int,
    copies: int,
    device: torch.device,
    encoding: tuple[int, int] = (0, 0),
) -> MemoryPlan:
    """Decide on activation checkpointing: only where the run would not fit without it.

    shape: of the latents of a batch. trained: how many values are trained. copies: bytes of the
    weights they change. encoding: bytes that prompts take in a text encoder that is trained, in
    full and recomputed (ComfyModel.prepare measures them). Raises MemoryError, one sentence with
    the estimate, when it will not fit either way.
    """
    area = shape[0]
    for side in shape[2:]:
        area *= side
    size = management.dtype_size(network.get_dtype_inference())
    unit = area * size * 0.01 * network.memory_usage_factor * 2**20
    state = trained * TRAINING_STATE
    free = int(management.get_free_memory(device))
    full, recomputed = (int(unit * units) for units in UNITS[part])
    full, recomputed = full + copies + encoding[0], recomputed + encoding[1]
    if full + state <= free:
        return MemoryPlan(full, state, free, checkpointing=False)
    if recomputed + state <= free:
        return MemoryPlan(recomputed, state, free, checkpointing=True)
    raise MemoryError(
        f"Training needs about {(recomputed + state) / 2**30:.1f} GB beside the loaded models and "
        f"{free / 2**30:.1f} GB are free; use smaller or fewer images, a rank of 4 to 16, or close "
        "other programs."
    )
