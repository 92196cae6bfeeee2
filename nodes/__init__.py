"""The nodes: sockets, tooltips and host glue. The science is in unlearn/."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .erased import CombineErasedClip, LoadErasedClip, SaveErasedClip
from .few_shot import FewShotEncoderUnlearn


class ConceptUnlearn(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [FewShotEncoderUnlearn, LoadErasedClip, SaveErasedClip, CombineErasedClip]
