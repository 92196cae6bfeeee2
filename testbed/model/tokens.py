"""CLIP's tokenizer, from the host's files."""

from collections.abc import Collection
from functools import lru_cache

import torch
from transformers import CLIPTokenizer

from ..host import process as host

LENGTH = 77  # tokens of a prompt, padding included


@lru_cache(1)
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(str(host.path() / "comfy" / "sd1_tokenizer"))


@lru_cache(1)
def _of_host():
    from comfy.sd1_clip import SD1Tokenizer

    return SD1Tokenizer()


def tokenize(captions: list[str]) -> torch.Tensor:
    """Token ids, (N, 77), padded with the end token as in Stable Diffusion.

    Parentheses and prompt weights are plain text here.
    """
    return torch.tensor(
        tokenizer()(captions, padding="max_length", max_length=LENGTH, truncation=True)["input_ids"]
    )


def weighted(captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and prompt weights, each (N, 77), as the host reads "(fox:1.2)".

    Of a caption with more tokens, the first 77 count.
    """
    ids = tokenize(captions)
    weights = torch.ones(ids.shape)
    for i, caption in enumerate(captions):
        if "(" in caption:
            first = _of_host().tokenize_with_weights(caption)["l"][0]
            ids[i] = torch.tensor([token for token, _ in first])
            weights[i] = torch.tensor([weight for _, weight in first])
    return ids, weights


def idle_words(taken: Collection[str]) -> list[str]:
    """Words of one token that mean nothing to IconCanvas: no word of `taken` is among them."""
    whole = (t[:-4] for t in tokenizer().get_vocab() if t.endswith("</w>"))
    words = {word for word in whole if word.isascii() and word.isalpha() and len(word) > 2}
    return sorted(words - {word.lower() for word in taken})
