"""Where a training node keeps what it trained, and how it finds it again."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import folder_paths

from ..unlearn.erasure import VERSION, Erasure, ErasureError, images_hash
from .identity import signature

LONGEST = 120  # bytes of a file's name that the concepts take


def training_key(method: str, concepts, settings, images, size, model, clip, vae) -> str:
    """A hash of what decides what training yields: all but functions that other nodes have put into
    the model's attention, which say nothing of themselves. Another version of the pack may yield
    another."""
    inputs = {
        "version": VERSION,
        "method": method,
        "concepts": concepts,
        "settings": asdict(settings),
        "size": size,
        "images": None if images is None else images_hash(images),
        "model": signature(model),
        "clip": signature(clip.patcher),
        "skip": clip.layer_idx,
        # Pictures that the model draws itself never leave its latents.
        "vae": None if images is None or vae is None else signature(vae.patcher),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def output_file(path: str) -> Path:
    """A path in the output folder. Raises ValueError when it leaves it."""
    output = Path(folder_paths.get_output_directory()).resolve()
    file = (output / path).resolve()
    if not file.is_relative_to(output):
        raise ValueError(
            f"filename_prefix {path!r} leaves ComfyUI's output folder; use a path inside it, for "
            "example: loras/erased"
        )
    return file


def erasure_file(prefix: str, concepts: list[str], key: str) -> Path:
    """Where a trained erasure is kept."""
    words = "-".join("".join(c if c.isalnum() else "_" for c in name) for name in concepts)[:60]
    # File systems count bytes, of which some letters have four.
    words = words.encode()[:LONGEST].decode(errors="ignore")
    return output_file(prefix) / f"{words}_{key[:8]}.safetensors"


def check_writable(file: Path) -> None:
    """Raises ValueError where the file's folder cannot be written to: a run would be lost."""
    trial = file.with_name(f".{file.stem}_unfinished.safetensors.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise ValueError(
            f"What is trained could not be written to {file.parent} ({error.strerror}); choose "
            "another filename_prefix."
        ) from error


def trained_before(file: Path, key: str) -> Erasure | None:
    """The erasure in the file, if it was trained from the very same inputs."""
    if not file.is_file():
        return None
    try:
        erasure = Erasure.load(file)
    except ErasureError:
        return None  # not ours, or damaged: it is trained again and replaced
    return erasure if erasure.record.get("key") == key else None
