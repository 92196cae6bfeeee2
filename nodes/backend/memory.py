"""Whether a backward pass fits into memory, asked of the very model before a run begins."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import comfy.model_management as management
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ...unlearn.core.edit import trained_values
from ...unlearn.core.model import Part
from ...unlearn.evaluate.classifier import rows_at_once
from .aliasing import is_quantised
from .patching import edited
from .recompute import blocks

if TYPE_CHECKING:
    from .model import ComfyModel

MEASURED = "a photo of a cat, in the style of an old painting"  # a prompt as long as most
ENDLESS = 2**62  # bytes


def plan_training(
    model: ComfyModel, part: Part, select: str, rank: int, batch: int, prompts: int = 0
) -> MemoryPlan:
    """Look whether a training fits into memory, and recompute activations where it must.

    batch, prompts: latents and prompts that are kept for one backward pass, at most. Raises
    MemoryError with the estimate when it does not fit at all, and ValueError when the text
    encoder is not of the kind that this denoiser reads.
    """
    model.check_encoder()
    model.residency.load()  # what is free is beside them
    weights = model.selected(part, select)
    trained = trained_values(weights, rank, model.rows(part, select))
    # Autograd keeps each edited weight as it was used: an encoder's in float32.
    used = model.network.get_dtype_inference().itemsize if part == "denoiser" else 4
    copies = _cast_bytes(model) + sum(w.numel() * used for w in weights.values())
    encoding = encoding_bytes(model, weights, prompts) if part == "encoder" and prompts else (0, 0)
    needed = need(model.network, part, _latents(model, batch), trained, copies, encoding)
    return _plan(model, needed, "Training needs", "use smaller images, a rank of 4 to 16")


def plan_attack(model: ComfyModel, batch: int, prompts: int) -> MemoryPlan:
    """Plan an attack, which trains no weight but seeks words for prompts.

    Raises MemoryError and ValueError as `plan_training`.
    """
    model.check_encoder()
    model.residency.load()
    weights = model.selected("encoder", "mlp-final-attn")
    encoding = encoding_bytes(model, weights, prompts)
    needed = need(
        model.network,
        "encoder",
        _latents(model, batch),
        copies=_cast_bytes(model),
        encoding=encoding,
    )
    return _plan(model, needed, "The attacks need", "use a smaller width and height")


def leave_room_for_classifier(model: ComfyModel) -> None:
    """Have room left beside the models for what the classifier asks at once (classifier.py).

    By itself the host fills a card with weights but for about a gigabyte. Where the card has no
    such room at all, it stays as it is.
    """
    if model.device.type == "cpu":
        return
    _, channels, *space = _latents(model, 1)
    rows = rows_at_once(prod(space))
    before = model.residency.room
    model.residency.room = max(before, int(model.network.memory_required([rows, channels, *space])))
    model.residency.load()
    if not model.residency.is_loaded():
        model.residency.room = before
        model.residency.load()


def _plan(model: ComfyModel, needed: MemoryNeed, what: str, advice: str) -> MemoryPlan:
    def planned() -> MemoryPlan:
        # With dynamic VRAM more is free than the card says, which the patcher knows.
        asked = getattr(model.patcher, "get_free_memory", management.get_free_memory)
        return plan(needed, int(asked(model.device)), what, advice)

    try:
        found = planned()
    except MemoryError:
        if model.device.type == "cpu":
            raise
        # Beside as much of the models as leaves room: the rest is fetched when it is used, and
        # let go of only where blocks are recomputed.
        before, model.residency.room = model.residency.room, needed.least
        try:
            model.residency.load()
            found = replace(planned(), checkpointing=True)
            if not model.residency.is_loaded():  # none of one of them would be left
                raise
        except MemoryError:
            model.residency.room = before
            model.residency.load()
            raise
    if model.checkpointing is None:
        model.checkpointing = found.checkpointing
    return found


def _latents(model: ComfyModel, batch: int) -> tuple[int, ...]:
    return batch, model.network.latent_format.latent_channels, *model.denoiser.space(model.size)


def _cast_bytes(model: ComfyModel) -> int:
    """Bytes of the denoiser's weights as they are used, where they are kept in another dtype or
    on the CPU: copies that live as long as the activations."""
    used = model.network.get_dtype_inference()
    stored = (
        w
        for w in model.layers.parameters()
        if w.dtype != used or is_quantised(w) or w.device != model.device
    )
    return sum(w.numel() for w in stored) * used.itemsize


def encoding_bytes(
    model: ComfyModel, weights: dict[str, torch.Tensor], prompts: int
) -> tuple[int, int]:
    """Bytes that the ways of prompts through the encoder take while weights of it are trained:
    in full, and with every block recomputed."""
    before, found = model.checkpointing, []
    try:
        for model.checkpointing in (False, True):
            try:
                one, two = _kept_of_prompts(model, weights)
            except management.OOM_EXCEPTION:
                if model.checkpointing:
                    raise
                management.soft_empty_cache()
                continue
            # What does not grow with the prompts, such as weights made of packed ones, is there
            # once.
            found.append(one + (prompts - 1) * (two - one))
    finally:
        model.checkpointing = before
    if len(found) == 1:
        # A block keeps about as many times its input as there are blocks.
        return ENDLESS, 2 * found[0]
    full, recomputed = found
    # While a block is recomputed, what it keeps is there, too.
    one = (full - recomputed) // max(1, sum(1 for _ in blocks(model.encoder)))
    return full, recomputed + one


def _kept_of_prompts(model: ComfyModel, weights: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Bytes that autograd keeps of the encoding of one and of two prompts."""
    touched = GradientTracer(weights)
    with model.training(), edited(model.clip.patcher, model.encoder, touched, ""):
        own = [w for w in model.encoder.parameters() if not is_quantised(w)]
        one, two = (
            kept_bytes(partial(model.encode, [MEASURED] * count), own, touched) for count in (1, 2)
        )
    return one, two


class GradientTracer:
    """An edit, to `frozen.edited`, that trains weights without holding a delta of their size."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.deltas = dict.fromkeys(keys)
        self.nothing = torch.zeros((), requires_grad=True)
        self._copies: dict[int, weakref.ref[torch.Tensor]] = {}

    def changed(self, key: str, weight: torch.Tensor) -> torch.Tensor:
        changed = weight + self.nothing.to(weight)
        self._copies[_place(changed)] = weakref.ref(changed)
        return changed

    def is_copy(self, tensor: torch.Tensor) -> bool:
        """Whether it is a changed weight, which is one for all prompts. Where one lay that is gone,
        something else may lie now."""
        copy = self._copies.get(_place(tensor))
        return copy is not None and copy() is not None


def kept_bytes(
    forward: Callable[[], object], weights: Iterable[torch.Tensor], touched: GradientTracer
) -> int:
    """Bytes that autograd keeps of a forward pass, without the weights and their changed copies.

    forward: makes what is differentiated. There is no backward pass through it, since nothing is
    kept for one.
    """
    own = {_place(weight) for weight in weights}
    kept: dict[StorageWeakRef, int] = {}

    def note(tensor: torch.Tensor) -> None:
        """Autograd would keep what this returns. An operation that saves its own output would then
        keep the tensor and the tensor the operation, for good: Python's collector sees no such
        cycle."""
        if _place(tensor) not in own and not touched.is_copy(tensor):
            # Not by its place, where another may lie once this one is gone.
            storage = tensor.untyped_storage()
            kept[StorageWeakRef(storage)] = storage.nbytes()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing):
        forward()
    return sum(kept.values())


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


# What a training step needs of the denoiser, beyond the loaded weights and the training state, in
# the host's own unit for drawing (memory_required with a memory-saving attention), by the part that
# is trained: in full, and with every block recomputed. The first are measured on Stable Diffusion
# 1.5 at batch 1 (python -m testbed.full_size; docs/full_size.json), a tenth added; of the second
# only the recomputed one is.
UNITS = {"encoder": (31.0, 11.5), "denoiser": (36.0, 12.0)}
TRAINING_STATE = 16  # bytes a trained value: delta, gradient and Adam's two moments in float32


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
