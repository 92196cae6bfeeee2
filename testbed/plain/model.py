"""A diffusers pipeline as research code takes it: its modules, called directly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Context = tuple[torch.Tensor, torch.Tensor | None]
"""(N, tokens, width) hidden states, and with SDXL the pooled vectors (N, width)."""
OnStep = Callable[[int, float], object]
"""Called after each step with its number, from 1, and its loss."""


class PlainModel:
    """Stable Diffusion 1.5 or XL that predicts noise. Nothing is trainable until a loop says so.

    An autoencoder may be missing (None), where no loop needs one.
    """

    def __init__(self, pipeline) -> None:
        found = [getattr(pipeline, "text_encoder_2", None), getattr(pipeline, "tokenizer_2", None)]
        self.text = [(pipeline.text_encoder, pipeline.tokenizer)]
        self.is_xl = found[0] is not None
        if self.is_xl:
            self.text.append(tuple(found))
        self.unet, self.vae = pipeline.unet, getattr(pipeline, "vae", None)
        self.device = self.unet.device
        self.signal = pipeline.scheduler.alphas_cumprod.to(self.device)
        for module in (self.unet, self.vae, *(encoder for encoder, _ in self.text)):
            if module is not None:
                module.requires_grad_(False)

    def encode(self, prompts: Sequence[str]) -> Context:
        states, pooled = [], None
        for encoder, tokenizer in self.text:
            told = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
            ids = tokenizer(list(prompts), max_length=77, **told).input_ids.to(self.device)
            output = encoder(ids, output_hidden_states=True)
            # SDXL reads the layer before the last.
            states.append(output.hidden_states[-2] if self.is_xl else output.last_hidden_state)
            pooled = getattr(output, "text_embeds", None)
        return torch.cat(states, -1), pooled

    @torch.no_grad()
    def encode_pictures(self, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Latents of pictures (N, 3, H, W) in 0..1, drawn from what the autoencoder says."""
        said = self.vae.encode(2 * pictures.to(self.device) - 1)
        # A tiny autoencoder says the latents themselves.
        x0 = said.latents if "latents" in said else said.latent_dist.sample(generator)
        return (x0 - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor

    def predict(
        self, unet: torch.nn.Module, x: torch.Tensor, t: torch.Tensor, context: Context
    ) -> torch.Tensor:
        """The noise prediction of a denoiser, (N, ...), at timesteps t, (N,)."""
        states, pooled = context
        more = {}
        if pooled is not None:
            height, width = (8 * side for side in x.shape[-2:])
            sizes = torch.tensor([[height, width, 0, 0, height, width]] * len(x), device=x.device)
            more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
        return unet(x, t, encoder_hidden_states=states, **more).sample

    def shares(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(of the picture, of the noise) in a latent at timesteps t, (N, 1, 1, 1) each."""
        signal = self.signal[t.long()].view(-1, 1, 1, 1)
        return signal.sqrt(), (1 - signal).sqrt()

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        picture, noisy = self.shares(t)
        return picture * x0 + noisy * noise

    def predict_x0(self, x: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The clean latents that a noise prediction implies."""
        picture, noisy = self.shares(t)
        return (x - noisy * noise) / picture


def trainable(module: torch.nn.Module, chosen: Callable[[str], bool]) -> list[torch.nn.Parameter]:
    """The parameters of a module whose names are chosen, from now on with gradients."""
    found = [weight for name, weight in module.named_parameters() if chosen(name)]
    for weight in found:
        weight.requires_grad_(True)
    return found
