"""Reading a diffusers folder or a single-file checkpoint from the disk.

diffusers is imported here and only when a model is read: inside ComfyUI nobody needs it.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

INSTALL = 'install what is missing with: pip install "diffusers>=0.35" transformers accelerate peft'
NETWORK_KEY = "model.diffusion_model."
# Only models of these kinds have them; the first is there in all.
XL_KEY, REFINER_KEY = "conditioner.embedders.1.", "conditioner.embedders.0.model."


class ModelError(ValueError):
    """A model that cannot be read; the message says why and what to do."""


def load_pipeline(path: Path, config: Path | None = None, whole: bool = False):
    """A diffusers pipeline with all weights in float32.

    path: a folder with a model_index.json, or a .safetensors or .ckpt file in the layout of Stable
    Diffusion's first checkpoints. config: for a file, a diffusers folder of the same kind of model,
    whose configuration and tokenizer are used; else diffusers takes these small files from the
    Hugging Face Hub or its cache. whole: also what only watches over pictures (the safety checker).

    Raises ModelError, one sentence, for anything that is no such model.
    """
    if not path.exists():
        raise ModelError(
            f"There is no file or folder {path}; name a diffusers folder or a checkpoint file "
            "(models are not downloaded)."
        )
    if config is not None and not (config / "model_index.json").is_file():
        raise ModelError(f"{config} is no diffusers folder: it has no model_index.json.")
    known = _folder_class(path) if path.is_dir() else _file_class(path)
    try:
        import diffusers
    except ImportError as error:
        raise ModelError(f"{error}; {INSTALL}") from None
    kind = getattr(diffusers, known, None)
    if kind is None:
        raise ModelError(f"{path.name} is a {known}, which this version of diffusers lacks.")
    less = {} if whole or "safety" not in _index(path) else {"safety_checker": None}
    # diffusers from 0.42 on calls this dtype, and says so; those before know this name alone.
    less["torch_dtype"] = torch.float32
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            if path.is_dir():
                return kind.from_pretrained(path, local_files_only=True, **less)
            layout = {} if config is None else {"config": str(config), "local_files_only": True}
            return kind.from_single_file(str(path), **layout, **less)
    except ImportError as error:
        raise ModelError(f"{_first_line(error)}; {INSTALL}") from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if path.is_file() and config is None and _is_offline(error):
            raise ModelError(
                f"The configuration and tokenizer of {path.name}'s kind of model are not on this "
                "machine and cannot be fetched; name a diffusers folder of such a model with "
                "--config."
            ) from error
        why = "it may be incomplete: download or save it again."
        if config is not None:
            why = (
                "name a diffusers folder of the same kind of model with --config, or it is "
                "incomplete: download or save it again."
            )
        raise ModelError(
            f"{path.name} cannot be read as a {known} ({_first_line(error)}); {why}"
        ) from error


def _index(folder: Path) -> str:
    file = folder / "model_index.json"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _folder_class(folder: Path) -> str:
    """The name of the pipeline class that a folder's index gives."""
    try:
        index = json.loads(_index(folder) or "{}")
    except json.JSONDecodeError:
        index = {}
    if not isinstance(index.get("_class_name"), str):
        raise ModelError(
            f"{folder} is no diffusers model: it has no readable model_index.json; name the folder "
            "that has one, or a checkpoint file."
        )
    if "unet" not in index or "text_encoder" not in index:
        raise ModelError(
            f"{folder} is a {index['_class_name']}; what can be unlearned here are Stable "
            "Diffusion 1.x, 2.x and XL, and AnimateDiff on one of these."
        )
    return index["_class_name"]


def _file_class(file: Path) -> str:
    """The name of the pipeline class for a checkpoint, by what its weights are called."""
    names = _tensor_names(file)
    if not any(name.startswith(NETWORK_KEY) for name in names):
        raise ModelError(
            f"{file.name} is no checkpoint of a whole model: it has no weights of an image "
            "network; name the checkpoint that it belongs to."
        )
    if any(name.startswith(XL_KEY) for name in names):
        return "StableDiffusionXLPipeline"
    if any(name.startswith(REFINER_KEY) for name in names):
        raise ModelError(f"{file.name} is XL's refiner, which has no words of its own to unlearn.")
    return "StableDiffusionPipeline"


def _tensor_names(file: Path) -> list[str]:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as content:
                return list(content.keys())
        # Tensors only: nothing in the file is run. Before PyTorch 1.6 it was no zip file.
        zipped = zipfile.is_zipfile(file)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
        content = content.get("state_dict", content) if isinstance(content, dict) else {}
        return [name for name in content if isinstance(name, str)]
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file.name} is cut short or not a safetensors file ({_first_line(error)}); download "
            "or save it again."
        ) from None
    except Exception:  # noqa: BLE001
        # Of another make or damaged, which torch says in a dozen ways.
        raise ModelError(
            f"{file.name} is no checkpoint that can be read safely; name a .safetensors file."
        ) from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".;: ") if lines else type(error).__name__


def _is_offline(error: BaseException | None) -> bool:
    """Whether it, or what it came from, is about files that the Hub should have given."""
    while error is not None:
        if type(error).__module__.split(".")[0] in ("huggingface_hub", "httpx", "requests"):
            return True
        error = error.__cause__ or error.__context__
    return False
