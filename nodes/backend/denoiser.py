"""The denoiser of a MODEL: its prediction at x_t, with gradients."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy.patcher_extension import WrappersMP, get_all_wrappers

from ...unlearn.core.conditioning import Conditioning
from ...unlearn.core.edit import HALF_GRADIENT_SCALE, scale_gradient
from .differentiable import differentiable
from .residency import Residency
from .schedule import Schedule


class Denoiser:
    """Runs the denoiser as the host's sampler does, and returns the denoiser's own output."""

    def __init__(self, patcher, schedule: Schedule, residency: Residency) -> None:
        self.patcher, self.schedule, self.residency = patcher, schedule, residency
        self.device = residency.device

    @property
    def module(self) -> torch.nn.Module:
        """The host's BaseModel, which contains the denoiser."""
        return self.patcher.model

    @property
    def layers(self) -> torch.nn.Module:
        return self.module.diffusion_model

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        self.residency.ready()
        scale = self.gradient_scale
        lifted = replace(
            conditioning,
            cross=scale_gradient(conditioning.cross.to(self.device), 1 / scale),
            pooled=None
            if conditioning.pooled is None
            else scale_gradient(conditioning.pooled, 1 / scale),
        )
        # As in the host: conds are made for each prompt, and batched if they allow it.
        each = [self.conds(x_t[i : i + 1], lifted.single(i % len(lifted))) for i in range(len(x_t))]
        first, others = each[0], each[1:]
        if all(first[k].can_concat(other[k]) for other in others for k in first):
            conds = {k: first[k].concat([other[k] for other in others]) for k in first}
            output = self._predicted(x_t, t, conds)
        else:
            conds = [{k: cond.cond for k, cond in one.items()} for one in each]
            parts = zip(x_t.split(1), t.split(1), conds)
            output = torch.cat([self._predicted(*part) for part in parts])
        return scale_gradient(output, scale)

    def conds(self, x_t: torch.Tensor, conditioning: Conditioning) -> dict:
        """The denoiser's inputs beside x_t (1, ...) and the noise level, as the host makes them."""
        known = {
            **conditioning.extra,
            "cross_attn": conditioning.cross,
            "pooled_output": conditioning.pooled,  # some models need the key, even if it is None
            "noise": x_t,
            # An inpainting model gets an empty picture to keep.
            "latent_image": torch.zeros_like(x_t),
            # Tells LTX 2 that there is no sound beside the pictures.
            "latent_shapes": [x_t.shape],
            "device": self.device,
            "width": x_t.shape[-1] * 8,
            "height": x_t.shape[-2] * 8,
            "prompt_type": "positive",
        }
        conds = self.module.extra_conds(**known)
        return {name: cond.process_cond(batch_size=1, area=None) for name, cond in conds.items()}

    def _predicted(self, x_t: torch.Tensor, t: torch.Tensor, conds: dict) -> torch.Tensor:
        sigma = self.schedule.sigma(t).to(x_t)
        options = {
            **self.patcher.model_options.get("transformer_options", {}),
            "optimized_attention_override": differentiable,
            # The host's sampler passes these, and some patches of a MODEL need them.
            "cond_or_uncond": [0],
            "sigmas": sigma,
        }
        outputs = []
        handle = self.layers.register_forward_hook(lambda *call: outputs.append(call[-1]))
        try:
            x0 = self.module.apply_model(x_t, sigma, transformer_options=options, **conds)
        finally:
            handle.remove()
        if self.schedule.is_exact and not get_all_wrappers(WrappersMP.APPLY_MODEL, options):
            # Computed back from x0, the output would lose about 1e-6 of its value at little noise.
            shapes = [getattr(output, "shape", None) for output in outputs]
            if shapes == [x_t.shape]:
                return outputs[0].float()
        return self.schedule.prediction(x_t, t, x0.float())

    @property
    def gradient_scale(self) -> float:
        half = self.module.get_dtype_inference() == torch.float16
        return HALF_GRADIENT_SCALE if half else 1.0

    def noise(self, count: int, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
        """Gaussian noise in the shape of `count` latents, on the CPU. size: pixels."""
        channels = self.module.latent_format.latent_channels
        return torch.randn(count, channels, *self.space(size), generator=generator)

    def space(self, size: tuple[int, int]) -> list[int]:
        """Height and width of the latents; for a video model with one frame before them."""
        layout = self.module.latent_format
        space = [side // layout.spacial_downscale_ratio for side in size]
        return [1, *space] if layout.latent_dimensions == 3 else space
