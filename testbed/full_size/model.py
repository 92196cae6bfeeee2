"""Stable Diffusion 1.5 at full size with random weights, built from the host's classes."""

from __future__ import annotations


def random_model(dtype=None):
    """(MODEL, CLIP) in SD 1.5's layout, as the host's loader builds them, with random weights."""
    import comfy.model_management as management
    import comfy.sd
    import comfy.supported_models
    import torch

    dtype = dtype or (torch.float16 if torch.cuda.is_available() else torch.bfloat16)
    layout = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 320,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "legacy": False,
        "context_dim": 768,
        "use_temporal_attention": False,
        "adm_in_channels": None,
    }
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():  # as the host's loader nodes run
        config = comfy.supported_models.SD15(layout)
        config.unet_config["dtype"] = dtype
        config.set_inference_dtype(dtype, None)
        model = config.get_model({}, "", device="cpu")
        patcher_class = comfy.model_patcher.CoreModelPatcher
        patcher = patcher_class(
            model, management.get_torch_device(), management.unet_offload_device()
        )
        clip = comfy.sd.CLIP(config.clip_target(), parameters=123_060_480)
        for root in (model.diffusion_model, clip.cond_stage_model):
            for module in root.modules():
                for name, parameter in module._parameters.items():
                    if parameter is None:
                        continue
                    if parameter.ndim > 1:
                        scale = 0.5 * parameter[0].numel() ** -0.5
                        values = torch.empty(parameter.shape).normal_(0, scale, generator=generator)
                        parameter.copy_(values)
                    else:
                        norm = isinstance(module, (torch.nn.LayerNorm, torch.nn.GroupNorm))
                        parameter.fill_(1.0 if norm and name == "weight" else 0.0)
    return patcher, clip
