"""IconCanvas's networks: the host's classes at a small size, so that its loader takes the weights.

Import this after `host.start()`, since the classes are ComfyUI's.
"""

import comfy.clip_model
import comfy.ops
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.taesd.taesd import Block, Decoder, Encoder

CONTEXT_DIM = 192
TEXT_CONFIG = {
    "num_hidden_layers": 4,
    "hidden_size": CONTEXT_DIM,
    "intermediate_size": 4 * CONTEXT_DIM,
    "num_attention_heads": 6,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
# Stable Diffusion 1.5's layout with a fifth of its width: four levels of two blocks. Only the
# second and third level have attention. At the first (16 x 16 places) it would double the time of
# a step.
UNET_CONFIG = {
    "image_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": (1, 2, 2, 1),
    "transformer_depth": [0, 0, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
    "context_dim": CONTEXT_DIM,
    "num_heads": -1,
    "num_head_channels": 32,
}


def _initialised(module: torch.nn.Module) -> torch.nn.Module:
    """Give the module torch's usual initial weights, since the host's layers do not initialise."""
    for layer in module.modules():
        for kind in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm):
            if isinstance(layer, kind):
                kind.reset_parameters(layer)
    return module.requires_grad_(True)


def autoencoder() -> tuple[torch.nn.Module, torch.nn.Module]:
    """TAESD's encoder and decoder. Images are in -1..1, latents are (N, 4, H/8, W/8)."""
    encoder, decoder = _initialised(Encoder()), _initialised(Decoder())
    for layer in (*encoder.modules(), *decoder.modules()):
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                torch.nn.init.zeros_(layer.bias)
    # Each residual branch starts at zero, so training starts with a shallow network. With thirty
    # layers from the start it is several times slower.
    for block in (*encoder, *decoder):
        if isinstance(block, Block):
            torch.nn.init.zeros_(block.conv[-1].weight)
    for last in (encoder[-1], decoder[-1]):
        torch.nn.init.normal_(last.weight, std=0.02)
    torch.nn.init.constant_(decoder[-1].bias, 0.8)  # icons are mostly white
    return encoder, decoder


def text_encoder() -> torch.nn.Module:
    """CLIP's text model. Its 49,408 token embeddings are random; most are never trained."""
    model = comfy.clip_model.CLIPTextModel_(
        TEXT_CONFIG, torch.float32, "cpu", comfy.ops.disable_weight_init
    )
    _initialised(model)
    for table in (model.embeddings.token_embedding, model.embeddings.position_embedding):
        torch.nn.init.normal_(table.weight, std=0.05)
    return model


def unet() -> torch.nn.Module:
    model = _initialised(
        UNetModel(**UNET_CONFIG, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    )
    # The last layer of every residual branch starts at zero, as in Stable Diffusion.
    for name, parameter in model.named_parameters():
        if ".out_layers.3." in name or ".proj_out." in name or name.startswith("out.2."):
            torch.nn.init.zeros_(parameter)
    return model
