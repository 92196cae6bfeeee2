"""Text encoders on the disk, under the names that everybody reads.

transformers 5 writes a new CLIPTextModel without the level "text_model" that all versions before it
and ComfyUI look for; with that level, all of them read it.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

LEVEL = "text_model."


def with_usual_names(folder: Path) -> None:
    """Rename the tensors of a text encoder that transformers has just written to a folder."""
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as content:
            flat = not any(name.startswith(LEVEL) for name in content.keys())  # noqa: SIM118
        if flat:
            # Copies: Windows replaces no file that is read in place.
            tensors = {LEVEL + name: tensor.clone() for name, tensor in load_file(file).items()}
            temporary = file.with_suffix(".tmp")
            save_file(tensors, temporary, {"format": "pt"})
            temporary.replace(file)
