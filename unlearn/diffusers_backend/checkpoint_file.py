"""What a single file of a whole model says of itself, read as ComfyUI reads it.

ComfyUI's comfy/supported_models.py is where its rules stand.
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
# Only models of these kinds have them.
XL_KEYS = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.")
REFINER_KEY = "conditioner.embedders.0.model."
ENCODERS = {
    "StableDiffusionPipeline": [("cond_stage_model.transformer.", "cond_stage_model.model.")],
    "StableDiffusionXLPipeline": [
        ("conditioner.embedders.0.transformer.",),
        ("conditioner.embedders.1.model.",),
    ],
}
"""By the pipeline: how the names begin of each text encoder, in one way or another."""
CLIP_L, LEVEL = "cond_stage_model.transformer.", "text_model."
# The names of what belongs to weights in few bits end so.
FEW_BITS = (".scale_weight", ".weight_scale", ".comfy_quant", "scaled_fp8", ".absmax")
EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
# By its spread ComfyUI tells the models of Stable Diffusion 2 that predict v.
SPREAD, MOST = f"{NETWORK}output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09


class CheckpointFile:
    """A file whose weights are all there and of a kind that can be worked on.

    Raises ModelError, one sentence, for any other.
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
                f"{name} is no checkpoint of a whole model: it has no weights of an image network; "
                "name the checkpoint that it belongs to."
            )
        if self._has(REFINER_KEY) and not self.is_xl:
            raise ModelError(f"{name} is XL's refiner, which has no words of its own to unlearn.")
        if FIRST not in self.names:
            raise ModelError(
                f"{name} is a checkpoint of another kind of model; what can be unlearned here are "
                "Stable Diffusion 1.x, 2.x and XL, and AnimateDiff on one of these."
            )
        shape = self.tensors([FIRST])[FIRST].shape
        if len(shape) != 4 or shape[1] != 4:
            raise ModelError(
                f"{name} has an image network that takes {shape[1] if len(shape) > 1 else 'no'} "
                "channels, as one for inpainting or editing does, and not 4; name the model that "
                "it was made from."
            )
        found = [name for name in self.names if name.endswith(FEW_BITS)]
        if found:
            raise ModelError(
                f"{name} is stored in few bits ({min(found)}), which can neither be trained nor "
                "changed exactly; name the model as it was before that."
            )
        edm = [name for name in EDM if name in self.names]
        if edm:
            raise ModelError(
                f"{name} was trained with EDM's noise levels ({edm[0]}), which cannot be worked on "
                "here; name another model."
            )

    def _check_parts(self) -> None:
        missing = [] if self._has(AUTOENCODER) else ["autoencoder (VAE)"]
        wanted = ENCODERS[self.pipeline]
        for number, beginnings in enumerate(wanted, 1):
            if not self._has(beginnings):
                missing.append(f"text encoder {number}" if len(wanted) > 1 else "text encoder")
        if missing:
            raise ModelError(
                f"{self.file.name} has no {' and no '.join(missing)}; name a checkpoint with all "
                "parts in it, or a diffusers folder."
            )

    def _has(self, beginning: str | tuple[str, ...]) -> bool:
        """Whether the name of a tensor begins so, or in one of these ways."""
        return any(name.startswith(beginning) for name in self.names)

    def tensors(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Those of the named tensors that are there."""
        some = [name for name in names if name in self.names]
        if self.file.suffix != ".safetensors":
            content = pickled(self.file)
            return {name: content[name] for name in some}
        with safe_open(self.file, framework="pt") as content:
            return {name: content.get_tensor(name) for name in some}

    def encoder_without_level(self) -> dict[str, torch.Tensor]:
        """The weights of CLIP-L under transformers' names, where the file leaves out the level
        text_model, which ComfyUI puts in; else nothing."""
        names = [name for name in self.names if name.startswith(CLIP_L)]
        if not names or any(name.startswith(CLIP_L + LEVEL) for name in names):
            return {}
        return {
            LEVEL + name.removeprefix(CLIP_L): tensor
            for name, tensor in self.tensors(names).items()
        }

    def set_prediction(self, pipeline) -> None:
        """Let the pipeline's scheduler say what the file says that its network predicts.

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
                    f"{self.file.name} is marked {name}, which the scheduler of its configuration "
                    "does not say; name a diffusers folder of the same model with --config, whose "
                    "scheduler_config.json says what its network predicts."
                )


def _predict(pipeline, what: str, zero_snr: bool) -> None:
    """zero_snr: whether the noise of the last step leaves nothing of the picture."""
    from diffusers import EulerDiscreteScheduler

    before = pipeline.scheduler
    settings = {"prediction_type": what}
    if zero_snr:
        # Not every scheduler has it; as the documentation of such models says.
        settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    elif before.config.get("rescale_betas_zero_snr"):
        settings["rescale_betas_zero_snr"] = False
    kind = EulerDiscreteScheduler if zero_snr else type(before)
    pipeline.scheduler = kind.from_config(before.config, **settings)
