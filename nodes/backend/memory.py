"""The memory that a training run will need: an estimate, before it begins."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

import comfy.model_management as management
import torch

from ...unlearn.core.model import Part

# What a training step needs of the network, beyond the loaded weights and the training state, in
# the host's own unit for drawing (memory_required with a memory-saving attention), by the part that
# is trained: in full, and with every block recomputed. The first are measured on Stable Diffusion
# 1.5 at batch 1 (python -m testbed.full_size; docs/full_size.json), a tenth added; of the second
# only the recomputed one is.
UNITS = {"encoder": (31.0, 11.5), "unet": (36.0, 12.0)}
TRAINING_STATE = 16  # bytes a trained value: delta, gradient and Adam's two moments in float32


def give_back() -> None:
    """Return to the system what glibc holds free: without this a process keeps what one run took,
    in pieces of tens of megabytes, until it ends. Other allocators are left alone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a run takes beside the loaded weights."""

    full: int
    """Activations, all of them kept."""
    recomputed: int
    """Activations, every block's recomputed in the backward pass."""
    state: int
    """Deltas, gradients and the optimiser's."""

    @property
    def least(self) -> int:
        return self.recomputed + self.state


@dataclass(frozen=True)
class MemoryPlan:
    """What a run will need beyond the loaded weights, in bytes, and whether blocks are
    recomputed."""

    activations: int
    state: int
    free: int
    checkpointing: bool

    @property
    def needed(self) -> int:
        return self.activations + self.state

    def sentence(self) -> str:
        """For the user, before the run."""
        how = ", activations recomputed" if self.checkpointing else ""
        return (
            f"about {self.needed / 2**30:.1f} GiB beside the models, as an estimate{how}; "
            f"{self.free / 2**30:.1f} GiB are free"
        )


def need(
    network: torch.nn.Module,
    part: Part,
    shape: tuple[int, ...],
    trained: int = 0,
    copies: int = 0,
    encoding: tuple[int, int] = (0, 0),
) -> MemoryNeed:
    """An estimate for a backward pass through a network.

    shape: of the latents of a batch. trained: how many values are trained. copies: bytes of weights
    that autograd keeps as they were used, unless their block is recomputed. encoding: bytes that
    prompts take in a text encoder that gradients go through, in full and recomputed
    (ComfyModel.prepare measures them).
    """
    area = shape[0]
    for side in shape[2:]:
        area *= side
    size = management.dtype_size(network.get_dtype_inference())
    unit = area * size * 0.01 * network.memory_usage_factor * 2**20
    full, recomputed = (int(unit * units) for units in UNITS[part])
    return MemoryNeed(
        full + copies + encoding[0], recomputed + encoding[1], trained * TRAINING_STATE
    )


def plan(needed: MemoryNeed, free: int, what: str, advice: str) -> MemoryPlan:
    """Decide on activation checkpointing: only where the run would not fit without it.

    Raises MemoryError, one sentence with the estimate, when it will not fit either way.
    """
    if needed.full + needed.state <= free:
        return MemoryPlan(needed.full, needed.state, free, checkpointing=False)
    if needed.least <= free:
        return MemoryPlan(needed.recomputed, needed.state, free, checkpointing=True)
    raise MemoryError(
        f"{what} about {needed.least / 2**30:.1f} GiB beside the loaded models and "
        f"{free / 2**30:.1f} GiB are free; {advice}, or close other programs."
    )
