"""Which layouts are tested by default: one of each family of models. --all tests all of them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

ONE_OF_EACH = {
    # Text encoders
    "CLIP-L, SD 1.5",
    "CLIP-L and CLIP-G, SDXL",
    "OpenCLIP-H, SD 2",
    "T5, LTX",
    "UMT5, Wan",
    "Llama and CLIP-L, HunyuanVideo",
    "Qwen 2.5 VL, Qwen-Image",
    "Qwen 3, Z-Image",
    "Gemma 3, Lumina 2",
    "Jina CLIP",
    "Pile T5, AuraFlow",
    "Qwen 3.5",
    "GPT-OSS, Lens",
    # Networks
    "sd15",
    "flux",
    "wan",
}


def family_first(names: Iterable[str]) -> list:
    """Parameters for a fixture: all names. Those not in ONE_OF_EACH are marked as slow."""
    return [
        name if name in ONE_OF_EACH else pytest.param(name, marks=pytest.mark.slow)
        for name in names
    ]


def only(*default: str, of: Iterable[str]) -> list:
    """Parameters for an expensive test: all names. Those not in `default` are marked as slow."""
    assert set(default) <= set(of)
    return [name if name in default else pytest.param(name, marks=pytest.mark.slow) for name in of]
