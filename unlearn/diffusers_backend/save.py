"""Saves text encoders under tensor names that every version of transformers reads.

transformers 5 saves a new CLIPTextModel without the level "text_model". Older versions and ComfyUI
need that level, and transformers 5 accepts it.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..files.writing import whole_file

LEVEL = "text_model."


def with_usual_names(folder: Path) -> None:
    """Rename the tensors of a text encoder that transformers has written to a folder."""
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as content:
            flat = not any(name.startswith(LEVEL) for name in content.keys())  # noqa: SIM118
        if flat:
            # Copies, since mapped tensors keep the file open, and Windows cannot replace it then.
            tensors = {LEVEL + name: tensor.clone() for name, tensor in load_file(file).items()}
            with whole_file(file) as new:
                save_file(tensors, new, {"format": "pt"})
