"""DiffusionModel: all that a method may ask of a model, and TextModel, its text encoder alone.

A method written against these protocols runs inside ComfyUI and on a diffusers pipeline alike.
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


class TextModel(Protocol):
    """The text encoder of a model. All computation is on `device`."""

    @property
    def device(self) -> torch.device:
        """Where the model computes."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of the prompts; differentiable while the encoder is being edited."""

    def encoder_layers(self) -> list[tuple[str, torch.nn.Module]]:
        """The layers of the text encoder that the conditioning is made of, with the names under
        which their weights are. For hooks; their weights do not change."""

    def batches(self, prompts: Sequence[str], tokens: int) -> list[list[int]]:
        """The numbers of the prompts that `read` can take at once: `tokens` tokens at most, or one
        prompt. One that has no token at all is in no batch."""

    def read(self, prompts: Sequence[str]) -> None:
        """Run the text encoder on one of `batches`, for hooks on its layers: each has one row or
        equally many for each prompt. What comes out of it need not be the conditioning."""

    def vocabulary(self) -> Vocabulary:
        """The whole words that are one token of the text encoder, and these tokens' vectors."""

    def readings(self, words: str) -> list[Reading]:
        """How each text encoder reads the words inside a prompt, one Reading per encoder."""

    def token_count(self, words: str) -> int:
        """The number of tokens of the words inside a prompt; the largest of several encoders."""

    def encode_with_embeddings(
        self, sentences: Sequence[str], vectors: torch.Tensor
    ) -> Conditioning:
        """The conditioning of sentences with a slot each, `{}`, filled with token vectors.

        vectors: (N or 1, tokens, width), as wide as the vocabulary's. The result is differentiable
        in them. Raises ValueError where a sentence leaves no room for them.
        """

    def release_saved_tensors(self) -> None:
        """Free the tensors saved for finished backward passes. Whoever seeks with gradients calls
        it after each step; an Edit does it itself."""

    def fingerprints(self, keys: Iterable[str]) -> dict[str, str]:
        """Hashes of the original values of weights, by key, for an erasure's record."""


class DiffusionModel(TextModel, Protocol):
    """A text-to-image or text-to-video model: text encoder, denoiser and autoencoder.

    Timesteps are floats in 0..1000; 1000 is the noisiest. Images are (N, H, W, 3) in 0..1. Latents
    are what the denoiser works on.
    """

    @property
    def layers(self) -> torch.nn.Module:
        """The denoiser's modules, under the names of their weights. For reading only."""

    @property
    def told_guidance(self) -> bool:
        """Whether the denoiser is told the guidance as a number and draws by that alone, as Flux
        dev and HunyuanVideo 1 do. Classifier-free guidance on top oversaturates its pictures."""

    @property
    def has_autoencoder(self) -> bool:
        """Whether it can encode and decode images. ComfyUI may have no VAE connected."""

    def encode_images(
        self, images: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """The clean latents x0 of images, (N, ...).

        generator: one on the CPU, from which they are drawn where the autoencoder says a mean and
        a variance of them. None, and where it says no variance: the mean.
        """

    def decode_latents(self, x0: torch.Tensor) -> torch.Tensor:
        """The images of clean latents, (N, H, W, 3) in 0..1, on the CPU."""

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t: clean latents with noise added for timesteps t, (N,)."""

    def target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the denoiser should predict at x_t: noise, v or velocity, as the model was
        trained."""

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """The denoiser's prediction at x_t for timesteps t, (N,); float32, the shape of x_t."""

    def predict_x0(
        self, x_t: torch.Tensor, t: torch.Tensor, prediction: torch.Tensor
    ) -> torch.Tensor:
        """The clean latents x0 that a prediction at x_t implies."""

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Gaussian noise in the shape of `count` latents. generator: one on the CPU."""

    def sample(
        self,
        prompts: Sequence[str] | Conditioning,
        seed: int,
        steps: int = 20,
        guidance: float = 7.5,
    ) -> torch.Tensor:
        """Clean latents sampled from the prompts, one for each, each from its own noise."""

    def edit(
        self, part: Part, select: str, rank: int = 0, seed: int = 0
    ) -> AbstractContextManager[Edit]:
        """Make weights of a part trainable inside the block. select: which weights (trainable.py).
        rank: 0 for full deltas. Leaving the block restores the model; see `Edit`."""


Open = Callable[[], AbstractContextManager[DiffusionModel]]
"""Opens a model: `with open() as model`. Two such functions may share one set of weights, so only
one may be open at a time."""
