"""Loads a diffusers folder without running code from it.

A folder may come from anybody. Its index names a class for each part, and diffusers imports that
class, even from a file in the folder; not all versions ask first. So diffusers never reads the
index. It is checked here, and each part is loaded by a class from the lists below. That is safe
with any version of diffusers.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..files import torch_files

INDEX = "model_index.json"
CLASSES = {
    "diffusers": r"UNet2DConditionModel|UNetMotionModel|MotionAdapter|ControlNetModel|"
    r"AutoencoderKL|AutoencoderTiny|AsymmetricAutoencoderKL|ConsistencyDecoderVAE|[A-Za-z]+Scheduler",
    "transformers": r"CLIP(TextModel|VisionModel)(WithProjection)?|CLIPTokenizer(Fast)?|"
    r"CLIP(ImageProcessor|FeatureExtractor)(Fast|Pil)?",
    # Old folders name this module of diffusers as a library.
    "stable_diffusion": r"StableDiffusionSafetyChecker",
}
"""The classes that a part may have, by the library that the index names."""
SAFETY_CHECKER = "safety_checker"
"""The part that only checks finished pictures; it is loaded only when a whole pipeline is saved."""
PIPELINES = ("StableDiffusion", "AnimateDiff", "LatentConsistencyModel")
"""The first letters of the supported pipelines' names."""
CODE = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code")
"""Settings that make the libraries run code from the folder."""
VOCABULARIES = ("vocab.json", "tokenizer.json")
"""JSON files of words, which are not settings."""
LARGEST, MOST_WORDS = 2**22, 2**26  # the most bytes of a settings file, and of a vocabulary
# (a part of a setting's name, the largest number that it has in any real model)
BOUNDS = (("layers", 200), ("timesteps", 100_000), ("position", 100_000), ("", 10**8))
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(\w+))?(?:-\d+-of-\d+)?\.(safetensors|bin)"
)

FLOATS = ("F", "BF")
"""The first letters of safetensors' floating-point types."""


class ModelError(ValueError):
    """A model that cannot be loaded; the message says why and what to do."""


def read_index(folder: Path) -> dict:
    """The index of a folder. Raises ModelError unless it is that of a diffusers pipeline."""
    try:
        index = read_settings(folder / INDEX)
    except ModelError:
        index = {}
    if not isinstance(index.get("_class_name"), str):
        raise ModelError(
            f"{folder} is not a diffusers model: it has no readable model_index.json; name a "
            "folder that has one, or a checkpoint file."
        )
    return index


def check_folder(folder: Path, whole: bool = False, weights: bool = True) -> dict:
    """The index of a folder, after a check that the folder is complete and safe to load.

    whole: whether to check the safety checker, too. weights: whether to check the weights, and not
    only the configuration. Raises ModelError, before anything is imported, for a part of an unknown
    class, settings that run code, pickled weights that hold more than tensors, and links that leave
    the folder.
    """
    index = read_index(folder)
    check_link(folder, folder / INDEX)
    known = index["_class_name"]
    if not known.startswith(PIPELINES) or "unet" not in index or "text_encoder" not in index:
        raise ModelError(
            f"{folder} is a {shown(known)}, which is not supported; supported are Stable Diffusion "
            "1.x, 2.x and XL, and AnimateDiff on one of these."
        )
    check_settings(folder / INDEX, index)
    for part, value in index.items():
        if isinstance(value, list) and value != [None, None]:
            _check_class(folder, part, value)
            if whole or part != SAFETY_CHECKER:
                check_part(folder / part, folder, weights)
    return index


def _check_class(folder: Path, part: str, value: list) -> None:
    library, name = value if len(value) == 2 else (None, None)
    pattern = CLASSES.get(library) if isinstance(library, str) else None
    if pattern is None or not isinstance(name, str) or not re.fullmatch(pattern, name):
        raise ModelError(
            f"{folder} names the class {shown(value)} for its {shown(part)}. It may be code from "
            "the folder, so it is not run; name a folder whose parts are those of Stable Diffusion "
            "in diffusers and transformers."
        )
    if not re.fullmatch(r"\w+", part):
        raise ModelError(
            f"{folder} has a part {shown(part)}, which is not a valid name; save it again."
        )


def check_part(folder: Path, root: Path | None = None, weights: bool = True) -> None:
    """Raises ModelError for a part's folder that is missing or not safe to load.

    root: the folder that its links must not leave; None takes `folder`. weights: whether to check
    the weights, too.
    """
    if not folder.is_dir():
        raise ModelError(
            f"The model is incomplete: there is no folder {folder}; download or save it again."
        )
    files = sorted(folder.iterdir())
    for file in (folder, *files):
        check_link(root or folder, file)
    for file in files:
        if file.suffix == ".json" and file.name not in VOCABULARIES:
            check_settings(file, read_settings(file))
        elif (
            file.suffix in (".json", ".txt") and file.exists() and file.stat().st_size > MOST_WORDS
        ):
            raise ModelError(
                f"{file} is larger than that of any tokenizer; download or save it again."
            )
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} is an adapter; fuse it into its model and save that as a whole."
        )
    ending, variant = weights_of(folder)
    for file in files if weights else ():
        found = WEIGHTS.fullmatch(file.name)
        if found and (found[2], found[1]) == (ending, variant):
            tensor_names(file, f"{folder.name}/{file.name}")


def check_link(root: Path, path: Path) -> None:
    """Raises ModelError for a link that leaves the root. Links into the cache of the Hugging Face
    Hub are allowed, since its folders consist of them."""
    target = Path(os.path.realpath(path))  # Path.resolve raises for a loop of links
    cached = target.parent.name == "blobs" and target.parents[1].name.startswith("models--")
    if not target.is_relative_to(os.path.realpath(root)) and not cached:
        raise ModelError(
            f"{path} is a link that leaves the model's folder; replace it by a copy of its target."
        )


def read_settings(file: Path) -> dict:
    """The JSON object in a file. Raises ModelError where there is none."""
    try:
        if file.is_file() and file.stat().st_size <= LARGEST:
            content = json.loads(file.read_bytes())
            if isinstance(content, dict):
                return content
    except (OSError, ValueError, RecursionError):  # RecursionError: nested too deeply
        pass
    raise ModelError(f"{file} is not a readable settings file; download or save it again.")


def check_settings(file: Path, content: object, depth: int = 0) -> None:
    """Raises ModelError for settings that run code, or that no real model has."""
    pairs = content.items() if isinstance(content, dict) else ()
    for name, value in pairs:
        if name in CODE or (name.endswith("attn_implementation") and "/" in str(value)):
            raise ModelError(
                f"{file} asks to run its own code ({shown(name)}), which is not allowed; remove "
                "that setting, or name another model."
            )
        if name == "quantization_config" and value:
            how = value.get("quant_method", "") if isinstance(value, dict) else ""
            raise ModelError(
                f"{file.parent} is quantised ({shown(how or 'unknown method')}), so its weights "
                "can be neither trained nor changed exactly; name the original model."
            )
        if name == "weight_map":
            files = value.values() if isinstance(value, dict) else [None]
            if not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) for name in files):
                raise ModelError(f"{file} names weights outside its folder; save the model again.")
        if "tokenizer" not in file.name:
            _check_number(file, name, value)
        if depth < 20:
            for inner in value if isinstance(value, list) else [value]:
                check_settings(file, inner, depth + 1)


def _check_number(file: Path, name: str, value: object) -> None:
    most = next(most for part, most in BOUNDS if part in name)
    numbers = value if isinstance(value, list) else [value]
    long = 10_000 if "betas" in name else 200
    if len(numbers) > long or any(isinstance(n, (int, float)) and n > most for n in numbers):
        raise ModelError(
            f"{file} has the setting {shown({name: value})}, which no real model has; download or "
            "save it again."
        )


def weights_of(folder: Path) -> tuple[str, str | None]:
    """(ending, variant) of the weights to load from a part's folder; ("", None) where it has none.

    Weights without a variant come first, then safetensors.
    """
    names = [file.name for file in folder.iterdir() if file.is_file()]
    found = [match for name in names if (match := WEIGHTS.fullmatch(name))]
    # False sorts before True, and "ema" or "fp16" before "non_ema".
    found.sort(key=lambda match: (match[1] is not None, match[2] == "bin", match[1]))
    return (found[0][2], found[0][1]) if found else ("", None)


def load_folder(folder: Path, whole: bool = False):
    """The pipeline of a folder, with all weights in float32.

    whole: whether to load the safety checker, too. Raises ModelError, and what diffusers and
    transformers raise.
    """
    index = check_folder(folder, whole)
    kind = pipeline_class(folder, index["_class_name"])
    parts = {}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        value = index.get(name)
        if name == "self" or (name not in index and parameter.default is not parameter.empty):
            continue
        is_option = parameter.default is not parameter.empty
        optional = name not in index and name in kind._optional_components
        if not isinstance(value, list) and not is_option and not optional:
            raise ModelError(
                f"{folder} is incomplete: it has no {name}, which a {kind.__name__} needs; "
                "download or save it again."
            )
        if isinstance(value, list):
            left_out = value[0] is None or (name == SAFETY_CHECKER and not whole)
            value = None if left_out else load_part(folder / name, *value)
        parts[name] = value
    return kind(**parts)


def pipeline_class(path: Path, name: str) -> Any:
    """The pipeline class of diffusers with this name. Raises ModelError where there is none.

    path: the model, for the message.
    """
    import diffusers

    kind = getattr(diffusers, name, None)
    if not isinstance(kind, type) or not issubclass(kind, diffusers.DiffusionPipeline):
        raise ModelError(
            f"{path.name} is a {shown(name)}, which this version of diffusers does not have; "
            "update diffusers, or name another model."
        )
    return kind


def load_part(folder: Path, library: str, name: str):
    """A part of a model, loaded by a class of CLASSES; a network is in float32.

    Raises ModelError where weights are missing, and what diffusers and transformers raise.
    """
    import diffusers
    import transformers
    from diffusers.pipelines import stable_diffusion

    # Before transformers 4.26 its name was CLIPFeatureExtractor.
    name = "CLIPImageProcessor" if name == "CLIPFeatureExtractor" else name
    sources = {"diffusers": diffusers, "transformers": transformers}
    kind: Any = getattr(sources.get(library, stable_diffusion), name, None)
    if kind is None:
        raise ModelError(
            f"{folder} is a {shown(name)}, which this version of {library} does not have; update "
            f"{library}."
        )
    if not issubclass(kind, torch.nn.Module):
        return kind.from_pretrained(str(folder), local_files_only=True)
    ending, variant = weights_of(folder)
    if not ending:
        raise ModelError(
            f"{folder} is incomplete: it holds no weights (.safetensors or .bin); download or save "
            "it again."
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is incomplete: it has no config.json; download or save it again."
        )
    try:
        part, found = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=ending == "safetensors",
            variant=variant,
            output_loading_info=True,
        )
    except (RuntimeError, ValueError) as error:
        # The messages of the two libraries for weights of another shape.
        if "expected shape" in str(error) or "ignore_mismatched_sizes" in str(error):
            raise ModelError(
                f"The weights in {folder} do not have the sizes in its config.json; download or "
                "save both again."
            ) from error
        raise
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder} is incomplete: it lacks {len(missing)} of its weights, {missing[0]} first; "
            "download or save it again."
        )
    return part.float()


def tensor_names(file: Path, name: str = "") -> list[str]:
    """The names of the tensors in a file of weights. No code from it is run.

    name: the file's name in messages. Raises ModelError for a file that cannot be read so.
    """
    name = name or file.name
    try:
        if file.stat().st_size == 0:
            raise ModelError(f"{name} is empty; download or save it again.")
        with file.open("rb") as opened:
            start = opened.read(7)
        if start.startswith(b"GGUF"):
            raise ModelError(f"{name} is a GGUF file; name a .safetensors file.")
        if start == b"version":
            raise ModelError(
                f"{name} is a Git LFS pointer without the weights; get them with: git lfs pull"
            )
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as content:
                _check_numbers(content, name)
                return list(content.keys())
        return [key for key in pickled(file, name) if isinstance(key, str)]
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{name} is cut short or not a safetensors file ({first_line(error)}); download or "
            "save it again."
        ) from None


def _check_numbers(content, name: str) -> None:
    """Raises ModelError where weights are integers, which means that the model is quantised."""
    for key in content.keys():  # noqa: SIM118 (not a dict)
        if key.endswith(".weight") and not content.get_slice(key).get_dtype().startswith(FLOATS):
            raise ModelError(
                f"{name} is quantised ({content.get_slice(key).get_dtype()}), so its weights can "
                "be neither trained nor changed exactly; name the original model."
            )


def pickled(file: Path, name: str = "") -> dict:
    """The tensors of a PyTorch file, memory-mapped if possible. name: the file's name in messages.

    Raises ModelError where it holds more than tensors, or is damaged.
    """
    name = name or file.name
    # Before 2.6 loading could run code from the file even so (CVE-2025-32434).
    if torch.torch_version.TorchVersion(torch.__version__) < (2, 6):
        raise ModelError(
            f"Only PyTorch 2.6 or later reads {name} safely, and this is {torch.__version__}; "
            "update PyTorch, or name a .safetensors file."
        )
    try:
        # weights_only: no code is run. Before PyTorch 1.6 the format was not a zip file.
        zipped = zipfile.is_zipfile(file)
        if zipped:
            torch_files.check_members(file, file.stat().st_size)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception:  # noqa: BLE001
        # torch has a dozen errors for a file that is damaged or in another format.
        raise ModelError(
            f"{name} cannot be read safely as a checkpoint; name a .safetensors file."
        ) from None
    while isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    pairs = content.items() if isinstance(content, Mapping) else ()
    return {key: value for key, value in pairs if isinstance(value, torch.Tensor)}


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the rest is for programmers."""
    lines = str(error).strip().splitlines()
    return lines[0][:300].rstrip(".;: ") if lines else type(error).__name__


def shown(value: object) -> str:
    """A value from a file, as a message shows it: short, and in ASCII."""
    text = value if isinstance(value, str) and value.isidentifier() else ascii(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
