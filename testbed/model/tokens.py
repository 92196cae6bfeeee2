"""CLIP's tokenizer, from the host's files."""

import torch
from transformers import CLIPTokenizer

from ..host import process as host

_tokenizer: CLIPTokenizer | None = None


def tokenizer() -> CLIPTokenizer:
    global _tokenizer
    if _tokenizer is None:
        _tokenizer = CLIPTokenizer.from_pretrained(str(host.path() / "comfy" / "sd1_tokenizer"))
    return _tokenizer


def tokenize(captions: list[str]) -> torch.Tensor:
    """Token ids, (N, 77), padded with the end token as in Stable Diffusion."""
    return torch.tensor(
        tokenizer()(captions, padding="max_length", max_length=77, truncation=True)["input_ids"]
    )
