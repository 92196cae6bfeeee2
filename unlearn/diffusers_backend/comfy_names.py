"""ComfyUI's names for the weights of a diffusers pipeline, so that one erasure file serves both.

ComfyUI names the denoiser's weights as Stable Diffusion's first checkpoints do, and the encoders'
as transformers' CLIPTextModel does. Nothing here is a table for one model: the names follow from
the nesting of the pipeline's modules, for any number of levels and blocks.

The order matters as much as the names. Low-rank deltas are drawn from one seed in the order of the
weights, so the order here is that in which ComfyUI's modules register them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

Named = Iterator[tuple[str, nn.Module]]

RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
TRANSFORMER_BLOCK = (
    *(f"attn1.{name}" for name in ATTENTION),
    *FEED_FORWARD,
    *(f"attn2.{name}" for name in ATTENTION),
    *("norm2", "norm1", "norm3"),
)
CLIP_LAYER = (
    "layer_norm1",
    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
    "layer_norm2",
    *("mlp.fc1", "mlp.fc2"),
)


def encoder_modules(encoder: nn.Module) -> Named:
    """(ComfyUI's name below "transformer.", module) for each module with weights of a CLIP text
    model.

    transformers 5 removed the level "text_model" from CLIPTextModel but not from
    CLIPTextModelWithProjection; ComfyUI has it in both. Raises ValueError for another encoder.
    """
    text = getattr(encoder, "text_model", encoder)

    def found() -> Named:
        yield from _present(
            text, "text_model.", ("embeddings.token_embedding", "embeddings.position_embedding")
        )
        for i, layer in enumerate(text.encoder.layers):
            yield from _present(layer, f"text_model.encoder.layers.{i}.", CLIP_LAYER)
        yield from _present(text, "text_model.", ("final_layer_norm",))
        yield from _present(encoder, "", ("text_projection",))

    if not hasattr(text, "encoder") or not hasattr(text.encoder, "layers"):
        raise ValueError(
            f"The text encoder is a {type(encoder).__name__}, but only CLIP text models are "
            "supported; name a model with one."
        )
    return _complete(found(), encoder, "text encoder")


def network_modules(unet: nn.Module) -> Named:
    """(ComfyUI's name below "diffusion_model.", module) for each module with weights of a UNet.

    unet: diffusers' UNet2DConditionModel or UNetMotionModel. Motion modules are left out: they are
    not part of the image model, and ComfyUI loads them from another file. Raises ValueError where
    the UNet has weights that Stable Diffusion's layout does not have.
    """
    return _complete(_network(unet), unet, "UNet")


def _network(unet: nn.Module) -> Named:
    for theirs, ours in (("time_embedding", "time_embed"), ("add_embedding", "label_emb.0")):
        if getattr(unet, theirs, None) is not None:
            yield f"{ours}.0", getattr(unet, theirs).linear_1
            yield f"{ours}.2", getattr(unet, theirs).linear_2
    yield "input_blocks.0.0", unet.conv_in
    number = 1
    for block in unet.down_blocks:
        for residual, attention in _steps(block):
            yield from _step(f"input_blocks.{number}", residual, attention)
            number += 1
        for sampler in getattr(block, "downsamplers", None) or ():
            yield f"input_blocks.{number}.0.op", sampler.conv
            number += 1
    middle = unet.mid_block
    yield from _residual("middle_block.0", middle.resnets[0])
    yield from _transformer("middle_block.1", middle.attentions[0])
    yield from _residual("middle_block.2", middle.resnets[1])
    number = 0
    for block in unet.up_blocks:
        steps = list(_steps(block))
        for i, (residual, attention) in enumerate(steps):
            yield from _step(f"output_blocks.{number}", residual, attention)
            if i == len(steps) - 1:
                for sampler in getattr(block, "upsamplers", None) or ():
                    # In the block of the last step, after its residual block and attention.
                    place = 1 if attention is None else 2
                    yield f"output_blocks.{number}.{place}.conv", sampler.conv
            number += 1
    yield "out.0", unet.conv_norm_out
    yield "out.2", unet.conv_out


def _steps(block: nn.Module) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """(residual block, attention or None) in the order of a level's forward pass."""
    attentions = getattr(block, "attentions", None)
    yield from zip(block.resnets, attentions or [None] * len(block.resnets))


def _step(name: str, residual: nn.Module, attention: nn.Module | None) -> Named:
    yield from _residual(f"{name}.0", residual)
    if attention is not None:
        yield from _transformer(f"{name}.1", attention)


def _residual(name: str, block: nn.Module) -> Named:
    for theirs, ours in RESIDUAL.items():
        if getattr(block, theirs, None) is not None:
            yield f"{name}.{ours}", getattr(block, theirs)


def _transformer(name: str, transformer: nn.Module) -> Named:
    yield from _present(transformer, f"{name}.", ("norm", "proj_in"))
    for i, block in enumerate(transformer.transformer_blocks):
        yield from _present(block, f"{name}.transformer_blocks.{i}.", TRANSFORMER_BLOCK)
    yield from _present(transformer, f"{name}.", ("proj_out",))


def _present(parent: nn.Module, prefix: str, names: Iterable[str]) -> Named:
    """The named modules that `parent` has."""
    for name in names:
        module: nn.Module | None = parent
        for part in name.split("."):
            module = getattr(module, part, None)
        if module is not None:
            yield prefix + name, module


def _complete(found: Named, root: nn.Module, kind: str) -> Named:
    """The same pairs. Raises ValueError if a weight of `root` is in none of them."""
    pairs = list(found)
    named = {id(parameter) for _, module in pairs for parameter in module.parameters(recurse=False)}
    missing = [
        name
        for name, parameter in root.named_parameters()
        if id(parameter) not in named and "motion_modules." not in name
    ]
    if missing:
        raise ValueError(
            f"This {kind} has weights that Stable Diffusion does not have, {missing[0]} first; if "
            "a LoRA is loaded on it, fuse or unload it."
        )
    return iter(pairs)


def view(pairs: Iterable[tuple[str, nn.Module]]) -> nn.Module:
    """A tree of empty modules that holds the given modules, not copies, under these names.

    So the same code finds weights by ComfyUI's names in both backends. A module whose children are
    all numbers becomes a ModuleList, so that a stack of layers is recognised.
    """
    nested: dict = {}
    for name, module in pairs:
        *path, last = name.split(".")
        level = nested
        for part in path:
            level = level.setdefault(part, {})
        level[last] = module
    return _tree(nested)


def _tree(nested: dict) -> nn.Module:
    node = nn.ModuleList() if all(name.isdigit() for name in nested) else nn.Module()
    for name, child in nested.items():
        node.add_module(name, _tree(child) if isinstance(child, dict) else child)
    return node
