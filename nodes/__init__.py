"""The nodes: sockets, tooltips and host glue. The science is in unlearn/."""

from __future__ import annotations

from functools import partial

from comfy_api.latest import ComfyExtension, io
from server import PromptServer

from ..unlearn.methods.registry import METHODS
from .closed_form import ClosedFormEncoderUnlearn
from .compare import CompareErasure
from .cpdm import CopyrightMetric
from .domain_correction import DomainCorrectionUNetUnlearn
from .erasures import (
    CombineErasedClip,
    LoadErasedClip,
    LoadErasedModel,
    SaveErasedClip,
    SaveErasedModel,
)
from .few_shot import FewShotEncoderUnlearn
from .identify import IdentifyConcept
from .key_step import KeyStepUNetUnlearn
from .load_erased import LoadErased
from .method_node import node_of
from .probe import ProbeErasure
from .show import ShowErasure
from .switched_off import needed_inputs, put_right, titles

TRAINING = [
    FewShotEncoderUnlearn,
    KeyStepUNetUnlearn,
    DomainCorrectionUNetUnlearn,
    ClosedFormEncoderUnlearn,
]
_with_a_file = [node.METHOD for node in TRAINING]
TRAINING += [node_of(method) for method in METHODS.values() if method not in _with_a_file]


class ConceptUnlearn(ComfyExtension):
    async def on_load(self) -> None:
        own = titles(await self.get_node_list())
        handler = partial(put_right, own=own, required=needed_inputs)
        PromptServer.instance.add_on_prompt_handler(handler)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            IdentifyConcept,
            *TRAINING,
            LoadErasedClip,
            LoadErasedModel,
            LoadErased,
            SaveErasedClip,
            SaveErasedModel,
            CombineErasedClip,
            ShowErasure,
            CompareErasure,
            ProbeErasure,
            CopyrightMetric,
        ]
