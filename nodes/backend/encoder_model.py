"""ComfyEncoder: the text encoder of ComfyUI's CLIP as a TextModel, where there need be no MODEL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property

import comfy.model_management as management
import torch

from ...unlearn.core.conditioning import Conditioning
from ...unlearn.core.edit import trained_values
from ...unlearn.core.model import Part
from ...unlearn.core.trainable import encoder_weights
from ...unlearn.methods.parts.encoder_solver import TOKENS
from ...unlearn.methods.parts.solve_prompts import most_kept
from .checks import check_clip, check_patcher
from .dynamic_vram import static_clip
from .gradients import in_training
from .identity import fingerprints, without_hooks
from .memory import MEASURED, MemoryPlan
from .read_depth import check_conditioning, unread_layers
from .residency import Residency
from .text_encoder import TextEncoder
from .text_part import TextPart
from .version import told_with_version
from .words import tokenized

COPIES = 2  # of what is kept of all prompts, and of a layer's square of inputs, at once


class ComfyEncoder(TextPart):
    """A TextModel (see unlearn.core.model) on a CLIP.

    Use it inside `with encoder.training():`. What it is for is solved, not trained: gradients are
    only asked for where words are sought.
    """

    vae = None

    def __init__(self, clip) -> None:
        check_clip(clip)
        check_patcher(clip.patcher, "CLIP")
        self.clip = static_clip(without_hooks(clip))
        self.device = self.clip.patcher.load_device
        self.residency = Residency((self.clip.patcher,), self.device)
        self.text = TextEncoder(self.clip, self.residency)

    def selected(self, part: Part, select: str) -> dict[str, torch.Tensor]:
        """What `select` means in the text encoder, by the host's names."""
        return encoder_weights(self.encoder, select, self._unread)

    @told_with_version()
    def prepare(
        self, part: Part, select: str, rank: int, batch: int, prompts: int = 0
    ) -> MemoryPlan:
        """Whether all prompts fit at once. Raises MemoryError with the estimate where they do not.

        prompts: how many are carried along from layer to layer.
        """
        check_conditioning(self.clip)
        self.residency.load()
        weights = self.selected(part, select)
        widths = [max(weight.shape) for weight in weights.values() if weight.ndim == 2]
        tokens = self._alone.cross.shape[1]
        wide = max(widths, default=0)
        states = int(min(most_kept(self), prompts * tokens * wide * 4))
        needed = COPIES * (states + wide * min(wide, TOKENS) * 8)
        free = int(management.get_free_memory(self.device))
        if needed > free:
            raise MemoryError(
                f"The solve needs about {needed / 2**30:.1f} GiB beside the text encoder and "
                f"{free / 2**30:.1f} GiB are free; name fewer concepts at once, or close other "
                "programs."
            )
        return MemoryPlan(needed, 16 * trained_values(weights, rank), free, checkpointing=False)

    @contextmanager
    def training(self, gradients: bool = False) -> Iterator[ComfyEncoder]:
        """The encoder in place, as it computes for drawing; with gradients as in training, see
        `gradients.in_training`."""
        with ExitStack() as stack:
            stack.enter_context(told_with_version(lambda: self._began))
            with torch.inference_mode():
                self.residency.load()
            if gradients:
                parts = ((self.encoder, self.clip.patcher.load_device),)
                self._saved = stack.enter_context(in_training(parts, self.encoder))
            else:
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.no_grad())
            try:
                yield self
            finally:
                self._saved = None

    def fingerprints(self, keys: Iterable[str]) -> dict[str, str]:
        """Fingerprints of the encoder's own weights, without any LoRA or hook on top."""
        return fingerprints(self.clip.patcher, keys)

    @property
    def _alone(self) -> Conditioning:
        """One prompt as CLIP Text Encode gives it on."""
        with torch.no_grad():
            return self.text.of_one(tokenized(self.clip, MEASURED))

    @cached_property
    def _one_a_token(self) -> bool:
        """Whether there is one encoder, which gives a vector for each token of a prompt."""
        tokens = tokenized(self.clip, MEASURED)
        first = next(iter(tokens.values()))[0]
        return len(tokens) == 1 and self._alone.cross.shape[1] == len(first)

    @cached_property
    def _unread(self) -> dict[str, int]:
        """Of each stack of layers, how many at its end the conditioning has nothing of."""

        def given() -> list[torch.Tensor]:
            one = self._alone
            return [one.cross] if one.pooled is None else [one.cross, one.pooled]

        return unread_layers(self.encoder, given)
