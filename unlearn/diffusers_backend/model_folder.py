"""Reading a diffusers folder so that nothing in it is run.

A folder comes from strangers. Its index names a class for each part, and diffusers imports what is
named there, from a file in the folder if there is one; some versions ask first, others do not. So
diffusers never sees the index: it is checked here, and each part is read by a class of the lists
below. That holds whatever version is installed.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..files import torch_files

INDEX = "model_index.json"
CLASSES = {
    "diffusers": r"UNet2DConditionModel|UNetMotionModel|MotionAdapter|ControlNetModel|"
    r"AutoencoderKL|AutoencoderTiny|AsymmetricAutoencoderKL|ConsistencyDecoderVAE|[A-Za-z]+Scheduler",
    "transformers": r"CLIP(TextModel|VisionModel)(WithProjection)?|CLIPTokenizer(Fast)?|"
    r"CLIP(ImageProcessor|FeatureExtractor)(Fast|Pil)?",
    # What old folders call a module of diffusers.
    "stable_diffusion": r"StableDiffusionSafetyChecker",
}
"""The classes that a part may have, by the library that the index names."""
WATCHES = "safety_checker"
"""The part that only watches over pictures."""
PIPELINES = ("StableDiffusion", "AnimateDiff", "LatentConsistencyModel")
"""How the names of the pipelines begin that can be worked on."""
CODE = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code")
"""Settings that stand for code to be run."""
VOCABULARIES = ("vocab.json", "tokenizer.json")
"""Files whose names are words and not settings."""
LARGEST, MOST_WORDS = 2**22, 2**26  # bytes of a file of settings, and of one of words
# (a part of a setting's name, the largest number that a real model can have there)
BOUNDS = (("layers", 200), ("timesteps", 100_000), ("position", 100_000), ("", 10**8))
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(\w+))?(?:-\d+-of-\d+)?\.(safetensors|bin)"
)

FLOATS = ("F", "BF")
"""How safetensors' names of such numbers begin."""


class ModelError(ValueError):
    """A model that cannot be read; the message says why and what to do."""


def read_index(folder: Path) -> dict:
    """The index of a folder. Raises ModelError unless it is one of a diffusers pipeline."""
    try:
        index = read_settings(folder / INDEX)
    except ModelError:
        index = {}
    if not isinstance(index.get("_class_name"), str):
        raise ModelError(
            f"{folder} is no diffusers model: it has no readable model_index.json; name the folder "
            "that has one, or a checkpoint file."
        )
    return index


def check_folder(folder: Path, whole: bool = False, weights: bool = True) -> dict:
    """The index of a folder in which there is nothing to run and all that a pipeline needs.

    whole: also what only watches over pictures is read. weights: they are read, and not the
    configuration alone. Raises ModelError, before anything is imported, for a part of a class that
    is not known here, settings that stand for code, pickled weights that hold more than tensors,
    and links that leave the folder.
    """
    index = read_index(folder)
    check_link(folder, folder / INDEX)
    known = index["_class_name"]
    if not known.startswith(PIPELINES) or "unet" not in index or "text_encoder" not in index:
        raise ModelError(
            f"{folder} is a {shown(known)}; what can be unlearned here are Stable Diffusion 1.x, "
            "2.x and XL, and AnimateDiff on one of these."
        )
    check_settings(folder / INDEX, index)
    for part, value in index.items():
        if isinstance(value, list) and value != [None, None]:
            _check_class(folder, part, value)
            if whole or part != WATCHES:
                check_part(folder / part, folder, weights)
    return index


def _check_class(folder: Path, part: str, value: list) -> None:
    library, name = value if len(value) == 2 else (None, None)
    pattern = CLASSES.get(library) if isinstance(library, str) else None
    if pattern is None or not isinstance(name, str) or not re.fullmatch(pattern, name):
        raise ModelError(
            f"{folder} wants its {shown(part)} read by {shown(value)}, which may be code of its "
            "own and is not run here; name a folder whose parts are those of Stable Diffusion in "
            "diffusers and transformers."
        )
    if not re.fullmatch(r"\w+", part):
        raise ModelError(f"{folder} has a part {shown(part)}, which is no name; save it again.")


def check_part(folder: Path, root: Path | None = None, weights: bool = True) -> None:
    """Raises ModelError for a part's folder that is missing or not safe to read.

    root: the folder that its links may not leave; None: its own. weights: they are read, too.
    """
    if not folder.is_dir():
        raise ModelError(
            f"There is no folder {folder}, which the model needs: it is incomplete, so download or "
            "save it again."
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
            raise ModelError(f"{file} is larger than any tokenizer's; download or save it again.")
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} is an adapter of another model; fuse it into that and save it whole."
        )
    ending, variant = weights_of(folder)
    for file in files if weights else ():
        found = WEIGHTS.fullmatch(file.name)
        if found and (found[2], found[1]) == (ending, variant):
            tensor_names(file, f"{folder.name}/{file.name}")


def check_link(root: Path, path: Path) -> None:
    """Raises ModelError for a link out of the root, but into the cache of the Hugging Face Hub,
    whose folders are made of such links."""
    target = Path(os.path.realpath(path))  # Path.resolve raises where links go round in a ring
    cached = target.parent.name == "blobs" and target.parents[1].name.startswith("models--")
    if not target.is_relative_to(os.path.realpath(root)) and not cached:
        raise ModelError(
            f"{path} is a link that leaves the model's folder; put a copy of what is meant there."
        )


def read_settings(file: Path) -> dict:
    """A JSON file as a dictionary. Raises ModelError where it is none."""
    try:
        if file.is_file() and file.stat().st_size <= LARGEST:
            content = json.loads(file.read_bytes())
            if isinstance(content, dict):
                return content
    except (OSError, ValueError, RecursionError):  # nested a thousand times
        pass
    raise ModelError(f"{file} is no readable file of settings; download or save it again.")


def check_settings(file: Path, content: object, depth: int = 0) -> None:
    """Raises ModelError for settings that stand for code, or that no real model has."""
    pairs = content.items() if isinstance(content, dict) else ()
    for name, value in pairs:
        if name in CODE or (name.endswith("attn_implementation") and "/" in str(value)):
            raise ModelError(
                f"{file} asks for code of its own ({shown(name)}), which is not run here; take "
                "that out of it, or name another model."
            )
        if name == "quantization_config" and value:
            how = value.get("quant_method", "") if isinstance(value, dict) else ""
            raise ModelError(
                f"{file.parent} is stored in few bits ({shown(how or 'quantised')}), which can "
                "neither be trained nor changed exactly; name the model as it was before that."
            )
        if name == "weight_map":
            files = value.values() if isinstance(value, dict) else [None]
            if not all(isinstance(one, str) and re.fullmatch(r"[\w.-]+", one) for one in files):
                raise ModelError(f"{file} names weights outside of its folder; save it again.")
        if "tokenizer" not in file.name:
            _check_number(file, name, value)
        if depth < 20:
            for one in value if isinstance(value, list) else [value]:
                check_settings(file, one, depth + 1)


def _check_number(file: Path, name: str, value: object) -> None:
    most = next(most for part, most in BOUNDS if part in name)
    numbers = value if isinstance(value, list) else [value]
    long = 10_000 if "betas" in name else 200
    if len(numbers) > long or any(isinstance(n, (int, float)) and n > most for n in numbers):
        raise ModelError(f"{file} says {shown({name: value})}, which no such model has.")


def weights_of(folder: Path) -> tuple[str, str | None]:
    """(ending, variant) of the weights to read in a part's folder; ("", None) where it has none.

    In full precision if they are there, and rather as safetensors.
    """
    names = [file.name for file in folder.iterdir() if file.is_file()]
    found = [match for name in names if (match := WEIGHTS.fullmatch(name))]
    # False comes before True; "ema" or "fp16" before "non_ema".
    found.sort(key=lambda match: (match[1] is not None, match[2] == "bin", match[1]))
    return (found[0][2], found[0][1]) if found else ("", None)


def load_folder(folder: Path, whole: bool = False):
    """The pipeline of a folder, all weights in float32.

    whole: also what only watches over pictures. Raises ModelError, and what diffusers and
    transformers raise.
    """
    index = check_folder(folder, whole)
    kind = pipeline_class(folder, index["_class_name"])
    given = {}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        value = index.get(name)
        if name == "self" or (name not in index and parameter.default is not parameter.empty):
            continue
        is_option = parameter.default is not parameter.empty
        optional = name not in index and name in kind._optional_components
        if not isinstance(value, list) and not is_option and not optional:
            raise ModelError(
                f"{folder} has no {name}, which a {kind.__name__} needs: it is incomplete, so "
                "download or save it again."
            )
        if isinstance(value, list):
            left_out = value[0] is None or (name == WATCHES and not whole)
            value = None if left_out else load_part(folder / name, *value)
        given[name] = value
    return kind(**given)


def pipeline_class(path: Path, name: str) -> type:
    """diffusers' own class of a name. Raises ModelError where it has none."""
    import diffusers

    kind = getattr(diffusers, name, None)
    if not isinstance(kind, type) or not issubclass(kind, diffusers.DiffusionPipeline):
        raise ModelError(
            f"{path.name} is a {shown(name)}, which this version of diffusers lacks; name another "
            "model or bring diffusers up to date."
        )
    return kind


def load_part(folder: Path, library: str, name: str):
    """A part of a model by a class of CLASSES; a network is in float32.

    Raises ModelError where weights are missing, and what diffusers and transformers raise.
    """
    import diffusers
    import transformers
    from diffusers.pipelines import stable_diffusion

    # Its name before transformers 4.26.
    name = "CLIPImageProcessor" if name == "CLIPFeatureExtractor" else name
    sources = {"diffusers": diffusers, "transformers": transformers}
    kind = getattr(sources.get(library, stable_diffusion), name, None)
    if not isinstance(kind, type):
        raise ModelError(
            f"{folder} is a {shown(name)}, which this version of {library} lacks; bring {library} "
            "up to date."
        )
    if not issubclass(kind, torch.nn.Module):
        return kind.from_pretrained(str(folder), local_files_only=True)
    ending, variant = weights_of(folder)
    if not ending:
        raise ModelError(
            f"{folder} holds no weights (.safetensors or .bin): it is incomplete, so download or "
            "save it again."
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} has no config.json: it is incomplete, so download or save it again."
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
        # How the two libraries say it.
        if "expected shape" in str(error) or "ignore_mismatched_sizes" in str(error):
            raise ModelError(
                f"{folder} has weights of other sizes than its config.json says; download or save "
                "both again."
            ) from error
        raise
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of its weights, {missing[0]} first: it is incomplete, "
            "so download or save it again."
        )
    return part.float()


def tensor_names(file: Path, name: str = "") -> list[str]:
    """The names of the tensors in a file of weights, nothing of which is run.

    name: what an error calls the file. Raises ModelError for one that cannot be read in this way.
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
                f"{name} only says where the weights are (Git LFS); fetch them with: git lfs pull"
            )
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as content:
                _check_numbers(content, name)
                return list(content.keys())
        return [one for one in pickled(file, name) if isinstance(one, str)]
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{name} is cut short or not a safetensors file ({first_line(error)}); download or "
            "save it again."
        ) from None


def _check_numbers(content, name: str) -> None:
    """Raises ModelError where weights are whole numbers: those of a network are not, unless it is
    quantised."""
    for key in content.keys():  # noqa: SIM118 (no mapping)
        if key.endswith(".weight") and not content.get_slice(key).get_dtype().startswith(FLOATS):
            raise ModelError(
                f"{name} is stored in few bits ({content.get_slice(key).get_dtype()}), which can "
                "neither be trained nor changed exactly; name the model as it was before that."
            )


def pickled(file: Path, name: str = "") -> dict:
    """The tensors of a file of PyTorch's own kind, on the disk as far as can be.

    Raises ModelError where it holds more than tensors, and for a damaged one.
    """
    name = name or file.name
    # Before 2.6 a file could run code all the same (CVE-2025-32434).
    if torch.torch_version.TorchVersion(torch.__version__) < (2, 6):
        raise ModelError(
            f"{name} can be read safely only by PyTorch 2.6 or newer, and this is "
            f"{torch.__version__}; name a .safetensors file."
        )
    try:
        # Tensors only: nothing in the file is run. Before PyTorch 1.6 it was no zip file.
        zipped = zipfile.is_zipfile(file)
        if zipped:
            torch_files.check_members(file, file.stat().st_size)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception:  # noqa: BLE001
        # Of another make or damaged, which torch says in a dozen ways.
        raise ModelError(
            f"{name} is no checkpoint that can be read safely; name a .safetensors file."
        ) from None
    while isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    pairs = content.items() if isinstance(content, Mapping) else ()
    return {key: value for key, value in pairs if isinstance(value, torch.Tensor)}


def first_line(error: BaseException) -> str:
    """Of what an error says: the rest is for programmers."""
    lines = str(error).strip().splitlines()
    return lines[0][:300].rstrip(".;: ") if lines else type(error).__name__


def shown(value: object) -> str:
    """What a stranger wrote, short and in plain characters."""
    text = value if isinstance(value, str) and value.isidentifier() else ascii(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
