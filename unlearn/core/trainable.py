"""Which weights a method trains, in a text encoder or in a denoiser.

In an encoder the rule is that of arXiv 2405.07288, section 3: the feed-forward layers hold the
knowledge, and the last layer's attention decides how it is read. It is applied to any encoder that
is a stack of layers. In a denoiser it is the layers that read the prompt: its cross-attention, or,
where text and image share one attention (SD 3, Flux), that attention, also where one layer computes
it beside something else (`network_rows`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import torch

Trainable = Literal["mlp-final-attn", "mlp", "attention", "all"]
NetworkTrainable = Literal["cross-attention", "cross-attention-kv", "outside-cross-attention"]
Baseline = Literal["all", "convolution"]
"""The weights that CPDM's two baselines change."""

CROSS = {"attn2", "cross_attn", "crossattn", "cross_attention"}
KEYS_AND_VALUES = {
    *("to_k", "to_v", "k", "v", "k_proj", "v_proj", "to_key", "to_value"),
    *("kv", "kv_proj", "kv_linear", "to_kv"),
}


def encoder_weights(
    root: torch.nn.Module, trainable: str, unread: int | Mapping[str, int] = 0
) -> dict[str, torch.Tensor]:
    """The weights and biases of an encoder to train, by their names under `root`.

    trainable: one of `Trainable`.
    "mlp-final-attn": the feed-forward layers everywhere, and the attention of the last layer that
    is read. "mlp", "attention": only those, in every layer. "all": every layer with weights, with
    norms and embeddings (as in the paper's first released code).

    unread: how many last layers of each stack do not reach the conditioning (clip skip -2 leaves
    one); they are left out. Where the stacks differ, it is a mapping by their names (see `stacks`).

    Raises ValueError when `trainable` is none of these or the encoder has no such weights.
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
                # Not isinstance: quantised linear layers have classes of their own.
                if trainable == "all" or not hasattr(module, "in_features"):
                    continue
                attention = "attn" in name.lower() or "attention" in name.lower()
                is_chosen = {
                    "mlp-final-attn": not attention or i == last,
                    "mlp": not attention,
                    "attention": attention,
                }[trainable]
                if is_chosen:
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
            "This model reads no layer of the text encoder; connect the MODEL and the CLIP of one "
            "checkpoint."
        )
    if any(hasattr(root.get_submodule(name), "weight") for name in names):
        raise ValueError(
            "This text encoder's weights are packed integers, as from a GGUF file, and cannot be "
            "trained; load it from a safetensors file."
        )
    raise ValueError(
        f"This text encoder has no weights of the kind {trainable!r} to train; choose another kind."
    )


def _check_experts(module: torch.nn.Module) -> None:
    """Raises ValueError for a quantised layer that holds all experts in one tensor: ComfyUI reads
    those of GPT-OSS one expert at a time, and cannot patch them."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or not hasattr(weight, "__tensor_flatten__"):
        return
    # Some formats store it as one matrix, with the experts' rows below one another.
    if weight.ndim == 3 or hasattr(module, "num_experts"):
        raise ValueError(
            "This text encoder keeps all experts of a layer in one quantised tensor, which ComfyUI "
            "cannot change; load it in 16 bits, or train its attention alone."
        )


def stacks(root: torch.nn.Module) -> Iterator[tuple[str, torch.nn.ModuleList]]:
    """(name, ModuleList) of each stack of layers: the outermost lists of modules with weights."""
    found: list[str] = []
    for name, module in root.named_modules():
        inside = any(name.startswith(outer + ".") for outer in found)
        if isinstance(module, torch.nn.ModuleList) and len(module) > 1 and not inside:
            found.append(name)
            yield name, module


def read_layers(
    root: torch.nn.Module, unread: Mapping[str, int]
) -> list[tuple[str, torch.nn.Module]]:
    """(name, layer) of each layer of an encoder's stacks but the last ones that are not read."""
    return [
        (f"{path}.{i}", layer)
        for path, stack in stacks(root)
        for i, layer in enumerate(stack[: len(stack) - unread[path]])
    ]


def feed_forward_end(layer: torch.nn.Module) -> str | None:
    """The name of the linear layer that ends the feed-forward part of an encoder's layer: CLIP's
    fc2, T5's wo, a language model's down_proj. None: it has none, but a bank of experts."""
    found = None
    for name, module in layer.named_modules():
        narrows = getattr(module, "out_features", 1) < getattr(module, "in_features", 0)
        if narrows and not _is_attention(name) and not hasattr(module, "num_experts"):
            found = name
    return found


def attention_end(layer: torch.nn.Module) -> str | None:
    """The name of the linear layer that ends the attention of an encoder's layer, the last one in
    it. None: it has none."""
    found = [name for name, module in layer.named_modules() if hasattr(module, "in_features")]
    return next((name for name in reversed(found) if _is_attention(name)), None)


def network_weights(root: torch.nn.Module, trainable: str) -> dict[str, torch.Tensor]:
    """The weights and biases of a denoiser to train, by their names under `root`.

    trainable: one of `NetworkTrainable` or `Baseline`.
    "cross-attention": its linear layers. "cross-attention-kv": only those that make keys and values
    of the prompt. "outside-cross-attention": all other linear layers and the convolutions. "all":
    both. "convolution": every convolution. A layer that computes attention and feed-forward at once
    is in both of the first and the third; `network_rows` says which part of it.

    Raises ValueError when `trainable` is none of these, when the denoiser has no cross-attention,
    for "cross-attention-kv" when text and image share one projection, and for "convolution" when it
    has none.
    """
    if trainable not in (*get_args(NetworkTrainable), *get_args(Baseline)):
        raise ValueError(
            f"trainable must be one of {', '.join(get_args(NetworkTrainable))}, not {trainable!r}."
        )
    layers = {name: module for name, module in root.named_modules() if _multiplies(module)}
    cross, keys_and_values, fused = _attention(layers)
    chosen = {
        "cross-attention": cross | fused.keys(),
        "cross-attention-kv": keys_and_values,
        "outside-cross-attention": layers.keys() - cross,
        "all": layers.keys(),
        "convolution": {name for name, module in layers.items() if _convolves(module)},
    }[trainable]
    if cross and not chosen and trainable == "cross-attention-kv":
        raise ValueError(
            "This model has no cross-attention-kv: in its attention, text and image share the same "
            "weights, so none make the keys and values of the text alone. Train its "
            "cross-attention instead, as Key-Step UNet Unlearn does."
        )
    if cross and not chosen and trainable == "convolution":
        raise ValueError(
            "This model has no convolutions to prune; use a method that trains its attention."
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


def network_rows(root: torch.nn.Module, trainable: str) -> dict[str, slice]:
    """Which rows are trained of those weights of `network_weights` that are trained in part.

    In the single-stream blocks of Flux and its kin, one layer computes the queries, keys and values
    and, in its last rows, the feed-forward part. In diffusers these are layers of their own, and
    what trains "attention" there (as KSCU's code does on Flux) trains the first rows here.
    """
    layers = {name: module for name, module in root.named_modules() if _multiplies(module)}
    rows: dict[str, slice] = {}
    for name, end in _attention(layers)[2].items():
        part = {
            "cross-attention": slice(0, end),
            "outside-cross-attention": slice(end, _sides(layers[name])[1]),
        }.get(trainable)
        if part is not None:
            rows |= {f"{name}.{kind}": part for kind in ("weight", "bias")}
    return rows


def _attention(
    layers: Mapping[str, torch.nn.Module],
) -> tuple[set[str], set[str], dict[str, int]]:
    """(those layers through which the prompt is read, those of them that make its keys and values,
    the rows of layers that do it in part): the cross-attention or, where there is none, the
    attention that text and image share."""
    cross = {name for name in layers if CROSS & set(name.lower().split("."))}
    keys_and_values = {name for name in cross if name.rpartition(".")[2] in KEYS_AND_VALUES}
    if keys_and_values:
        return cross, keys_and_values, {}
    # Joint attention: text and image in one sequence, mostly with a projection for each.
    cross = {name for name in layers if _is_attention(name)} | _bare_attention(layers)
    return cross, {name for name in cross if _is_of_text(name)}, _fused(layers)


def _fused(layers: Mapping[str, torch.nn.Module]) -> dict[str, int]:
    """The layers that compute queries, keys, values and feed-forward at once, and how many of their
    rows are the first three's: linear1 of Flux's single-stream blocks, whose linear2 reads what the
    attention and the feed-forward part come to, side by side."""
    found = {}
    for name, first in layers.items():
        path, _, last = name.rpartition(".")
        second = layers.get(f"{path}.linear2")
        if last != "linear1" or second is None:
            continue
        (width, given), (read, out) = _sides(first), _sides(second)
        # A plain feed-forward part has a second layer that reads all that the first one gives.
        if out == width < read < given and given > 3 * width:
            found[name] = 3 * width
    return found


def _sides(layer: torch.nn.Module) -> tuple[int, int]:
    """How many numbers a linear layer takes and gives."""
    return getattr(layer, "in_features", 0), getattr(layer, "out_features", 0)


def _bare_attention(layers: Mapping[str, torch.nn.Module]) -> set[str]:
    """Queries, keys and values that stand in a block beside its attention's output, with no name of
    an attention around them: CogVideoX's q, k, v and attn_out."""
    blocks = {name.rpartition(".")[0] for name in layers if name.endswith(".attn_out")}
    return {f"{block}.{one}" for block in blocks for one in "qkv" if f"{block}.{one}" in layers}


def reads_prompt(name: str, weight: torch.Tensor, width: int) -> bool:
    """Whether a weight makes keys or values directly from the conditioning. name: under the
    denoiser's root. width: that of the conditioning."""
    *path, layer, kind = name.lower().split(".")
    attention = bool(CROSS & set(path)) and layer in KEYS_AND_VALUES and kind == "weight"
    return attention and weight.shape[1:] == (width,)


def _multiplies(module: torch.nn.Module) -> bool:
    """Whether it is a linear or convolution layer, quantised ones included."""
    return hasattr(module, "in_features") or hasattr(module, "kernel_size")


def _convolves(module: torch.nn.Module) -> bool:
    return hasattr(module, "kernel_size") and getattr(module, "weight", None) is not None


def _is_attention(name: str) -> bool:
    return any("attn" in part or "attention" in part for part in name.lower().split("."))


def _is_of_text(name: str) -> bool:
    """Whether a layer of a joint attention projects the text's tokens on their way in."""
    parts = name.lower().split(".")
    text = any(p.startswith(("txt", "context", "add_", "w1")) for p in parts)
    text = text or parts[-1].endswith(("_t", "_y"))
    return text and not any(p.startswith(("proj", "out", "to_out", "w1o")) for p in parts)
