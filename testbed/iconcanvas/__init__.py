"""A host extension: lets ComfyUI's stock checkpoint loader open IconCanvas.

It registers a small variant of Stable Diffusion 1.5. The pack itself registers no model. `dev.py`
links this folder into `custom_nodes`, for the demo, the tests and the benchmark only.
"""

from typing import ClassVar

import comfy.sd1_clip
import comfy.supported_models
from comfy.supported_models_base import ClipTarget

TEXT_CONFIG = {
    "num_hidden_layers": 4,
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_attention_heads": 6,
}


class IconCanvasClip(comfy.sd1_clip.SD1ClipModel):
    """CLIP-L's class and tokenizer in IconCanvas's size."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        model_options = {**(model_options or {}), "clip_l_model_config": TEXT_CONFIG}
        super().__init__(device=device, dtype=dtype, model_options=model_options)


class IconCanvas(comfy.supported_models.SD15):
    """Stable Diffusion 1.5's layout with 64 model channels and a context of 192."""

    unet_config: ClassVar = {
        **comfy.supported_models.SD15.unet_config,
        "context_dim": 192,
        "model_channels": 64,
    }
    unet_extra_config: ClassVar = {"num_heads": -1, "num_head_channels": 32}

    def clip_target(self, state_dict=None):
        return ClipTarget(comfy.sd1_clip.SD1Tokenizer, IconCanvasClip)


comfy.supported_models.models.append(IconCanvas)

NODE_CLASS_MAPPINGS = {}  # required by the host; this extension has no nodes
