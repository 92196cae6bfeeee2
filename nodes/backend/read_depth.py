"""How far the denoiser reads a text encoder: which of its layers affect the conditioning."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable

import torch
from torch.utils._pytree import tree_map_only

from ...unlearn.core.trainable import stacks


def unread_layers(
    root: torch.nn.Module, given: Callable[[], Iterable[torch.Tensor]]
) -> dict[str, int]:
    """For each stack of layers under `root`: how many of its last layers do not matter.

    given: runs the encoder on a prompt and returns the tensors that the denoiser gets. A layer is
    read if a NaN arrives there when the layer's output is made NaN. All layers below one that is
    read are read too, since each feeds the next. The host's options are not used: clip skip, tapped
    layers and the pooled vector are handled in a different place for every encoder.
    """
    with torch.no_grad():
        return {
            path: len(stack)
            - bisect_left(range(len(stack)), True, key=lambda i: not _is_read(stack[i], given))
            for path, stack in stacks(root)
        }


def _is_read(layer: torch.nn.Module, given: Callable[[], Iterable[torch.Tensor]]) -> bool:
    hook = layer.register_forward_hook(lambda module, inputs, output: spoilt(output))
    try:
        return is_spoilt(given())
    finally:
        hook.remove()


def spoilt(values):
    """The same structure with every floating-point value NaN."""

    def nan(tensor: torch.Tensor) -> torch.Tensor:
        return torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else tensor

    return tree_map_only(torch.Tensor, nan, values)


def is_spoilt(tensors: Iterable[torch.Tensor]) -> bool:
    return any(tensor.isnan().any() for tensor in tensors)


# The layer through which a prompt enters a denoiser, by the host's names. Its input width is the
# conditioning's. UNets have the width in their configuration, as `context_dim`.
ENTRANCES = (
    "txt_in",  # Flux, Chroma, Qwen-Image
    "txt_in.input_embedder",  # HunyuanVideo
    "text_embedding.0",  # Wan
    "context_embedder",  # SD 3
    "cond_seq_linear",  # AuraFlow
    "clip_txt_mapper",  # Stable Cascade
    "caption_projection.linear_1",  # LTX
    "cap_embedder.1",  # Lumina 2, Z-Image
    "time_caption_embed.caption_embedder.1",  # OmniGen 2
    "patch_embed.text_proj",  # CogVideoX
    "t5_yproj",  # Mochi
    "text_embeddings.in_layer",  # Kandinsky 5
    "blocks.block0.blocks.1.block.attn.to_k.0",  # Cosmos
    "blocks.0.cross_attn.k_proj",  # Cosmos Predict 2
    "y_embedder.y_proj.fc1",  # PixArt
    "y_embedder.proj",  # PixelDiT
    "text_proj",  # Ernie
    "llm_cond_proj",  # Ideogram 4
    "condition_embedder.text_embedder.linear_1",  # JoyImage
)


def check_read(network: torch.nn.Module, clip) -> None:
    """Raises ValueError with one sentence if the denoiser cannot read this text encoder, or if the
    methods cannot handle its output."""
    if "audio_model" in network.model_config.unet_config:
        raise ValueError(
            "This MODEL makes sound: there are no pictures to unlearn with. Connect a MODEL that "
            "makes pictures or video."
        )
    output = check_conditioning(clip)
    wanted, found = _width(network), output["cond"].shape[-1]
    # LTX 2 transforms the vectors before they enter the denoiser.
    if wanted is not None and found != wanted and "unprocessed_ltxav_embeds" not in output:
        raise ValueError(
            f"This text encoder gives {found} numbers for each token and the model reads {wanted}: "
            "they do not belong together. Connect the MODEL and the CLIP of one checkpoint."
        )


def check_conditioning(clip) -> dict:
    """What CLIP Text Encode would output of an empty prompt. Raises ValueError with one sentence
    if the methods cannot handle it."""
    output = _encoded(clip, "")
    if output is None or output["cond"].ndim != 3:
        raise ValueError(
            "This text encoder makes no conditioning that a MODEL could read: ComfyUI uses it to "
            "write text. Connect the CLIP that belongs to the MODEL."
        )
    if more := handed_on_besides(output):
        raise ValueError(
            "This text encoder gives more than one vector for each token and one for the prompt "
            f"({', '.join(more)}), as those of HiDream and Anima do. The methods here would lose "
            "the rest. Use another model."
        )
    return output


def _encoded(clip, prompt: str) -> dict | None:
    """What CLIP Text Encode would output; None if the host cannot encode with this encoder."""
    try:
        tokens = clip.tokenize(prompt)
        return clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True)
    except KeyError as error:  # Gemma 3 with vision finds no tokens under its own name
        if not hasattr(clip.cond_stage_model, str(error.args[0])):
            raise
        return None
    except ValueError as error:  # Gemma 4 returns fewer values than encoding expects
        if "values to unpack" not in str(error):
            raise
        return None


def handed_on_besides(output: dict) -> list[str]:
    """The names of tensors in an encoder's output beside the token vectors, the pooled vector and
    the mask."""
    known = ("cond", "pooled_output", "attention_mask")
    return [name for name, value in output.items() if torch.is_tensor(value) and name not in known]


def _width(network: torch.nn.Module) -> int | None:
    """The width of the token vectors that a denoiser reads; None if it is not known."""
    modules = dict(network.diffusion_model.named_modules())
    entrances = (getattr(modules.get(name), "in_features", None) for name in ENTRANCES)
    configured = network.model_config.unet_config.get("context_dim")
    if fused := modules.get("txtfusion.projector"):
        # Krea 2 reads the vectors of several layers, all through the same weights.
        return fused.in_features * modules["txtmlp.1"].in_features
    return configured or next((width for width in entrances if width), None)
