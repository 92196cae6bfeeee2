"""The motion words, taught to IconCanvas's text encoder together with the motion module.

The encoder was trained on captions of pictures, which say nothing of motion: a motion word's vector
is as random as that of any other word that it never met, and what it adds to a prompt is lost in
what an edit of the encoder does to all prompts. Stable Diffusion's encoder met such words in its
training. Here the vectors of these five words alone are learnt, as in textual inversion (Gal et
al., arXiv 2208.01618), so that a prompt without them is encoded as before, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..model import tokens
from ..model.vocabulary import MOTIONS

# A vector that is learnt in a few hundred steps has farther to go than the module's matrices, which
# are many and know most already.
RATE = 10.0


def numbers() -> torch.Tensor:
    """The motion words' numbers in the encoder's vocabulary, (len(MOTIONS),): a token each."""
    ids = tokens.tokenizer()(MOTIONS, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids).squeeze(1)


class MotionWords(nn.Module):
    """The motion words' vectors, (len(MOTIONS), width), which begin as the host's text encoder has
    them."""

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
        """The encoder with the words as they are learnt; afterwards it is what it was."""

        def put(module: nn.Module, arguments: tuple, vectors: torch.Tensor) -> torch.Tensor:
            which = arguments[0][..., None] == self.numbers
            ours = (which.float() @ self.vectors).to(vectors.dtype)
            return torch.where(which.any(-1, keepdim=True), ours, vectors)

        def copied(module: nn.Module, arguments: tuple) -> tuple:
            return (arguments[0].clone(), *arguments[1:])

        handles = [_table(text).register_forward_hook(put)]
        # The host adds to a layer's input in place, which the norms need again on the way back.
        norms = [module for module in text.modules() if isinstance(module, nn.LayerNorm)]
        handles += [norm.register_forward_pre_hook(copied) for norm in norms]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _table(text: nn.Module) -> nn.Embedding:
    return text.embeddings.token_embedding
