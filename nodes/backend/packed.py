"""Quantised weights, which the host multiplies in packed form.

Some of these products have no backward pass. They are replaced by the product of the unpacked
weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from .aliasing import is_quantised
from .version import host_version

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@contextmanager
def unpacked_for_products(
    parts: Iterable[tuple[torch.nn.Module, torch.device]],
) -> Iterator[None]:
    """Let layers multiply by their unpacked weight if the packed product has no backward pass.

    parts: modules, each with the device that it computes on. The host gets new formats with every
    version, so one layer of each format is tried. Use it inside `aliased`, so that autograd can
    save the weights. Raises ValueError if a format has no backward pass even when unpacked.
    """
    found: dict[tuple, list[torch.nn.Module]] = {}
    devices: dict[tuple, torch.device] = {}
    for root, device in parts:
        for layer in filter(_is_packed, root.modules()):
            form = (device, *_format_of(layer))
            found.setdefault(form, []).append(layer)
            devices[form] = device
    unpacked: list[tuple[torch.nn.Module, bool]] = []
    try:
        for form, layers in found.items():
            if all(_has_backward(layers[0], dtype, devices[form]) for dtype in DTYPES):
                continue
            for layer in layers:
                unpacked.append((layer, layer._full_precision_mm))
                layer._full_precision_mm = True
                layer._forward = _unpacked_product  # covers the host's own method
            if not all(_has_backward(layers[0], dtype, devices[form]) for dtype in DTYPES):
                raise ValueError(
                    f"ComfyUI {host_version()} keeps weights of this model in the format "
                    f"{form[2]}, which cannot be trained; load the model in 16 bits."
                )
        yield
    finally:
        for layer, full in unpacked:
            layer._full_precision_mm = full
            del layer._forward


def _unpacked_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    whole = weight.dequantize().to(x.dtype) if is_quantised(weight) else weight
    return torch.nn.functional.linear(x, whole, bias)


def _is_packed(module: torch.nn.Module) -> bool:
    multiplies = hasattr(module, "_full_precision_mm") and hasattr(module, "in_features")
    # With a LoRA on it, or when it is trained, the host unpacks it anyway.
    plain = not getattr(module, "weight_function", None)
    return multiplies and plain and is_quantised(module.weight)


def _format_of(layer: torch.nn.Module) -> tuple:
    """What decides which kernel multiplies: the layer's class, the format and its options."""
    options = getattr(getattr(layer.weight, "_params", None), "__dict__", {})
    kinds = (bool, int, str, torch.dtype)
    return (
        type(layer).__qualname__,
        getattr(layer, "quant_format", None),
        layer._full_precision_mm,
        *((name, value) for name, value in sorted(options.items()) if isinstance(value, kinds)),
    )


@torch.enable_grad()  # asked, too, where no gradients are wanted
def _has_backward(layer: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a layer's input gets a gradient. True if the layer does not accept this dtype."""
    x = torch.zeros(1, 2, layer.in_features, dtype=dtype, device=device, requires_grad=True)
    try:
        # A bank of experts has no product of its own, but each of its experts has.
        is_bank = hasattr(layer, "expert_linear")
        product = layer.expert_linear(x[0], 0) if is_bank else layer(x)
    except RuntimeError:
        return True
    try:
        (gradient,) = torch.autograd.grad(product.float().sum(), x)
    except RuntimeError:  # NotImplementedError is one
        return False
    return gradient is not None
