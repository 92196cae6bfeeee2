"""Changes of newer host versions, applied to the host that the tests use."""

from __future__ import annotations

import inspect
import textwrap
from types import FunctionType

import pytest
import torch


def rewritten(function: FunctionType, *changes: tuple[str, str]) -> FunctionType:
    """The function with parts of its source replaced. Each part must occur."""
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in changes:
        assert old in source, f"{function.__qualname__} of this ComfyUI has no {old!r}"
        source = source.replace(old, new)
    found: dict = {}
    exec(compile(source, inspect.getfile(function), "exec"), function.__globals__, found)
    return found[function.__name__]


def write_into_their_input(patch: pytest.MonkeyPatch) -> None:
    """Since about 0.33: blocks of language models write their last sum into their input."""
    import comfy.text_encoders.llama as llama
    import comfy.text_encoders.qwen35 as qwen35

    first, last = "    residual = x\n    x = self.input_", "    x = residual + x\n\n    return"
    for block in (llama.TransformerBlock, llama.TransformerBlockGemma2):
        if "out=output" in inspect.getsource(block.forward):
            continue  # this host does it already
        changes = (
            (first, "    output = x\n" + first),
            (last, "    x = torch.add(residual, x, out=output)\n\n    return"),
        )
        patch.setattr(block, "forward", rewritten(block.forward, *changes))
    block = qwen35.Qwen35TransformerBlock
    if "out=output" not in inspect.getsource(block.forward):
        changes = (
            ("    if self.layer_type ==", "    output = x\n    if self.layer_type =="),
            ("x = x + h", "x = torch.add(x, h, out=output)"),
            (
                "x = x + self.mlp(self.post_attention_layernorm(x))",
                "x = torch.add(x, self.mlp(self.post_attention_layernorm(x)), out=output)",
            ),
        )
        patch.setattr(block, "forward", rewritten(block.forward, *changes))


def hand_norms_on(patch: pytest.MonkeyPatch) -> None:
    """Since about 0.4x, Qwen 3.5: feed-forward layers read the weight of the norm before them, and
    blocks write into their input."""
    import comfy.ldm.common_dit
    import comfy.text_encoders.llama as llama
    import comfy.text_encoders.qwen35 as qwen35

    plain = llama.MLP.forward

    def forward(self, x, norm=None):
        if norm is not None:
            weight = norm.weight + 1.0 if norm.add else norm.weight
            x = comfy.ldm.common_dit.rms_norm(x, weight, norm.eps)
        return plain(self, x)

    patch.setattr(llama.MLP, "forward", forward)
    block = qwen35.Qwen35TransformerBlock
    changed = rewritten(
        block.forward,
        ("    if self.layer_type ==", "    output = x\n    if self.layer_type =="),
        ("x = x + h", "x = torch.add(x, h, out=output)"),
        (
            "x = x + self.mlp(self.post_attention_layernorm(x))",
            "x = torch.add(x, self.mlp(x, norm=self.post_attention_layernorm), out=output)",
        ),
    )
    patch.setattr(block, "forward", changed)


def ask_for_attention(patch: pytest.MonkeyPatch, encoder: torch.nn.Module) -> list[torch.nn.Module]:
    """Make an encoder ask for int8 attention, as its file may. Returns the modules that say so."""
    import comfy.text_encoders.llama as llama

    class ComfyAttention(torch.nn.Module):
        """Like the host's class: the attention that a file asks for; None in a new one."""

        def __init__(self) -> None:
            super().__init__()
            self.function = None

    def int8_attention(*args, **kwargs) -> torch.Tensor:
        from comfy.ldm.modules.attention import attention_pytorch

        return attention_pytorch(*args, **kwargs).detach()  # it has no backward pass

    def preferred(function, own: ComfyAttention):
        return own.function or function

    asking = []
    for layer in encoder.modules():
        if isinstance(layer, llama.Attention):
            layer.comfy_attention = ComfyAttention()
            layer.comfy_attention.function = int8_attention
            asking.append(layer.comfy_attention)
    plain = llama.Attention.forward

    def forward(self, *args, optimized_attention=None, **kwargs):
        function = preferred(optimized_attention, self.comfy_attention)
        return plain(self, *args, optimized_attention=function, **kwargs)

    patch.setattr(llama.Attention, "forward", forward)
    return asking
