"""The noise schedule of a MODEL: noise levels, adding noise, and converting predictions."""

from __future__ import annotations

import comfy.model_sampling
import torch

# The host's functions from a denoiser's output to x0, for outputs that are epsilon, v or velocity.
OWN_OUTPUT = tuple(
    kind.calculate_denoised
    for kind in (
        comfy.model_sampling.EPS,
        comfy.model_sampling.V_PREDICTION,
        comfy.model_sampling.CONST,
    )
)


class Schedule:
    """Timesteps are floats in 0..1000, as in unlearn.core.model; sigmas are the host's."""

    def __init__(self, patcher) -> None:
        self.patcher = patcher

    @property
    def sampling(self) -> torch.nn.Module:
        """The host's model_sampling, from the patcher.

        The one in the module may be that of another branch of the graph, or that of the checkpoint
        while the model is unloaded.
        """
        return self.patcher.get_model_object("model_sampling")

    @property
    def is_exact(self) -> bool:
        """Whether the denoiser's output is exactly what `prediction` computes from x0."""
        return type(self.sampling).calculate_denoised in OWN_OUTPUT

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """The noise levels (N,) of timesteps (N,)."""
        sampling = self.sampling
        if isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete):
            return sampling.sigma(t.clamp(max=len(sampling.sigmas) - 1))
        if isinstance(sampling, comfy.model_sampling.ModelSamplingContinuousEDM):
            low, high = (
                sampling.timestep(sigma).to(t) for sigma in (sampling.sigma_min, sampling.sigma_max)
            )
            # One at a time: Cosmos Predict 2 compares a sigma with a number.
            times = low + (high - low) * t / 1000
            return torch.stack([sampling.sigma(time).to(t) for time in times])
        # At sigma 0 a flow's x_t equals x0, and the velocity cannot be computed from the two.
        sigma = sampling.sigma(t / 1000 * getattr(sampling, "multiplier", 1.0))
        return sigma.clamp(min=float(sampling.sigma_min))

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t from clean latents (N, ...) at timesteps (N,)."""
        return self.sampling.noise_scaling(like(self.sigma(t), x0), noise, x0)

    def target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the denoiser should predict at x_t: epsilon, v or velocity."""
        if type(self.sampling).calculate_denoised is comfy.model_sampling.EPS.calculate_denoised:
            return noise
        return self.prediction(self.add_noise(x0, noise, t), t, x0)

    def prediction(self, x_t: torch.Tensor, t: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """The denoiser's output that corresponds to x0: epsilon, v or velocity."""
        sigma = like(self.sigma(t), x_t)
        sampling = self.sampling
        if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
            data = sampling.sigma_data
            total = (sigma**2 + data**2).sqrt()
            return (x_t * data**2 / total**2 - x0) * total / (sigma * data)
        return (x_t - x0) / sigma

    def predict_x0(
        self, x_t: torch.Tensor, t: torch.Tensor, prediction: torch.Tensor
    ) -> torch.Tensor:
        """The x0 that corresponds to a prediction at x_t: the inverse of `prediction`."""
        sigma = like(self.sigma(t), x_t)
        sampling = self.sampling
        if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
            data = sampling.sigma_data
            total = (sigma**2 + data**2).sqrt()
            return x_t * data**2 / total**2 - prediction * sigma * data / total
        return x_t - sigma * prediction


def like(sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Noise levels (N,) in a shape that can be multiplied with x (N, ...)."""
    return sigma.to(x).view(-1, *[1] * (x.ndim - 1))
