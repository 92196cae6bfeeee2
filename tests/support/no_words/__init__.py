"""A host extension: a model in Stable Diffusion's layout at IconCanvas's size, but for all that
attends to a prompt. The host takes a file for one of its models only where an extension says so.
"""

import comfy.supported_models


class NoWords(comfy.supported_models.SD15):
    unet_config = {  # noqa: RUF012
        **comfy.supported_models.SD15.unet_config,
        "context_dim": None,
        "model_channels": 64,
    }
    unet_extra_config = {"num_heads": -1, "num_head_channels": 32}  # noqa: RUF012


comfy.supported_models.models.append(NoWords)
NODE_CLASS_MAPPINGS = {}
