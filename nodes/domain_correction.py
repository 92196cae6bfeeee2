"""Domain-Correction UNet Unlearn: the node of DoCo, unlearn/methods/domain_correction.py (arXiv
2405.15304)."""

from __future__ import annotations

from ..unlearn.methods.registry import METHODS
from .method_node import MethodNode


class DomainCorrectionUNetUnlearn(MethodNode):
    METHOD = METHODS["domain_correction"]
    ORDER = (
        "model",
        "clip",
        "vae",
        "concept",
        "kind",
        "anchor",
        "pictures",
        "size",
        "mode",
        "iterations",
        "rank",
        "seed",
        "protect",
        "filename_prefix",
        "projection",
        "verdict",
    )
