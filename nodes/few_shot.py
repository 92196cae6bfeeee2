"""Few-Shot Encoder Unlearn: the node of unlearn/methods/few_shot.py (arXiv 2405.07288)."""

from __future__ import annotations

from ..unlearn.methods.registry import METHODS
from .method_node import MethodNode


class FewShotEncoderUnlearn(MethodNode):
    METHOD = METHODS["few_shot"]
    ORDER = (
        "model",
        "clip",
        "vae",
        "concept",
        "kind",
        "images",
        "shots",
        "size",
        "mode",
        "trainable",
        "rank",
        "max_steps",
        "epochs",
        "seed",
        "protect",
        "filename_prefix",
        "projection",
        "anchor",
        "harden",
        "harden_seconds",
        "batch",
        "verdict",
    )
