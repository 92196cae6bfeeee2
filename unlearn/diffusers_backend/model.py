"""DiffusersModel: a diffusers pipeline as a DiffusionModel, for use without ComfyUI.

It computes the same as ComfyUI's backend (nodes/backend/model.py), in the same order and under the
same weight names. So a seed gives the same erasure in both, and one file serves both. It supports
Stable Diffusion 1.x, 2.x and XL, and AnimateDiff on any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..core.conditioning import Conditioning
from ..core.edit import HALF_GRADIENT_SCALE, Edit, scale_gradient
from ..core.erasure import NETWORK, fingerprint
from ..core.first_token import first_token_detached
from ..core.model import Part
from ..core.token_reading import Reading, reading
from ..core.token_slots import (
    Vocabulary,
    beside,
    fill_with_two_fillers,
    shared_words,
    slot_positions,
)
from ..core.trainable import encoder_weights, network_weights
from .comfy_names import encoder_modules, network_modules, view
from .dpm_solver import draw, noise_levels

SIDE = 8  # pixels of an image's side for each latent pixel
# The least signal of a schedule that ends in pure noise, so that sigma stays finite.
LEAST_SIGNAL = 4.8973451890853435e-08


class DiffusersModel:
    """A DiffusionModel (see unlearn.core.model) on a diffusers pipeline.

    x_t is x0 + sigma * noise, as in ComfyUI; the denoiser's input is x_t / sqrt(1 + sigma^2). For a
    video model, an image is a video of one frame. Prompts are cut off after the encoder's 77
    tokens, as in the pipelines. The pipeline's weights get requires_grad=False and are otherwise
    not changed.

    size: (height, width) of its pictures; None takes the denoiser's own. clip_skip: how many of the
    encoder's last layers are skipped, counted as in diffusers. checkpointing: recompute the
    denoiser's activations in the backward pass, which halves memory and takes a third more time.
    Raises ValueError for a pipeline of another kind, and for a clip_skip that leaves no layer.
    """

    def __init__(
        self,
        pipeline,
        size: tuple[int, int] | None = None,
        clip_skip: int = 0,
        checkpointing: bool = False,
    ) -> None:
        check_pipeline(pipeline)
        self.pipeline, self.clip_skip = pipeline, clip_skip
        self.network, self.vae = pipeline.unet, pipeline.vae
        self.encoders = _encoders(pipeline)
        self.check_clip_skip()
        self.size = size or _own_size(self.network)
        self.is_video = "motion_max_seq_length" in self.network.config
        sigmas = _sigmas(pipeline.scheduler)
        self.sigmas, self.log_sigmas = sigmas.float(), sigmas.log().float()
        modules = (self.network, self.vae, *(encoder for encoder, _ in self.encoders.values()))
        for module in modules:
            module.eval().requires_grad_(False)
        if checkpointing:
            self.network.enable_gradient_checkpointing()
        self.views = {
            "denoiser": view(network_modules(self.network)),
            "encoder": view(
                (f"{name}.transformer.{part}", module)
                for name, (encoder, _) in self.encoders.items()
                for part, module in encoder_modules(encoder)
            ),
        }
        """The modules of both parts under ComfyUI's names."""
        self.weights = _named(self.views["encoder"], "") | _named(self.views["denoiser"], NETWORK)
        """The original weights by ComfyUI's names."""
        self._rounded: dict[str, str] = {}
        """The fingerprints of weights before `halve` rounded them."""

    def check_clip_skip(self) -> None:
        """Raises ValueError where it leaves no layer."""
        for encoder, _ in self.encoders.values():
            # SDXL always skips the last layer.
            most = encoder.config.num_hidden_layers - 1 - self.is_xl
            if self.clip_skip > most:
                raise ValueError(
                    f"Clip skip is {self.clip_skip}, but this text encoder has "
                    f"{encoder.config.num_hidden_layers} layers; use at most {most}."
                )

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def layers(self) -> nn.Module:
        return self.views["denoiser"]

    @property
    def is_xl(self) -> bool:
        """Whether it is SDXL, whose denoiser also reads a pooled vector."""
        return self.network.config.addition_embed_type == "text_time"

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return self._conditioning([self._tokens(name, prompts) for name in self.encoders])

    def _tokens(self, name: str, prompts: Sequence[str]) -> torch.Tensor:
        """(N, tokens) token ids for an encoder, on its device."""
        _, tokenizer = self.encoders[name]
        return tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self._window(name),
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.device)

    def _window(self, name: str) -> int:
        """The most tokens that an encoder reads, with start and end."""
        encoder, tokenizer = self.encoders[name]
        return min(tokenizer.model_max_length, encoder.config.max_position_embeddings)

    @torch.no_grad()
    def vocabulary(self) -> Vocabulary:
        """The whole words that are one token in each encoder, and their concatenated vectors."""
        words, ids = shared_words(tokenizer.get_vocab() for _, tokenizer in self.encoders.values())
        tables = [
            encoder.get_input_embeddings().weight[own].float()
            for (encoder, _), own in zip(self.encoders.values(), ids)
        ]
        return beside(words, tables)

    def readings(self, words: str) -> list[Reading]:
        return [self._reading(name, words) for name in self.encoders]

    def _reading(self, name: str, words: str) -> Reading:
        _, tokenizer = self.encoders[name]

        def tokens(text: str) -> list[int]:
            return tokenizer(text, verbose=False).input_ids

        return reading(words, tokens, tokenizer.convert_ids_to_tokens, self._window(name))

    def token_count(self, words: str) -> int:
        return max(len(found.tokens) for found in self.readings(words))

    def encode_with_embeddings(
        self, sentences: Sequence[str], vectors: torch.Tensor
    ) -> Conditioning:
        count = vectors.shape[1]
        vectors = vectors.expand(len(sentences), -1, -1)
        ones, others = zip(*(fill_with_two_fillers(sentence, count) for sentence in sentences))
        tables = [encoder.get_input_embeddings() for encoder, _ in self.encoders.values()]
        widths, tokens = [table.weight.shape[1] for table in tables], []
        with ExitStack() as stack:
            for name, table, part in zip(self.encoders, tables, vectors.split(widths, 2)):
                tokens.append(self._tokens(name, ones))
                pairs = zip(tokens[-1].tolist(), self._tokens(name, others).tolist())
                columns = torch.tensor([slot_positions(*pair, count) for pair in pairs])
                rows = torch.arange(len(columns))[:, None]

                def fill(module, inputs, output, at=(rows, columns), part=part):
                    return output.index_put(at, part.to(output))

                stack.callback(table.register_forward_hook(fill).remove)
            return self._conditioning(tokens)

    def _conditioning(self, tokens: Sequence[torch.Tensor]) -> Conditioning:
        """The conditioning of tokens: (N, tokens) for each encoder."""
        crosses, pooled = [], None
        for (encoder, _), ids in zip(self.encoders.values(), tokens):
            output = encoder(ids, output_hidden_states=True)
            if self.is_xl:
                # SDXL reads the layer before the last, without the final norm.
                crosses.append(output.hidden_states[-2 - self.clip_skip])
                pooled = getattr(output, "text_embeds", pooled)
            elif self.clip_skip:
                text = getattr(encoder, "text_model", encoder)
                hidden = output.hidden_states[-1 - self.clip_skip]
                crosses.append(text.final_layer_norm(hidden))
            else:
                crosses.append(output.last_hidden_state)
        cross = torch.cat(crosses, -1).float()
        return Conditioning(cross, None if pooled is None else pooled.float())

    @property
    def told_guidance(self) -> bool:
        return False

    @property
    def has_autoencoder(self) -> bool:
        return True

    @torch.no_grad()
    def encode_images(
        self, images: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        height, width = (side // SIDE * SIDE for side in images.shape[1:3])
        if not height or not width:
            raise ValueError(
                f"The pictures have {images.shape[2]} x {images.shape[1]} pixels, but this model "
                f"needs at least {SIDE} x {SIDE}; use larger ones."
            )
        top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
        pixels = images[:, top : top + height, left : left + width, :3].movedim(-1, 1) * 2 - 1
        # One by one: the autoencoder needs more memory than the rest of the model.
        pixels = pixels.to(self.device, self.vae.dtype)
        parts = [self._encoded(one, generator) for one in pixels.split(1)]
        config = self.vae.config
        return (torch.cat(parts).float() - (config.shift_factor or 0.0)) * config.scaling_factor

    def _encoded(self, pixels: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        output = self.vae.encode(pixels)
        if "latents" in output:
            return output.latents
        said = output.latent_dist
        if generator is None:
            return said.mode()
        noise = torch.randn(said.mean.shape, generator=generator)
        return said.mean + said.std * noise.to(said.mean)

    @torch.no_grad()
    def decode_latents(self, x0: torch.Tensor) -> torch.Tensor:
        config = self.vae.config
        latents = x0.float() / config.scaling_factor + (config.shift_factor or 0.0)
        parts = [self.vae.decode(one.to(self.vae.dtype)).sample for one in latents.split(1)]
        return ((torch.cat(parts).float() + 1) / 2).clamp(0, 1).movedim(1, -1).cpu()

    def _sigma(self, t: torch.Tensor) -> torch.Tensor:
        """The noise levels of timesteps in 0..1000; log sigma is interpolated between the
        schedule's timesteps."""
        logs = self.log_sigmas.to(t.device)
        t = t.float().clamp(0, len(logs) - 1)
        share = t.frac()
        return ((1 - share) * logs[t.floor().long()] + share * logs[t.ceil().long()]).exp()

    @staticmethod
    def _like(sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """sigma, (N,), in a shape that broadcasts over x, (N, ...)."""
        return sigma.to(x).view(-1, *[1] * (x.ndim - 1))

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x0 + self._like(self._sigma(t), x0) * noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if not self._predicts_v:
            return noise
        sigma = self._like(self._sigma(t), x0)
        return (noise - sigma * x0) / (sigma**2 + 1).sqrt()

    def predict_x0(
        self, x_t: torch.Tensor, t: torch.Tensor, prediction: torch.Tensor
    ) -> torch.Tensor:
        return self._clean(x_t, self._like(self._sigma(t), x_t), prediction)

    def _clean(
        self, x_t: torch.Tensor, sigma: torch.Tensor, prediction: torch.Tensor
    ) -> torch.Tensor:
        if not self._predicts_v:
            return x_t - sigma * prediction
        return x_t / (sigma**2 + 1) - prediction * sigma / (sigma**2 + 1).sqrt()

    @property
    def _predicts_v(self) -> bool:
        return self.pipeline.scheduler.config.prediction_type == "v_prediction"

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        return self._predict(x_t, self._sigma(t), conditioning)

    def _predict(
        self, x_t: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """The denoiser's prediction at noise levels sigma, (N,), for the nearest timesteps."""
        logs = self.log_sigmas.to(sigma.device)
        t = (sigma.log() - logs[:, None]).abs().argmin(0)
        scale, dtype = self._gradient_scale, self.network.dtype
        x = (x_t / (self._like(sigma, x_t) ** 2 + 1).sqrt()).to(dtype)
        cross = scale_gradient(conditioning.cross.to(self.device), 1 / scale).to(dtype)
        more = {}
        if self.is_xl and conditioning.pooled is not None:
            pooled = scale_gradient(conditioning.pooled.to(self.device), 1 / scale)
            more["added_cond_kwargs"] = {
                "text_embeds": pooled.to(dtype),
                "time_ids": self._time_ids(x).to(dtype),
            }
        x = x[:, :, None] if self.is_video else x
        output = self.network(x, t, encoder_hidden_states=cross, **more).sample
        output = output[:, :, 0] if self.is_video else output
        return scale_gradient(output.float(), scale)

    @staticmethod
    def _time_ids(x: torch.Tensor) -> torch.Tensor:
        """(N, 6) SDXL's numbers for a picture: original size, crop, size."""
        height, width = (side * SIDE for side in x.shape[-2:])
        return torch.tensor([[height, width, 0, 0, height, width]] * len(x), device=x.device)

    @property
    def _gradient_scale(self) -> float:
        return HALF_GRADIENT_SCALE if self.network.dtype == torch.float16 else 1.0

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str] | Conditioning,
        seed: int,
        steps: int = 20,
        guidance: float = 7.5,
    ) -> torch.Tensor:
        """Clean latents of pictures of `size`, one per prompt, by the sampler of ComfyUI's
        backend. The first prompt's noise has the seed `seed`, each next one a seed higher."""
        count = len(prompts)
        own = prompts if isinstance(prompts, Conditioning) else self.encode(prompts)
        both = Conditioning.cat([own, self.encode([""]).repeated(count)])
        generators = [torch.Generator().manual_seed(seed + i) for i in range(count)]
        noise = torch.cat([self.noise(1, generator) for generator in generators])
        sigmas = noise_levels(steps, self.sigmas[0].item(), self.sigmas[-1].item())

        def denoised(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            level = sigma.to(x).expand(2 * count)
            pair = torch.cat([x, x])
            x0 = self._clean(pair, self._like(level, pair), self._predict(pair, level, both))
            conditional, unconditional = x0.chunk(2)
            return unconditional + guidance * (conditional - unconditional)

        return draw(denoised, noise * (1 + sigmas[0] ** 2).sqrt().to(noise), sigmas)

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        shape = self.network.config.in_channels, *(side // SIDE for side in self.size)
        return torch.randn(count, *shape, generator=generator).to(self.device)

    def release_saved_tensors(self) -> None:
        """Nothing to do: autograd frees them with its graphs."""

    @contextmanager
    def edit(self, part: Part, select: str, rank: int = 0, seed: int = 0) -> Iterator[Edit]:
        """Make weights trainable inside the block. select: one of those in core/trainable.py for
        the part.

        With "cross-attention-kv" no gradient flows through the first token (core/first_token.py).
        """
        edit = Edit(self.selected(part, select), rank, seed)
        root, prefix = self.views[part], "" if part == "encoder" else NETWORK
        if part == "denoiser":
            edit.gradient_scale = 1 / self._gradient_scale
        names = {key.removeprefix(prefix).rpartition(".")[0] for key in edit.deltas}
        without_first = names if select == "cross-attention-kv" else ()
        with edited(root, edit, prefix), first_token_detached(root, without_first):
            yield edit

    def selected(self, part: Part, select: str) -> dict[str, torch.Tensor]:
        """The weights that `select` names in a part, by ComfyUI's names."""
        if part == "denoiser":
            found = network_weights(self.views["denoiser"], select)
            return {NETWORK + name: weight for name, weight in found.items()}
        weights: dict[str, torch.Tensor] = {}
        for name in self.encoders:
            root = self.views["encoder"].get_submodule(name)
            found = encoder_weights(root, select, self._unread_layers(name))
            weights |= {f"{name}.{key}": weight for key, weight in found.items()}
        return weights

    def encoder_layers(self) -> list[tuple[str, nn.Module]]:
        found = []
        for name, (encoder, _) in self.encoders.items():
            layers = getattr(encoder, "text_model", encoder).encoder.layers
            prefix = f"{name}.transformer.text_model.encoder.layers"
            read = len(layers) - self._unread_layers(name)
            found += [(f"{prefix}.{i}", layer) for i, layer in enumerate(layers[:read])]
        return found

    def batches(self, prompts: Sequence[str], tokens: int) -> list[list[int]]:
        size, numbers = max(1, tokens // max(map(self._window, self.encoders))), range(len(prompts))
        return [list(numbers[i : i + size]) for i in numbers[::size]]

    def read(self, prompts: Sequence[str]) -> None:
        self.encode(prompts)

    def _unread_layers(self, encoder: str) -> int:
        """How many of an encoder's last layers do not reach the conditioning."""
        if not self.is_xl:
            return self.clip_skip
        # The pooled vector comes from the last layer of CLIP-G.
        return 0 if encoder == "clip_g" else 1 + self.clip_skip

    def fingerprints(self, keys: Iterable[str]) -> dict[str, str]:
        """Hashes of the pipeline's original weights, by key. Raises KeyError for an unknown key."""
        return {key: self._rounded.get(key) or fingerprint(self.weights[key]) for key in keys}

    def halve(self, dtype: torch.dtype) -> None:
        """Convert the denoiser to half precision. `fingerprints` stay those of the weights before,
        so an erasure still names them as its base."""
        keys = [key for key in self.weights if key.startswith(NETWORK)]
        if dtype == torch.bfloat16:  # fingerprints are of float16, so float16 does not change them
            self._rounded = self.fingerprints(keys)
        self.network.to(dtype)


def check_pipeline(pipeline) -> None:
    """Raises ValueError for a pipeline that DiffusersModel does not support."""
    kind = type(pipeline).__name__
    known = "use Stable Diffusion 1.x, 2.x or XL, or AnimateDiff on one of these."
    missing = [
        part
        for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
        if getattr(pipeline, part, None) is None
    ]
    if missing:
        raise ValueError(f"This pipeline is a {kind} and has no {' or '.join(missing)}; {known}")
    channels = pipeline.unet.config.in_channels, pipeline.unet.config.out_channels
    if channels[0] != channels[1]:
        raise ValueError(
            f"This pipeline's UNet has {channels[0]} input and {channels[1]} output channels, as "
            f"models for inpainting or editing have; {known}"
        )
    if pipeline.unet.config.addition_embed_type not in (None, "text_time"):
        raise ValueError(f"This pipeline's UNet has inputs other than text; {known}")
    if pipeline.unet.config.addition_embed_type and not getattr(pipeline, "text_encoder_2", None):
        raise ValueError(f"This pipeline lacks the second text encoder of an SDXL model; {known}")
    wide = pipeline.unet.config.cross_attention_dim
    widths = [encoder.config.hidden_size for encoder, _ in _encoders(pipeline).values()]
    if isinstance(wide, int) and wide != sum(widths):
        raise ValueError(
            f"This pipeline's UNet reads text of width {wide}, but its text encoder's width is "
            f"{' and '.join(map(str, widths))}; name a model whose parts belong together."
        )
    latent = pipeline.vae.config.get("latent_channels", channels[0])
    if latent != channels[0]:
        raise ValueError(
            f"This pipeline's UNet has {channels[0]} input channels, but its VAE's latents have "
            f"{latent}; name a model whose parts belong together."
        )
    if not isinstance(getattr(pipeline.scheduler, "betas", None), torch.Tensor):
        raise ValueError(
            f"This pipeline's {type(pipeline.scheduler).__name__} is for flow or EDM models, which "
            "are not supported; name a model with a scheduler such as DDIMScheduler."
        )
    prediction = pipeline.scheduler.config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"This pipeline's {type(pipeline.scheduler).__name__} has the prediction type "
            f"{prediction!r}; name a model with epsilon or v_prediction."
        )


def _encoders(pipeline) -> dict[str, tuple[nn.Module, Any]]:
    """(encoder, tokenizer) by ComfyUI's name of the encoder."""
    first = pipeline.text_encoder, pipeline.tokenizer
    if getattr(pipeline, "text_encoder_2", None) is not None:
        return {"clip_l": first, "clip_g": (pipeline.text_encoder_2, pipeline.tokenizer_2)}
    # Stable Diffusion 2 reads OpenCLIP-H.
    wide = pipeline.text_encoder.config.hidden_size == 1024
    return {"clip_h" if wide else "clip_l": first}


def _own_size(unet: nn.Module) -> tuple[int, int]:
    sides = 64 if unet.config.sample_size is None else unet.config.sample_size
    sides = [sides, sides] if isinstance(sides, int) else sides
    counts = isinstance(sides, (list, tuple)) and [s for s in sides if type(s) is int and s > 0]
    if not counts or not len(sides) == len(counts) == 2:
        raise ValueError(
            f"The UNet's config.json has the sample_size {unet.config.sample_size!r}, which is "
            "neither a side nor a height and a width; download or save it again."
        )
    height, width = sides
    return height * SIDE, width * SIDE


def _sigmas(scheduler) -> torch.Tensor:
    """The noise level sigma of each timestep. In double precision, since 1 - signal is tiny at the
    clean end."""
    config, betas = scheduler.config, scheduler.betas.double()
    if config.get("beta_schedule") == "scaled_linear":
        ends = config.beta_start**0.5, config.beta_end**0.5
        exact = torch.linspace(*ends, len(betas), dtype=torch.float64) ** 2
        # Unless the scheduler changed its betas.
        betas = exact if torch.allclose(exact, betas, rtol=1e-5) else betas
    signal = torch.cumprod(1 - betas, 0).clamp(min=LEAST_SIGNAL)
    return ((1 - signal) / signal).sqrt()


def _named(root: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: parameter for name, parameter in root.named_parameters()}


class _Changed(nn.Module):
    """The parametrization that gives a weight as the edit has it."""

    def __init__(self, edit: Edit, key: str) -> None:
        super().__init__()
        self.edit, self.key = edit, key

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return self.edit.changed(self.key, weight)


@contextmanager
def edited(root: nn.Module, edit: Edit, prefix: str) -> Iterator[None]:
    """Inside the block every use of a weight in `edit` goes through `edit.changed`.

    The edit's keys are `prefix` and the weights' names under `root`. Afterwards the modules hold
    the same parameters in the same order as before.
    """
    with ExitStack() as stack:
        for key in edit.deltas:
            path, _, name = key.removeprefix(prefix).rpartition(".")
            module = root.get_submodule(path)
            before = dict(module._parameters)
            # "unsafe" skips a check of the shape, which does not change.
            parametrize.register_parametrization(module, name, _Changed(edit, key), unsafe=True)
            stack.callback(_restore, module, name, before)
        yield


def _restore(module: nn.Module, name: str, before: dict) -> None:
    parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    module._parameters.clear()
    module._parameters.update(before)
