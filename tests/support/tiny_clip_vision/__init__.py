"""A host extension: a node that outputs a small CLIP image encoder with random weights.

It is the host's own class. Load CLIP Vision knows only the published sizes.
"""

import comfy.clip_vision
import torch

CONFIG = {
    "model_type": "clip_vision_model",
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 2,
    "layer_norm_eps": 1e-5,
    "patch_size": 14,
    "image_size": 28,
    "projection_dim": 16,
}


class TinyCLIPVision:
    RETURN_TYPES = ("CLIP_VISION",)
    FUNCTION = "build"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {}}

    def build(self) -> tuple:
        made = comfy.clip_vision.ClipVisionModel(CONFIG)
        generator = torch.Generator().manual_seed(0)
        weights = {
            name: 0.3 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in made.get_sd().items()
            if tensor.is_floating_point()
        }
        made.load_sd(weights)
        return (made,)


NODE_CLASS_MAPPINGS = {"TinyCLIPVision": TinyCLIPVision}
