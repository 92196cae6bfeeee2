"""Loads a pipeline from a diffusers folder or a single-file checkpoint.

diffusers is imported only when a model is loaded: ComfyUI does not need it.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

import torch

from ..core.peak_memory import is_too_little
from .checkpoint_file import CheckpointFile
from .model_folder import (
    ModelError,
    check_folder,
    first_line,
    load_folder,
    pipeline_class,
    read_index,
)

PACKAGES = ("diffusers", "transformers", "accelerate", "peft")


def load_pipeline(path: Path, config: Path | None = None, whole: bool = False):
    """A diffusers pipeline with all weights in float32.

    path: a folder with a model_index.json, or a .safetensors or .ckpt file in the layout of Stable
    Diffusion's first checkpoints. config: for a file, a diffusers folder of the same kind of model,
    whose configuration and tokenizer are used; None takes these small files from the Hugging Face
    Hub or its cache. whole: whether to load the safety checker, too.

    No code from the folder or file is run. Raises ModelError where the model cannot be loaded.
    """
    content = check_model(path, config, whole)
    try:
        silence_libraries()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return load_folder(path, whole) if content is None else _load_file(content, config)
    except ModelError:
        raise
    except ImportError as error:
        raise ModelError(f"{first_line(error)}; {_install()}") from None
    except Exception as error:
        # The libraries read files from anybody, and may raise any error.
        if is_too_little(error):
            raise ModelError(
                f"{path.name} needs more memory than there is; use a machine with more. If it is a "
                "small model, its settings are damaged: download or save it again."
            ) from error
        raise ModelError(_why(error, path, config)) from error


def check_model(
    path: Path, config: Path | None = None, whole: bool = False
) -> CheckpointFile | None:
    """The CheckpointFile of a file, None of a folder, after the checks of `load_pipeline` that load
    no weights and import no library. Raises ModelError."""
    if not path.exists():
        raise ModelError(
            f"There is no file or folder {path}; name a diffusers folder or a checkpoint file. "
            "Models are not downloaded."
        )
    if not path.is_dir() and not path.is_file():
        raise ModelError(f"{path} is neither a file nor a folder; name a model that is one.")
    if config is not None and not (config / "model_index.json").is_file():
        raise ModelError(
            f"{config} is not a diffusers folder: it has no model_index.json; name one that has."
        )
    if path.is_dir():
        check_folder(path, whole)
    if config is not None:
        check_folder(config, weights=False)
    return None if path.is_dir() else CheckpointFile(path)


def silence_libraries() -> None:
    """Switch off progress bars and log messages of diffusers and transformers."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity(logging.CRITICAL)
        library.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _install() -> str:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return "install the missing package, or name a model that does not need it"
    return f"install the missing packages with: pip install {' '.join(missing)}"


def _load_file(content: CheckpointFile, config: Path | None):
    kind = pipeline_class(content.file, content.pipeline)
    # Since 0.42 diffusers calls it dtype and warns about this name; older versions only know this.
    options: dict = {"torch_dtype": torch.float32}
    if config is not None:
        options |= {"config": str(config), "local_files_only": True}
        if "image_encoder" in read_index(config):
            options["image_encoder"] = None  # no checkpoint file holds one
    if weights := content.encoder_without_level():
        options["text_encoder"] = _clip(weights, config)
    pipeline = kind.from_single_file(str(content.file), **options)
    for name, part in pipeline.components.items():
        for key, weight in part.named_parameters() if hasattr(part, "named_parameters") else ():
            if weight.is_meta:
                raise ModelError(
                    f"{content.file.name} is incomplete: its {name} lacks {key}; download or save "
                    "it again."
                )
    content.set_prediction(pipeline)
    return pipeline


def _clip(weights: dict[str, torch.Tensor], config: Path | None):
    """Stable Diffusion 1's text encoder with these weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    if config is None:
        width = {"hidden_size": 768, "projection_dim": 768, "intermediate_size": 3072}
        settings = CLIPTextConfig(**width, num_hidden_layers=12, num_attention_heads=12)
    else:
        settings = CLIPTextConfig.from_pretrained(
            str(config), subfolder="text_encoder", local_files_only=True
        )
    encoder = CLIPTextModel(settings)
    level = "text_model." if hasattr(encoder, "text_model") else ""
    named = {level + name.removeprefix("text_model."): value for name, value in weights.items()}
    missing = encoder.load_state_dict(named, strict=False).missing_keys
    missing = [name for name in missing if not name.endswith("position_ids")]
    if missing:
        raise ModelError(
            f"The file is incomplete: its text encoder lacks {missing[0]}; download or save it "
            "again."
        )
    return encoder.float()


def _why(error: Exception, path: Path, config: Path | None) -> str:
    if str(error).startswith("Failed to import"):
        import diffusers
        import transformers

        return (
            f"diffusers {diffusers.__version__} and transformers {transformers.__version__} are "
            f"not compatible ({str(error).strip().splitlines()[-1]}); update both with: "
            "pip install -U diffusers transformers"
        )
    if path.is_file() and config is None and _is_offline(error):
        return (
            f"The configuration and tokenizer for {path.name} are not on this machine and cannot "
            "be downloaded; name a diffusers folder of the same kind of model with --config."
        )
    why = "it may be incomplete: download or save it again."
    if config is not None:
        why = (
            "name a diffusers folder of the same kind of model with --config, or it is "
            "incomplete: download or save it again."
        )
    kind = read_index(path)["_class_name"] if path.is_dir() else CheckpointFile(path).pipeline
    # Weights that the file lacks stay on the meta device, and torch says so when they are moved.
    what = "some weights are missing" if "meta tensor" in str(error) else first_line(error)
    return f"{path.name} cannot be read as a {kind} ({what}); {why}"


def _is_offline(error: BaseException | None) -> bool:
    """Whether the error, or one of its causes, is from a download from the Hugging Face Hub."""
    while error is not None:
        if type(error).__module__.split(".")[0] in ("huggingface_hub", "httpx", "requests"):
            return True
        error = error.__cause__ or error.__context__
    return False
