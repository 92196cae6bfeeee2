"""ComfyModel: ComfyUI's MODEL, CLIP and VAE as one DiffusionModel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import replace
from functools import cached_property

import comfy.model_management as management
import comfy.model_sampling
import comfy.sample
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP, get_all_wrappers
from torch.utils._pytree import tree_leaves, tree_map

from ...unlearn.core.conditioning import Conditioning
from ...unlearn.core.edit import HALF_GRADIENT_SCALE, Edit, scale_gradient
from ...unlearn.core.erasure import NETWORK
from ...unlearn.core.first_token import first_token_detached
from ...unlearn.core.model import Part
from ...unlearn.core.token_reading import Reading
from ...unlearn.core.token_slots import (
    Vocabulary,
    beside,
    fill_with_two_fillers,
    shared_words,
    slot_positions,
)
from ...unlearn.core.trainable import encoder_weights, network_weights
from .aliasing import aliased
from .checks import autoencoder, check_clip, check_patcher, check_vae, check_vae_fits
from .differentiable import differentiable, trainable_kernels
from .dynamic_vram import static_clip, static_model
from .identity import fingerprints, without_hooks
from .memory import MEASURED, Planned
from .packed import unpacked_for_products
from .patching import edited
from .read_depth import check_read, handed_on_besides, is_spoilt, spoilt, unread_layers
from .recompute import checkpointed
from .version import told_with_version
from .words import encoder_names, part_named, readings, tokenized

# How the host comes from a network's output to x0, where that output is epsilon, v or velocity.
OWN_OUTPUT = tuple(
    kind.calculate_denoised
    for kind in (
        comfy.model_sampling.EPS,
        comfy.model_sampling.V_PREDICTION,
        comfy.model_sampling.CONST,
    )
)


class ComfyModel(Planned):
    """A DiffusionModel (see unlearn.core.model) on what a ComfyUI graph hands over.

    Use it inside `with model.training():`, in which gradients are possible and after which every
    weight is what it was. vae is needed for `encode_images` and `decode_latents` only.
    """

    def __init__(
        self,
        model,
        clip,
        vae=None,
        size: tuple[int, int] = (512, 512),
        checkpointing: bool | None = None,
    ) -> None:
        check_clip(clip)
        check_patcher(model, "MODEL")
        check_patcher(clip.patcher, "CLIP")
        self.patcher, self.clip = static_model(model), static_clip(without_hooks(clip))
        self.vae = autoencoder(vae)
        if self.vae is not None:
            check_vae_fits(self.vae, model.model)
        check_size(model.model, size)
        self.size, self.checkpointing = size, checkpointing
        self._room = 0  # bytes to be left free beside the models
        self.device = model.load_device
        self._saved = None  # what autograd keeps while `training`
        self._began = False  # whether a step has gone well

    @property
    def network(self) -> torch.nn.Module:
        return self.patcher.model

    @property
    def layers(self) -> torch.nn.Module:
        return self.network.diffusion_model

    @property
    def sampling(self) -> torch.nn.Module:
        """Noise levels and what the network predicts. By the patcher: the module's own may be
        another branch's, and is the checkpoint's while the host has the network unloaded."""
        return self.patcher.get_model_object("model_sampling")

    @property
    def encoder(self) -> torch.nn.Module:
        return self.clip.cond_stage_model

    def _weights(self, part: Part, select: str) -> dict[str, torch.Tensor]:
        """What `select` means in a part, by the host's names."""
        if part == "encoder":
            return encoder_weights(self.encoder, select, self._unread)
        found = network_weights(self.network.diffusion_model, select)
        return {NETWORK + key: weight for key, weight in found.items()}

    @told_with_version()
    def check_encoder(self) -> None:
        """Raises ValueError when the text encoder is not of the kind that this network reads."""
        check_read(self.network, self.clip)

    @contextmanager
    def training(self, gradients: bool = True) -> Iterator[ComfyModel]:
        """Gradients through the host's modules, none of whose weights changes or is copied.

        `in_training` makes the host choose kernels that have a backward pass. Encoders write into
        their activations, which autograd must be allowed to survive. gradients: whether there are
        any; without them all is computed alike, in less time.
        """
        was_training, encoder = management.in_training, self.clip.patcher
        with ExitStack() as stack:
            stack.enter_context(told_with_version(lambda: self._began))
            # The weights that the host brings to the card are of the kind that it leaves them in.
            with torch.inference_mode():
                self._load()
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(gradients))
            stack.enter_context(in_one_stream())
            stack.enter_context(trainable_kernels(self.encoder))
            stack.enter_context(aliased((self.network, self.encoder)))
            stack.callback(setattr, management, "in_training", was_training)
            management.in_training = True
            parts = (self.layers, self.device), (self.encoder, encoder.load_device)
            stack.enter_context(unpacked_for_products(parts))
            modules = (self.layers, self.encoder)
            stack.enter_context(checkpointed(modules, bool(self.checkpointing)))
            if gradients:  # it looks at every single operation
                self._saved = stack.enter_context(
                    torch.autograd.graph.allow_mutation_on_saved_tensors()
                )
            try:
                yield self
            except BaseException:
                # What is left of a backward pass that failed, its whole graph, PyTorch holds until
                # the next one in this thread.
                with torch.enable_grad():
                    torch.zeros((), requires_grad=True).backward()
                raise
            finally:
                self._saved = None

    def _load(self) -> None:
        """Network and text encoder onto the device, as much of them as fits."""
        models = [self.patcher, self.clip.patcher]
        management.load_models_gpu(models, memory_required=self._room)
        if self._room:  # of what is free the host gives a part to weights in any case
            management.free_memory(self._room, self.device)

    def _ready(self) -> None:
        """Load again what the host has unloaded since, short of memory for something else.

        The autoencoder may have taken the network's place, and the encoder, which the host loads by
        itself, too.
        """
        if not self._is_loaded():
            self._load()

    def _make_room(self) -> None:
        """Again, where it was made and the host has since filled it with weights, as it does
        whenever it draws."""
        if self._room:
            self._load()

    def _is_loaded(self) -> bool:
        patchers = self.patcher, self.clip.patcher
        return all(p.model.current_weight_patches_uuid == p.patches_uuid for p in patchers)

    def release_saved_tensors(self) -> None:
        """Let go of activations saved for backward passes that are over or never came.

        They hold the very graphs that hold them: without this a graph that is not gone through to
        its end, as with two gradients of one step, stays until the training is over.
        """
        self._began = True
        if self._saved is not None:
            self._saved.clear()

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of prompts in plain words, (N, tokens, width): as CLIPTextEncode would make
        it, but for weights and the like."""
        return self._conditioning([tokenized(self.clip, prompt) for prompt in prompts])

    def _conditioning(self, tokens: list[dict]) -> Conditioning:
        if self._stackable(tokens):
            # The host encodes the sections of a long prompt as one batch; these are N short ones.
            sections = {name: [t[name][0] for t in tokens] for name in tokens[0]}
            output = self._encode(sections)
            cross = output.pop("cond").unflatten(1, (len(tokens), -1))[0]
            output.pop("pooled_output", None)
            if "attention_mask" in output:
                output["attention_mask"] = output["attention_mask"].view(len(tokens), -1)
            return self._here(cross, None, output)
        return Conditioning.cat([self._one(t) for t in tokens])

    @torch.no_grad()
    def vocabulary(self) -> Vocabulary:
        """Whole words with a token in each of the encoders, and its vectors side by side."""
        names = encoder_names(self.clip, self.clip.tokenize(""))
        words, numbers = shared_words(
            {token: i for i, token in part_named(self.clip.tokenizer, name).inv_vocab.items()}
            for name in names
        )
        # By the layer and not from its weight: Gemma's makes the vectors larger.
        tables = [
            layer(torch.tensor(some, device=layer.weight.device).long(), out_dtype=torch.float32)
            for layer, some in zip(map(self._embedding, names), numbers)
        ]
        return beside(words, [table.to(self.device) for table in tables])

    def readings(self, words: str) -> list[Reading]:
        return readings(self.clip, words)

    def token_count(self, words: str) -> int:
        return max(len(one.tokens) for one in self.readings(words))

    def encode_with_embeddings(
        self, sentences: Sequence[str], vectors: torch.Tensor
    ) -> Conditioning:
        """The host takes a token's vector where its number would stand, as it does for textual
        inversions."""
        vectors = vectors.expand(len(sentences), -1, -1)
        tokens = [self._filled(*pair) for pair in zip(sentences, vectors)]
        try:
            return self._conditioning(tokens)
        except (RuntimeError, ValueError) as error:
            # The host's code for HunyuanVideo 1 compares the first token with a number, that for
            # Lens makes one of each.
            if not any(part in str(error) for part in ("Boolean value of", "can be converted to")):
                raise
            raise ValueError(
                "ComfyUI takes no vectors at the beginning of a prompt for this text encoder, so "
                "it can neither be attacked by words nor hardened."
            ) from error

    def _filled(self, sentence: str, vectors: torch.Tensor) -> dict:
        """Tokens of a sentence with vectors (tokens, width) in its gap."""
        one, other = (
            tokenized(self.clip, text) for text in fill_with_two_fillers(sentence, len(vectors))
        )
        names = encoder_names(self.clip, one)
        widths = [self._embedding(name).weight.shape[1] for name in names]
        for name, part in zip(names, vectors.split(widths, 1)):
            flat = [(s, i) for s, section in enumerate(one[name]) for i in range(len(section))]
            ids = ([tokens[name][s][i][0] for s, i in flat] for tokens in (one, other))
            for place, vector in zip(slot_positions(*ids, len(vectors)), part):
                s, i = flat[place]
                one[name][s][i] = (vector, *one[name][s][i][1:])
        return one

    def _embedding(self, name: str) -> torch.nn.Module:
        """The layer that makes vectors of tokens."""
        return part_named(self.encoder, name).transformer.get_input_embeddings()

    def _one(self, tokens: dict) -> Conditioning:
        output = self._encode(tokens)
        if beyond := handed_on_besides(output):
            raise ValueError(
                f"What a prompt quotes is read by a text encoder of its own ({', '.join(beyond)}), "
                "and the methods here would lose that: leave the quotation marks out."
            )
        return self._here(output.pop("cond"), output.pop("pooled_output", None), output)

    def _here(self, cross: torch.Tensor, pooled: torch.Tensor | None, extra: dict) -> Conditioning:
        """Conditioning where the network is: the host leaves an encoder's output on the CPU."""
        found = {"cross": cross, "pooled": pooled, "extra": extra}
        return Conditioning(
            **tree_map(lambda x: x.to(self.device) if torch.is_tensor(x) else x, found)
        )

    def _encode(self, tokens: dict) -> dict:
        self._ready()
        clip = self.clip
        if self._room:
            # Loaded once more by itself, it would fill the room that was made beside it.
            clip, patcher = copy(clip), clip.patcher
            clip.load_model = lambda tokens=None: patcher
        return clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True)

    def _stackable(self, tokens: list[dict]) -> bool:
        """Whether prompts can go through the encoder at once: one section each, all of one length,
        no weighted words, and an encoder that hands on every token and nothing else."""
        if len(tokens) == 1 or not self._hands_on_tokens:
            return False
        sections = [section for t in tokens for section in t.values()]
        return (
            all(len(section) == 1 for section in sections)
            and len({len(section[0]) for section in sections}) == 1
            and all(token[1] == 1.0 for section in sections for token in section[0])
        )

    @cached_property
    def _hands_on_tokens(self) -> bool:
        """Whether all that the network is given of a prompt is one vector for each of its tokens.

        Not where it reads the pooled vector, which the host makes of the first section only, nor
        where a template's tokens are cut off behind the encoder.
        """
        with torch.no_grad():
            tokens = self.clip.tokenize(MEASURED)
            prompt = self._one(tokens)
            if len(tokens) > 1 or prompt.cross.shape[1] != len(next(iter(tokens.values()))[0]):
                return False
            return not is_spoilt(self._given(replace(prompt, pooled=spoilt(prompt.pooled))))

    @cached_property
    def _unread(self) -> dict[str, int]:
        """Of each stack of the encoder's layers, how many at its end the network is given nothing
        of."""
        return unread_layers(self.encoder, lambda: self._given(self.encode([MEASURED])))

    def _given(self, prompt: Conditioning) -> list[torch.Tensor]:
        """What the network gets of one prompt."""
        self._load()
        conds = self._conds(self.noise(1, torch.Generator()), prompt)
        leaves = tree_leaves([cond.cond for cond in conds.values()])
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        check_vae(self.vae)
        with torch.no_grad():
            # One by one: a video model's VAE would take several for the frames of one video.
            parts = [self.vae.encode(one[..., :3]) for one in images.split(1)]
            self._make_room()
            return self.network.process_latent_in(torch.cat(parts).float()).to(self.device)

    def decode_latents(self, x0: torch.Tensor) -> torch.Tensor:
        check_vae(self.vae)
        with torch.no_grad():
            pictures = self.vae.decode(self.network.process_latent_out(x0.float()))
            self._make_room()
            if pictures.ndim == 5:  # a video model: its first frames
                pictures = pictures[:, 0]
            # Qwen-Image 2.1's autoencoder gives how opaque they are, too.
            return pictures[..., :3].clamp(0, 1).cpu()

    def _sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Noise level of timesteps in 0..1000."""
        sampling = self.sampling
        if isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete):
            return sampling.sigma(t.clamp(max=len(sampling.sigmas) - 1))
        if isinstance(sampling, comfy.model_sampling.ModelSamplingContinuousEDM):
            low, high = (
                sampling.timestep(sigma).to(t) for sigma in (sampling.sigma_min, sampling.sigma_max)
            )
            # One by one: Cosmos Predict 2's compares it with a number.
            times = low + (high - low) * t / 1000
            return torch.stack([sampling.sigma(time).to(t) for time in times])
        # Of a flow without noise there is no velocity to be told from its two ends.
        sigma = sampling.sigma(t / 1000 * getattr(sampling, "multiplier", 1.0))
        return sigma.clamp(min=float(sampling.sigma_min))

    @staticmethod
    def _like(sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return sigma.to(x).view(-1, *[1] * (x.ndim - 1))

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.sampling.noise_scaling(self._like(self._sigma(t), x0), noise, x0)

    def target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if type(self.sampling).calculate_denoised is comfy.model_sampling.EPS.calculate_denoised:
            return noise
        return self._prediction(self.add_noise(x0, noise, t), t, x0)

    def _prediction(self, x_t: torch.Tensor, t: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """The network's output that means x0: epsilon (or a flow's velocity), or v."""
        sigma = self._like(self._sigma(t), x_t)
        sampling = self.sampling
        if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
            data = sampling.sigma_data
            total = (sigma**2 + data**2).sqrt()
            return (x_t * data**2 / total**2 - x0) * total / (sigma * data)
        return (x_t - x0) / sigma

    def predict_x0(
        self, x_t: torch.Tensor, t: torch.Tensor, prediction: torch.Tensor
    ) -> torch.Tensor:
        sigma = self._like(self._sigma(t), x_t)
        sampling = self.sampling
        if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
            data = sampling.sigma_data
            total = (sigma**2 + data**2).sqrt()
            return x_t * data**2 / total**2 - prediction * sigma * data / total
        return x_t - sigma * prediction

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        self._ready()
        scale = self._gradient_scale
        lifted = replace(
            conditioning,
            cross=scale_gradient(conditioning.cross.to(self.device), 1 / scale),
            pooled=None
            if conditioning.pooled is None
            else scale_gradient(conditioning.pooled, 1 / scale),
        )
        # As the host does: each prompt's by itself, together where they allow it.
        each = [
            self._conds(x_t[i : i + 1], lifted.single(i % len(lifted))) for i in range(len(x_t))
        ]
        first, others = each[0], each[1:]
        if all(first[k].can_concat(other[k]) for other in others for k in first):
            conds = {k: first[k].concat([other[k] for other in others]) for k in first}
            output = self._predicted(x_t, t, conds)
        else:
            conds = [{k: cond.cond for k, cond in one.items()} for one in each]
            parts = zip(x_t.split(1), t.split(1), conds)
            output = torch.cat([self._predicted(*part) for part in parts])
        return scale_gradient(output, scale)

    def _conds(self, x_t: torch.Tensor, conditioning: Conditioning) -> dict:
        """What the network is given beside x_t (1, ...) and its noise level, as the host has it."""
        known = {
            **conditioning.extra,
            "cross_attn": conditioning.cross,
            "pooled_output": conditioning.pooled,  # some networks look for it, None or not
            "noise": x_t,
            # What an inpainting model is to keep: nothing.
            "latent_image": torch.zeros_like(x_t),
            # LTX 2 would have sound beside the pictures; this says that there is none.
            "latent_shapes": [x_t.shape],
            "device": self.device,
            "width": x_t.shape[-1] * 8,
            "height": x_t.shape[-2] * 8,
            "prompt_type": "positive",
        }
        conds = self.network.extra_conds(**known)
        return {name: cond.process_cond(batch_size=1, area=None) for name, cond in conds.items()}

    def _predicted(self, x_t: torch.Tensor, t: torch.Tensor, conds: dict) -> torch.Tensor:
        sigma = self._sigma(t).to(x_t)
        options = {
            **self.patcher.model_options.get("transformer_options", {}),
            "optimized_attention_override": differentiable,
            # What the host's sampler tells, and some patches of the MODEL ask for.
            "cond_or_uncond": [0],
            "sigmas": sigma,
        }
        outputs = []
        handle = self.layers.register_forward_hook(lambda *call: outputs.append(call[-1]))
        try:
            x0 = self.network.apply_model(x_t, sigma, transformer_options=options, **conds)
        finally:
            handle.remove()
        if self._is_exact and not get_all_wrappers(WrappersMP.APPLY_MODEL, options):
            # Told back from x0, it would have lost a millionth of itself under little noise.
            shapes = [getattr(output, "shape", None) for output in outputs]
            if shapes == [x_t.shape]:
                return outputs[0].float()
        return self._prediction(x_t, t, x0.float())

    @property
    def _is_exact(self) -> bool:
        """Whether what the network gives out is just what `_prediction` tells back from x0."""
        return type(self.sampling).calculate_denoised in OWN_OUTPUT

    @property
    def _gradient_scale(self) -> float:
        half = self.network.get_dtype_inference() == torch.float16
        return HALF_GRADIENT_SCALE if half else 1.0

    def sample(
        self,
        prompts: Sequence[str] | Conditioning,
        seed: int,
        steps: int = 20,
        guidance: float = 7.5,
    ) -> torch.Tensor:
        """Clean latents of pictures of `size`, one a prompt, by the host's dpmpp_2m sampler.

        A network that is told its guidance as a number, as Flux dev and HunyuanVideo 1, draws by
        that: classifier-free guidance on top of it would burn the pictures.
        """
        if getattr(getattr(self.layers, "params", None), "guidance_embed", False):
            guidance = 1.0
        with torch.no_grad():
            positive = prompts if isinstance(prompts, Conditioning) else self.encode(prompts)
            if len(positive) > 1 and (positive.tokens is not None or positive.extra):
                # The host takes a mask, and a number of tokens, for one prompt's.
                each = [
                    self.sample(positive.single(i), seed + i, steps, guidance)
                    for i in range(len(positive))
                ]
                return torch.cat(each)
            negative = self.encode([""]).repeated(len(prompts))
        noise = torch.cat(
            [self._noise(1, torch.Generator().manual_seed(seed + i)) for i in range(len(prompts))]
        )
        latents = comfy.sample.sample(
            self.patcher,
            noise,
            steps,
            guidance,
            "dpmpp_2m",
            "karras",
            self._listed(positive),
            self._listed(negative),
            torch.zeros_like(noise),
            callback=lambda *_: management.throw_exception_if_processing_interrupted(),
            disable_pbar=True,
            seed=seed,
        )
        self._make_room()
        return self.network.process_latent_in(latents.float()).to(self.device)

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return self._noise(count, generator).to(self.device)

    def _noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        channels = self.network.latent_format.latent_channels
        return torch.randn(count, channels, *self._space(), generator=generator)

    def _space(self) -> list[int]:
        """Height and width of the latents, behind one frame where they are a video's."""
        layout = self.network.latent_format
        space = [side // layout.spacial_downscale_ratio for side in self.size]
        return [1, *space] if layout.latent_dimensions == 3 else space

    def preview(self, prompt: str, seed: int) -> torch.Tensor:
        """One quick picture (1, H, W, 3) of what the prompt draws at the moment."""
        return self.decode_latents(self.sample([prompt], seed, steps=8))

    @staticmethod
    def _listed(conditioning: Conditioning) -> list:
        """As the host passes conditioning between nodes."""
        return [[conditioning.cross, {**conditioning.extra, "pooled_output": conditioning.pooled}]]

    @contextmanager
    def edit(self, part: Part, select: str, rank: int = 0, seed: int = 0) -> Iterator[Edit]:
        """Train weights for the duration; `select` is one of unlearn.core.trainable's for the part.

        With "cross-attention-kv" the first token's keys and values take no gradient (DoCo): every
        prompt has that token, so what is learnt through it reaches all of them.
        """
        if part == "encoder":
            patcher, root, prefix = self.clip.patcher, self.encoder, ""
        else:
            patcher, root, prefix = self.patcher, self.layers, NETWORK
        edit = Edit(self._weights(part, select), rank, seed, self.device)
        edit.after_step = self.release_saved_tensors
        if part == "denoiser":
            edit.gradient_scale = 1 / self._gradient_scale
        layers = {key.removeprefix(prefix).rpartition(".")[0] for key in edit.weights}
        without_first = layers if select == "cross-attention-kv" else ()
        with edited(patcher, root, edit, prefix), first_token_detached(root, without_first):
            yield edit

    def fingerprints(self, keys: Iterable[str]) -> dict[str, str]:
        """Fingerprints of the model's own values of weights, without any LoRA or hook on top."""
        keys = list(keys)
        network = [key for key in keys if key.startswith(NETWORK)]
        encoder = [key for key in keys if not key.startswith(NETWORK)]
        return fingerprints(self.patcher, network) | fingerprints(self.clip.patcher, encoder)


@contextmanager
def in_one_stream() -> Iterator[None]:
    """Have the host fetch weights that lie on the CPU in the stream that computes with them.

    In streams of its own it waits for the forward pass alone before it writes the next weight over
    the last one's memory; autograd may still read there.
    """
    streams, management.NUM_STREAMS = management.NUM_STREAMS, 0
    try:
        yield
    finally:
        management.NUM_STREAMS = streams


def check_size(network: torch.nn.Module, size: tuple[int, int]) -> None:
    """Raises ValueError for pictures that have not one place in a network's latents.

    size: height and width in pixels.
    """
    smallest = network.latent_format.spacial_downscale_ratio
    if min(size) < smallest:
        height, width = size
        raise ValueError(
            f"The pictures have {width} x {height} pixels, and {smallest} x {smallest} are the "
            "fewest that this MODEL can look at; connect larger ones."
        )
