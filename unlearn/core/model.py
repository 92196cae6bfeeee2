"""What a method may ask of a model, and how an edit of its weights is held.

`DiffusionModel` is the whole of it: methods written against this protocol run inside ComfyUI and on
a diffusers pipeline alike. An `Edit` owns the trainable deltas and nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import torch

from .conditioning import Conditioning
from .edit import Edit
from .token_reading import Reading
from .token_slots import Vocabulary

Part = Literal["encoder", "denoiser"]


class DiffusionModel(Protocol):
    """A text-to-image (or video) model: text encoder, network and autoencoder.

    Timesteps are floats in 0..1000, 1000 the noisiest. Images are (N, H, W, 3) in 0..1; latents are
    what the network works on. All methods run on `device`.
    """

    device: torch.device

    @property
    def layers(self) -> torch.nn.Module:
        """The network's modules under the names of their weights: to look at, not to change."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of the prompts; differentiable while the encoder is being edited."""

    def vocabulary(self) -> Vocabulary:
        """The whole words that the text encoder has a token for, and these tokens' vectors."""

    def readings(self, words: str) -> list[Reading]:
        """What each of the text encoders reads of the words within a prompt."""

    def token_count(self, words: str) -> int:
        """How many tokens the words are within a prompt; of several text encoders, the most."""

    def encode_with_embeddings(
        self, sentences: Sequence[str], vectors: torch.Tensor
    ) -> Conditioning:
        """Conditioning of sentences with a gap each, `{}`, filled with token vectors.

        vectors: (N or 1, tokens, width), as wide as the vocabulary's; differentiable in them.
        Raises ValueError where a sentence is too long for them.
        """

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Clean latents x0 of images."""

    def decode_latents(self, x0: torch.Tensor) -> torch.Tensor:
        """Pictures of clean latents, on the CPU."""

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t: clean latents with noise mixed in for timesteps t (N,)."""

    def target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the network should predict at x_t in its own parameterisation: eps, v or
        velocity."""

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """The network's prediction, in float32."""

    def predict_x0(
        self, x_t: torch.Tensor, t: torch.Tensor, prediction: torch.Tensor
    ) -> torch.Tensor:
        """x0 that a prediction at x_t means."""

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Gaussian noise in the shape of `count` latents; generator: on the CPU."""

    def sample(
        self,
        prompts: Sequence[str] | Conditioning,
        seed: int,
        steps: int = 20,
        guidance: float = 7.5,
    ) -> torch.Tensor:
        """Clean latents drawn from the prompts, one each, the noise of each its own."""

    def release_saved_tensors(self) -> None:
        """Let go of what was kept for backward passes that are over, between two steps of an attack
        (an Edit does it by itself)."""

    def edit(
        self, part: Part, select: str, rank: int = 0, seed: int = 0
    ) -> AbstractContextManager[Edit]:
        """Make weights of a part trainable for the duration; see `Edit`."""

    def fingerprints(self, keys: Iterable[str]) -> dict[str, str]:
        """Fingerprints of the original values of weights, for provenance."""


Open = Callable[[], AbstractContextManager[DiffusionModel]]
"""A way into a model: `with open() as model`. Two of one host share its weights, so that only one
can be open at a time."""
