"""One layout of each family of models is tested by default, and all of them with --all."""

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
    """Parameters for a fixture: all names, those beyond one of each family marked as slow."""
    return [
        name if name in ONE_OF_EACH else pytest.param(name, marks=pytest.mark.slow)
        for name in names
    ]


def only(*default: str, of: Iterable[str]) -> list:
    """Parameters for a test that takes long: those few by default, all others marked as slow."""
    assert set(default) <= set(of)
    return [name if name in default else pytest.param(name, marks=pytest.mark.slow) for name in of]
