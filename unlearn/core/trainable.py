"""Which weights a method trains, of a text encoder or of a denoising network.

In an encoder the rule is the paper's (arXiv 2405.07288, section 3): feed-forward layers hold the
knowledge, and the last layer's attention decides how it is read. It is applied to any encoder that
is a stack of layers. In a network it is where the prompt is read: its cross-attention, or, where
words and picture attend to each other at once (SD 3, Flux), that attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import torch

Trainable = Literal["mlp-final-attn", "mlp", "attention", "all"]
NetworkTrainable = Literal["cross-attention", "cross-attention-kv", "outside-cross-attention"]
Baseline = Literal["all", "convolution"]
"""What CPDM's two baselines change."""

CROSS = {"attn2", "cross_attn", "crossattn", "cross_attention"}
KEYS_AND_VALUES = {
    *("to_k", "to_v", "k", "v", "k_proj", "v_proj", "to_key", "to_value"),
    *("kv", "kv_proj", "kv_linear", "to_kv"),
}


def encoder_weights(
    root: torch.nn.Module, trainable: Trainable, unread: int | Mapping[str, int] = 0
) -> dict[str, torch.Tensor]:
    """Weights and biases to train, by their names under `root`.

    "mlp-final-attn": feed-forward layers everywhere, and the attention of the last layer that is
    read. "mlp" and "attention": those alone, in every layer. "all": every layer with weights, norms
    and embeddings too (what the paper's first released code did). The last `unread` layers of each
    stack (clip skip -2 leaves one unread) change nothing in the conditioning and are left out;
    where the stacks differ in it, `unread` says it by their names (see `stacks`).

    Raises ValueError when `trainable` is not one of these or the encoder has no such weights.
    """
    if trainable not in get_args(Trainable):
        raise ValueError(
            f"trainable must be one of {', '.join(get_args(Trainable))}, not {trainable!r}."
        )
    names: list[str] = []
    found = dict(stacks(root))
    read = {
        path: len(stack) - (unread[path] if isinstance(unread, Mapping) else unread)
        for path, stack in found.items()
    }
    unread_prefixes = tuple(
        f"{path}.{i}." for path, stack in found.items() for i in range(read[path], len(stack))
    )
    if trainable == "all":
        names = [name for name, _ in root.named_modules()]
    for path, stack in found.items():
        last = read[path] - 1
        for i, layer in enumerate(stack):
            for name, module in layer.named_modules():
                # A linear layer of any make: quantised ones are not torch's class.
                if trainable == "all" or not hasattr(module, "in_features"):
                    continue
                attention = "attn" in name.lower() or "attention" in name.lower()
                wanted = {
                    "mlp-final-attn": not attention or i == last,
                    "mlp": not attention,
                    "attention": attention,
                }[trainable]
                if wanted:
                    names.append(f"{path}.{i}.{name}")
    weights = {}
    for name in names:
        if not (name + ".").startswith(unread_prefixes or ("\0",)):
            module = root.get_submodule(name)
            _check_experts(module)
            for kind in ("weight", "bias"):
                tensor = getattr(module, kind, None)
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                    weights[f"{name}.{kind}"] = tensor
    if weights:
        return weights
    if found and not any(read.values()):
        raise ValueError(
            "This model reads nothing of what the text encoder makes of a prompt; connect the "
            "MODEL and the CLIP of one checkpoint."
        )
    if any(hasattr(root.get_submodule(name), "weight") for name in names):
        raise ValueError(
            "This text encoder's weights are packed into whole numbers, as from a GGUF file, and "
            "cannot be trained; load it from a safetensors file."
        )
    raise ValueError(f"This text encoder has no weights of the kind {trainable!r} to train.")


def _check_experts(module: torch.nn.Module) -> None:
    """Raises ValueError where a layer is a bank of experts in few bits: ComfyUI reads those of
    GPT-OSS one expert at a time, and can put no LoRA on them either."""
    weight = getattr(module, "weight", None)
    packed = isinstance(weight, torch.Tensor) and hasattr(weight, "__tensor_flatten__")
    # Some forms lie there as one matrix, the experts' rows below one another.
    if packed and (weight.ndim == 3 or hasattr(module, "num_experts")):
        raise ValueError(
            "This text encoder keeps all experts of a layer together in few bits, where ComfyUI "
            "cannot change them; load it in 16 bits, or train its attention alone."
        )


def stacks(root: torch.nn.Module) -> Iterator[tuple[str, torch.nn.ModuleList]]:
    """(name, ModuleList) of each stack of layers: the outermost lists of modules with weights."""
    found: list[str] = []
    for name, module in root.named_modules():
        inside = any(name.startswith(outer + ".") for outer in found)
        if isinstance(module, torch.nn.ModuleList) and len(module) > 1 and not inside:
            found.append(name)
            yield name, module


def network_weights(
    root: torch.nn.Module, trainable: NetworkTrainable | Baseline
) -> dict[str, torch.Tensor]:
    """Weights and biases of a denoising network to train, by their names under `root`.

    "cross-attention": every linear layer of it. "cross-attention-kv": those alone that make keys
    and values of the prompt. "outside-cross-attention": every linear and convolution layer that is
    not of it. "all": both. "convolution": every convolution.

    Raises ValueError when `trainable` is not one of these, the network has no cross-attention,
    "cross-attention-kv" is asked of one whose attention has one projection for words and picture,
    or "convolution" of one that has none.
    """
    if trainable not in (*get_args(NetworkTrainable), *get_args(Baseline)):
        raise ValueError(
            f"trainable must be one of {', '.join(get_args(NetworkTrainable))}, not {trainable!r}."
        )
    layers = {name: module for name, module in root.named_modules() if _multiplies(module)}
    cross = {name for name in layers if CROSS & set(name.lower().split("."))}
    keys_and_values = {name for name in cross if name.rpartition(".")[2] in KEYS_AND_VALUES}
    if not keys_and_values:
        # Joint attention: words and picture in one sequence, the words' own projections beside.
        cross = {name for name in layers if _is_attention(name)}
        keys_and_values = {name for name in cross if _is_of_words(name)}
    chosen = {
        "cross-attention": cross,
        "cross-attention-kv": keys_and_values,
        "outside-cross-attention": layers.keys() - cross,
        "all": layers.keys(),
        "convolution": {name for name, module in layers.items() if _convolves(module)},
    }[trainable]
    if cross and not chosen and trainable == "cross-attention-kv":
        raise ValueError(
            "This model has no cross-attention-kv: in its attention words and picture go through "
            "the same weights, so none make the keys and values of the words alone. Train its "
            "cross-attention instead, which is all of that attention; Key-Step UNet Unlearn does."
        )
    if cross and not chosen and trainable == "convolution":
        raise ValueError(
            "This model has no convolutions whose filters could be cut out; use a method that "
            "trains its attention."
        )
    if not cross or not chosen:
        raise ValueError(
            "This model has no cross-attention, so no prompt reaches it and there is nothing to "
            "unlearn in it; connect a text-to-image or text-to-video MODEL."
        )
    return {
        f"{name}.{kind}": tensor
        for name, module in layers.items()
        if name in chosen
        for kind in ("weight", "bias")
        if isinstance(tensor := getattr(module, kind, None), torch.Tensor)
        and tensor.is_floating_point()
    }


def reads_prompt(name: str, weight: torch.Tensor, width: int) -> bool:
    """Whether a weight, by its name under the network's root, makes keys or values of the
    conditioning (`width` wide) itself."""
    *path, layer, kind = name.lower().split(".")
    attention = bool(CROSS & set(path)) and layer in KEYS_AND_VALUES and kind == "weight"
    return attention and weight.shape[1:] == (width,)


def _multiplies(module: torch.nn.Module) -> bool:
    """A linear or convolution layer of any make."""
    return hasattr(module, "in_features") or hasattr(module, "kernel_size")


def _convolves(module: torch.nn.Module) -> bool:
    return hasattr(module, "kernel_size") and getattr(module, "weight", None) is not None


def _is_attention(name: str) -> bool:
    return any("attn" in part or "attention" in part for part in name.lower().split("."))


def _is_of_words(name: str) -> bool:
    """Of a joint attention: the projections whose input is the prompt."""
    parts = name.lower().split(".")
    words = any(p.startswith(("txt", "context", "add_", "w1")) for p in parts)
    words = words or parts[-1].endswith(("_t", "_y"))
    return words and not any(p.startswith(("proj", "out", "to_out", "w1o")) for p in parts)
