"""The nodes: sockets, tooltips and host glue. The science is in unlearn/."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

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
from .probe import ProbeErasure


class ConceptUnlearn(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            IdentifyConcept,
            FewShotEncoderUnlearn,
            KeyStepUNetUnlearn,
            DomainCorrectionUNetUnlearn,
            LoadErasedClip,
            LoadErasedModel,
            SaveErasedClip,
            SaveErasedModel,
            CombineErasedClip,
            CompareErasure,
            ProbeErasure,
            CopyrightMetric,
        ]
