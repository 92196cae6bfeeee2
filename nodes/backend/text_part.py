"""TextPart: what ComfyModel and ComfyEncoder answer alike, since it is asked of the CLIP alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...unlearn.core.conditioning import Conditioning
from ...unlearn.core.token_reading import Reading
from ...unlearn.core.token_slots import Vocabulary
from ...unlearn.core.trainable import read_layers
from .text_encoder import TextEncoder
from .words import readings


class TextPart:
    """The text encoder's part of a model; see unlearn.core.model.TextModel.

    Whoever inherits says how far the encoder is read and what is given on of it.
    """

    clip: Any
    text: TextEncoder
    _one_a_token: Any
    """Whether one vector for each token of a prompt is given on, and nothing else."""
    _saved: Any = None
    """What autograd keeps while gradients pass."""
    _began = False
    """Whether a step has gone well."""
    _unread: Any
    """{a stack of the encoder's layers: how many at its end nothing is given on of}."""

    @property
    def encoder(self) -> torch.nn.Module:
        return self.text.module

    def encoder_layers(self) -> list[tuple[str, torch.nn.Module]]:
        return read_layers(self.encoder, self._unread)

    def batches(self, prompts: Sequence[str], tokens: int) -> list[list[int]]:
        return self.text.batches(prompts, tokens)

    def read(self, prompts: Sequence[str]) -> None:
        self.text.read(prompts)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return self.text.encode(prompts, lambda: self._one_a_token)

    def encode_with_embeddings(
        self, sentences: Sequence[str], vectors: torch.Tensor
    ) -> Conditioning:
        return self.text.with_embeddings(sentences, vectors, lambda: self._one_a_token)

    def vocabulary(self) -> Vocabulary:
        return self.text.vocabulary()

    def readings(self, words: str) -> list[Reading]:
        return readings(self.clip, words)

    def release_saved_tensors(self) -> None:
        """Let go of activations saved for backward passes that are over or never came.

        They hold the very graphs that hold them: without this a graph that is not gone through to
        its end, as with two gradients of one step, stays until the training is over.
        """
        self._began = True
        if self._saved is not None:
            self._saved.clear()

    def token_count(self, words: str) -> int:
        return max(len(one.tokens) for one in self.readings(words))
