"""Closed-Form Encoder Unlearn: the node of unlearn/methods/closed_form.py."""

from __future__ import annotations

from ..unlearn.methods.registry import METHODS
from .method_node import MethodNode


class ClosedFormEncoderUnlearn(MethodNode):
    METHOD = METHODS["closed_form"]
    ORDER = (
        "clip",
        "model",
        "vae",
        "concept",
        "kind",
        "anchor",
        "strength",
        "protect",
        "seed",
        "size",
        "filename_prefix",
        "verdict",
    )
