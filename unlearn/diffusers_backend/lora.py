"""Exports an erasure as a LoRA that diffusers and peft read.

A low-rank erasure is a LoRA already. A full one is approximated by its largest singular values.
Deltas of biases become biases of the second matrix, which peft supports since 0.14.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ..core.erasure import NETWORK, Erasure, ErasureError, full
from .model import DiffusersModel

KEPT = 0.9999  # the share of the squared norm that is kept if the user gives no rank
PARTS = {"clip_l": "text_encoder", "clip_h": "text_encoder", "clip_g": "text_encoder_2"}


@dataclass(frozen=True)
class Lora:
    """The LoRA of one part of a pipeline: up @ down for each weight, and a bias where there is
    one."""

    part: str
    """unet, text_encoder or text_encoder_2."""
    layers: Mapping[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]
    """(down, up, bias) by the module's name in the part, in peft's shapes."""
    kept: float
    """The share of the deltas' norm that the rank keeps; 1 if nothing was cut off."""

    @property
    def nbytes(self) -> int:
        """The size of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors("").values())

    def to(self, dtype: torch.dtype) -> Lora:
        """The same in another precision."""
        layers = {
            name: (down.to(dtype), up.to(dtype), None if bias is None else bias.to(dtype))
            for name, (down, up, bias) in self.layers.items()
        }
        return replace(self, layers=layers)

    @property
    def has_biases(self) -> bool:
        return any(bias is not None for _, _, bias in self.layers.values())

    def settings(self) -> dict:
        """peft's settings for it: each layer with its own rank, at scale 1."""
        # Without the level that only some versions of CLIPTextModel have.
        ranks = {
            name.removeprefix("text_model."): len(down)
            for name, (down, _, _) in self.layers.items()
        }
        usual = Counter(ranks.values()).most_common(1)[0][0]
        unusual = {name: rank for name, rank in ranks.items() if rank != usual}
        return {
            "r": usual,
            "lora_alpha": usual,  # the scale is alpha / rank
            "rank_pattern": unusual,
            "alpha_pattern": unusual,
            "target_modules": sorted(ranks),
            "lora_bias": self.has_biases,
        }

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors under peft's names, after a prefix."""
        tensors = {}
        for name, (down, up, bias) in self.layers.items():
            tensors[f"{prefix}{name}.lora_A.weight"] = down.contiguous()
            tensors[f"{prefix}{name}.lora_B.weight"] = up.contiguous()
            if self.has_biases:  # peft expects a bias in every layer or in none
                tensors[f"{prefix}{name}.lora_B.bias"] = (
                    torch.zeros(len(up), dtype=up.dtype) if bias is None else bias.contiguous()
                )
        return tensors


def loras(model: DiffusersModel, erasure: Erasure, rank: int = 0) -> list[Lora]:
    """One LoRA for each part of the pipeline that the erasure changes.

    rank: for full deltas; 0 takes the smallest that keeps the share KEPT of the squared norm.
    Raises ErasureError for deltas of norms and embeddings, which a LoRA cannot hold.
    """
    by_part: dict[str, dict[str, dict]] = {}
    for key in erasure.deltas:
        part, name, module = _place(model, key)
        # Not isinstance: quantised layers have classes of their own.
        if not (hasattr(module, "in_features") or hasattr(module, "kernel_size")):
            raise ErasureError(
                f"A LoRA cannot hold the delta of {key}, a weight of a {type(module).__name__}; "
                "export the text encoder or apply the erasure instead."
            )
        kind = "bias" if key.endswith(".bias") else "weight"
        layer = by_part.setdefault(part, {}).setdefault(name, {"module": module})
        layer[kind] = erasure.deltas[key]
    return [_lora(part, layers, rank) for part, layers in by_part.items()]


def _place(model: DiffusersModel, key: str) -> tuple[str, str, nn.Module]:
    """(part, name in it, module) of a weight, by ComfyUI's key."""
    if key.startswith(NETWORK):
        part, root = "unet", model.network
        module = model.views["denoiser"].get_submodule(key.removeprefix(NETWORK).rpartition(".")[0])
    else:
        encoder = key.partition(".")[0]
        part, root = PARTS[encoder], model.encoders[encoder][0]
        module = model.views["encoder"].get_submodule(key.rpartition(".")[0])
    return part, next(name for name, found in root.named_modules() if found is module), module


def _lora(part: str, layers: dict[str, dict], rank: int) -> Lora:
    found, total, lost = {}, 0.0, 0.0
    for name, layer in layers.items():
        weight = layer["module"].weight
        down, up, rest = _factors(layer.get("weight"), weight, rank)
        total += full(layer["weight"]).square().sum().item() if "weight" in layer else 0.0
        lost += rest
        if weight.ndim == 4:
            down = down.view(len(down), *weight.shape[1:])
            up = up[:, :, None, None]
        bias = layer["bias"]["diff"].float() if "bias" in layer else None
        found[name] = (down, up, bias)
    return Lora(part, found, (1 - lost / total) ** 0.5 if total else 1.0)


def _factors(
    delta: Mapping[str, torch.Tensor] | None, weight: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(down, up, squared norm of the rest) of a delta; None if only the bias changes."""
    if delta is None:
        columns = weight[0].numel()
        return torch.zeros(1, columns), torch.zeros(len(weight), 1), 0.0
    if "lora_up" in delta:
        return delta["lora_down"].float(), delta["lora_up"].float(), 0.0
    matrix = delta["diff"].float().reshape(len(weight), -1)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    left_out = s.square().flip(0).cumsum(0).flip(0)  # if the i-th and all after it are dropped
    count = rank or int((left_out > (1 - KEPT) * left_out[0]).sum())
    count = max(1, min(count, len(s)))
    root = s[:count].sqrt()
    rest = left_out[count].item() if count < len(s) else 0.0
    return root[:, None] * v[:count], u[:, :count] * root, rest


def save_lora(parts: list[Lora], file: Path, record: Mapping) -> None:
    """Write one file for `pipeline.load_lora_weights`."""
    tensors: dict[str, torch.Tensor] = {}
    for lora in parts:
        # With the level text_model in the names, every version of CLIPTextModel finds them.
        flat = lora.part == "text_encoder" and not all(
            name.startswith("text_model.") for name in lora.layers
        )
        tensors |= lora.tensors(f"{lora.part}." + ("text_model." if flat else ""))
    # Without these settings diffusers before 0.40 scales all layers by the first one's rank.
    settings = {f"{lora.part}.{name}": v for lora in parts for name, v in lora.settings().items()}
    metadata = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps(settings, sort_keys=True),
        "concept_unlearn": json.dumps(record, sort_keys=True),
    }
    save_file(tensors, file, metadata)


def save_peft(parts: list[Lora], folder: Path) -> None:
    """Write a folder for each part, for `peft.PeftModel.from_pretrained`."""
    for lora in parts:
        target = folder / lora.part
        target.mkdir(parents=True, exist_ok=True)
        tensors = lora.tensors("base_model.model.")
        save_file(tensors, target / "adapter_model.safetensors", {"format": "pt"})
        config = {"peft_type": "LORA", **lora.settings(), "inference_mode": True}
        (target / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
