"""The motion words, which IconCanvas's text encoder learns together with the motion module.

The encoder was trained on captions of pictures, which do not mention motion. So the embedding of a
motion word was as random as that of any unknown word, and its effect on a prompt was smaller than
what an edit of the encoder does to all prompts. Stable Diffusion's encoder saw such words in its
training. Here only the embeddings of these five words are trained, as in textual inversion (Gal et
al., arXiv 2208.01618). A prompt without them is encoded exactly as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..model import tokens
from ..model.vocabulary import MOTIONS

# The embeddings get a higher learning rate than the module's matrices, since each of them has
# farther to go in a few hundred steps.
RATE = 10.0


def numbers() -> torch.Tensor:
    """The token ids of the motion words, (len(MOTIONS),). Each is one token."""
    ids = tokens.tokenizer()(MOTIONS, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids).squeeze(1)


class MotionWords(nn.Module):
    """The embeddings of the motion words, (len(MOTIONS), width); at first those of the encoder."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.register_buffer("numbers", numbers(), persistent=False)
        self.register_buffer("first", _table(text).weight.detach()[self.numbers].clone())
        self.moved = nn.Parameter(torch.zeros_like(self.first))

    @property
    def vectors(self) -> torch.Tensor:
        return self.first + RATE * self.moved

    @contextmanager
    def taught(self, text: nn.Module) -> Iterator[None]:
        """Let the encoder use these embeddings inside the `with` block."""

        def put(module: nn.Module, arguments: tuple, vectors: torch.Tensor) -> torch.Tensor:
            which = arguments[0][..., None] == self.numbers
            ours = (which.float() @ self.vectors).to(vectors.dtype)
            return torch.where(which.any(-1, keepdim=True), ours, vectors)

        def copied(module: nn.Module, arguments: tuple) -> tuple:
            return (arguments[0].clone(), *arguments[1:])

        handles = [_table(text).register_forward_hook(put)]
        # The host adds to a layer's input in place, but a norm needs its input for the backward
        # pass, so it gets a copy.
        norms = [module for module in text.modules() if isinstance(module, nn.LayerNorm)]
        handles += [norm.register_forward_pre_hook(copied) for norm in norms]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _table(text: nn.Module) -> nn.Embedding:
    return text.embeddings.token_embedding
