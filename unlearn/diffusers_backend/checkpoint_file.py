"""Checks of a single-file checkpoint, and its settings, by the same rules as ComfyUI.

ComfyUI's rules are in its comfy/supported_models.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open

from .model_folder import ModelError, pickled, tensor_names

NETWORK = "model.diffusion_model."
FIRST = f"{NETWORK}input_blocks.0.0.weight"
AUTOENCODER = "first_stage_model."
# Prefixes and keys that only SDXL, or only its refiner, has.
XL_KEYS = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.")
REFINER_KEY = "conditioner.embedders.0.model."
ENCODERS: dict[str, list[tuple[str, ...]]] = {
    "StableDiffusionPipeline": [("cond_stage_model.transformer.", "cond_stage_model.model.")],
    "StableDiffusionXLPipeline": [
        ("conditioner.embedders.0.transformer.",),
        ("conditioner.embedders.1.model.",),
    ],
}
"""By pipeline: the possible key prefixes of each text encoder."""
CLIP_L, LEVEL = "cond_stage_model.transformer.", "text_model."
# Suffixes of keys that only quantised files have.
FEW_BITS = (".scale_weight", ".weight_scale", ".comfy_quant", "scaled_fp8", ".absmax")
EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
# ComfyUI recognises Stable Diffusion 2 models that predict v by this bias: its standard deviation
# is above the limit.
SPREAD, MOST = f"{NETWORK}output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09


class CheckpointFile:
    """A checkpoint file of a supported model with all its parts.

    Raises ModelError for any other file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.names = frozenset(tensor_names(file))
        self.is_xl = self._has(XL_KEYS)
        self.pipeline = "StableDiffusionXLPipeline" if self.is_xl else "StableDiffusionPipeline"
        self._check_kind()
        self._check_parts()

    def _check_kind(self) -> None:
        name = self.file.name
        if not self._has(NETWORK):
            raise ModelError(
                f"{name} is not a checkpoint of a whole model: it has no denoiser weights; name "
                "the checkpoint that it belongs to."
            )
        if self._has(REFINER_KEY) and not self.is_xl:
            raise ModelError(f"{name} is SDXL's refiner; name the base model's checkpoint.")
        if FIRST not in self.names:
            raise ModelError(
                f"{name} is a checkpoint of an unsupported model; supported are Stable Diffusion "
                "1.x, 2.x and XL, and AnimateDiff on one of these."
            )
        shape = self.tensors([FIRST])[FIRST].shape
        if len(shape) != 4 or shape[1] != 4:
            raise ModelError(
                f"{name} has a denoiser with {shape[1] if len(shape) > 1 else 'no'} input "
                "channels instead of 4, as models for inpainting or editing have; name the base "
                "model."
            )
        found = [name for name in self.names if name.endswith(FEW_BITS)]
        if found:
            raise ModelError(
                f"{name} is quantised ({min(found)}), so its weights can be neither trained nor "
                "changed exactly; name the original model."
            )
        edm = [name for name in EDM if name in self.names]
        if edm:
            raise ModelError(
                f"{name} was trained with EDM's noise levels ({edm[0]}), which are not supported; "
                "name another model."
            )

    def _check_parts(self) -> None:
        missing = [] if self._has(AUTOENCODER) else ["autoencoder (VAE)"]
        encoders = ENCODERS[self.pipeline]
        for number, prefixes in enumerate(encoders, 1):
            if not self._has(prefixes):
                missing.append(f"text encoder {number}" if len(encoders) > 1 else "text encoder")
        if missing:
            raise ModelError(
                f"{self.file.name} has no {' and no '.join(missing)}; name a checkpoint with all "
                "parts, or a diffusers folder."
            )

    def _has(self, prefix: str | tuple[str, ...]) -> bool:
        """Whether a tensor's name begins with the prefix, or with one of them."""
        return any(name.startswith(prefix) for name in self.names)

    def tensors(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The named tensors, without those that the file lacks."""
        present = [name for name in names if name in self.names]
        if self.file.suffix != ".safetensors":
            content = pickled(self.file)
            return {name: content[name] for name in present}
        with safe_open(self.file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in present}

    def encoder_without_level(self) -> dict[str, torch.Tensor]:
        """CLIP-L's weights under transformers' names, if the file's names lack the level
        "text_model", which ComfyUI adds; else an empty dict."""
        names = [name for name in self.names if name.startswith(CLIP_L)]
        if not names or any(name.startswith(CLIP_L + LEVEL) for name in names):
            return {}
        return {
            LEVEL + name.removeprefix(CLIP_L): tensor
            for name, tensor in self.tensors(names).items()
        }

    def set_prediction(self, pipeline) -> None:
        """Set the prediction type (noise or v) of the pipeline's scheduler as the file says.

        Raises ModelError where the file and the scheduler disagree and ComfyUI has no rule.
        """
        spread = self.tensors([SPREAD])
        if self.is_xl and "v_pred" in self.names:
            _predict(pipeline, "v_prediction", "ztsnr" in self.names)
        elif spread and self._has("cond_stage_model.model."):
            is_v = spread[SPREAD].float().std(unbiased=False) > MOST
            _predict(pipeline, "v_prediction" if is_v else "epsilon", False)
        config = pipeline.scheduler.config
        says_v = config.get("prediction_type") == "v_prediction"
        says_zero = bool(config.get("rescale_betas_zero_snr"))
        for name, agrees in (("v_pred", says_v), ("ztsnr", says_zero)):
            if name in self.names and not agrees:
                raise ModelError(
                    f"{self.file.name} is marked {name}, but the scheduler of its configuration is "
                    "not set to that; name a diffusers folder of the same model with --config. Its "
                    "scheduler_config.json says what the denoiser predicts."
                )


def _predict(pipeline, what: str, zero_snr: bool) -> None:
    """Set the scheduler's prediction type. zero_snr: whether the noisiest step is pure noise."""
    from diffusers import EulerDiscreteScheduler

    before = pipeline.scheduler
    settings: dict = {"prediction_type": what}
    if zero_snr:
        # Not every scheduler supports it. The models' documentation gives these settings.
        settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    elif before.config.get("rescale_betas_zero_snr"):
        settings["rescale_betas_zero_snr"] = False
    kind = EulerDiscreteScheduler if zero_snr else type(before)
    pipeline.scheduler = kind.from_config(before.config, **settings)
