"""ComfyModel: ComfyUI's MODEL, CLIP and VAE as one DiffusionModel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property

import torch
from torch.utils._pytree import tree_leaves

from ...unlearn.core.conditioning import Conditioning
from ...unlearn.core.edit import Edit
from ...unlearn.core.erasure import NETWORK
from ...unlearn.core.first_token import first_token_detached
from ...unlearn.core.model import Part
from ...unlearn.core.trainable import encoder_weights, network_rows, network_weights
from .autoencoder import drawn_from
from .checks import (
    autoencoder,
    check_clip,
    check_patcher,
    check_size,
    check_vae,
    check_vae_fits,
)
from .denoiser import Denoiser
from .differentiable import untracked
from .dynamic_vram import static_clip, static_model
from .gradients import in_training
from .identity import fingerprints, without_hooks
from .memory import MEASURED, MemoryPlan, leave_room_for_classifier, plan_attack, plan_training
from .patching import edited
from .read_depth import check_read, is_spoilt, spoilt, unread_layers
from .residency import Residency
from .sampling import sampled
from .schedule import Schedule
from .text_encoder import TextEncoder
from .text_part import TextPart
from .version import told_with_version


class ComfyModel(TextPart):
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
        self.device = model.load_device
        self.residency = Residency((self.patcher, self.clip.patcher), self.device)
        self.schedule = Schedule(self.patcher)
        self.text = TextEncoder(self.clip, self.residency)
        self.denoiser = Denoiser(self.patcher, self.schedule, self.residency)
        self._began = False  # whether a step has gone well

    @property
    def network(self) -> torch.nn.Module:
        return self.patcher.model

    @property
    def layers(self) -> torch.nn.Module:
        return self.network.diffusion_model

    def rows(self, part: Part, select: str) -> dict[str, slice]:
        """Of weights that `select` means in part, which rows."""
        found = network_rows(self.layers, select) if part == "denoiser" else {}
        return {NETWORK + key: rows for key, rows in found.items()}

    def selected(self, part: Part, select: str) -> dict[str, torch.Tensor]:
        """What `select` means in a part, by the host's names."""
        if part == "encoder":
            return encoder_weights(self.encoder, select, self._unread)
        found = network_weights(self.network.diffusion_model, select)
        return {NETWORK + key: weight for key, weight in found.items()}

    @told_with_version()
    def prepare(
        self, part: Part, select: str, rank: int, batch: int, prompts: int = 0
    ) -> MemoryPlan:
        """Plan the memory of a training; see `memory.plan_training`."""
        return plan_training(self, part, select, rank, batch, prompts)

    @told_with_version()
    def prepare_attack(self, batch: int, prompts: int) -> MemoryPlan:
        """Plan the memory of an attack; see `memory.plan_attack`."""
        return plan_attack(self, batch, prompts)

    def prepare_asking(self) -> None:
        """Leave room for the classifier; see `memory.leave_room_for_classifier`."""
        leave_room_for_classifier(self)

    @told_with_version()
    def check_encoder(self) -> None:
        """Raises ValueError when the text encoder is not of the kind that this denoiser reads."""
        check_read(self.network, self.clip)

    @contextmanager
    def training(self, gradients: bool = True) -> Iterator[ComfyModel]:
        """Gradients through the host's modules; see `gradients.in_training`. gradients: whether
        there are any."""
        encoder = self.clip.patcher
        parts = (self.layers, self.device), (self.encoder, encoder.load_device)
        with ExitStack() as stack:
            stack.enter_context(told_with_version(lambda: self._began))
            # The weights that the host brings to the card are of the kind that it leaves them in.
            with torch.inference_mode():
                self.residency.load()
            recomputed, around = bool(self.checkpointing), (self.network,)
            self._saved = stack.enter_context(
                in_training(parts, self.encoder, gradients, recomputed, around)
            )
            try:
                yield self
            finally:
                self._saved = None

    @cached_property
    def _one_a_token(self) -> bool:
        """Whether the denoiser is given one vector for each token of a prompt and nothing else.

        It is given more where it reads the pooled vector, which the host makes of the first section
        only, and less where a template's tokens are cut off behind the encoder.
        """
        with torch.no_grad():
            tokens = self.clip.tokenize(MEASURED)
            prompt = self.text.of_one(tokens)
            if len(tokens) > 1 or prompt.cross.shape[1] != len(next(iter(tokens.values()))[0]):
                return False
            return not is_spoilt(self._given(replace(prompt, pooled=spoilt(prompt.pooled))))

    @cached_property
    def _unread(self) -> dict[str, int]:
        """Of each stack of the encoder's layers, how many at its end the denoiser is given nothing
        of."""
        return unread_layers(self.encoder, lambda: self._given(self.encode([MEASURED])))

    def _given(self, prompt: Conditioning) -> list[torch.Tensor]:
        """What the denoiser gets of one prompt."""
        self.residency.load()
        conds = self.denoiser.conds(self.noise(1, torch.Generator()), prompt)
        leaves = tree_leaves([cond.cond for cond in conds.values()])
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    @property
    def told_guidance(self) -> bool:
        return getattr(getattr(self.layers, "params", None), "guidance_embed", False)

    @property
    def has_autoencoder(self) -> bool:
        return self.vae is not None

    def encode_images(
        self, images: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        check_vae(self.vae)
        with torch.no_grad(), untracked(), drawn_from(self.vae, generator):
            # One by one: a video model's VAE would take several for the frames of one video.
            parts = [self.vae.encode(one[..., :3]) for one in images.split(1)]
            self.residency.make_room()
            return self.network.process_latent_in(torch.cat(parts).float()).to(self.device)

    def decode_latents(self, x0: torch.Tensor) -> torch.Tensor:
        check_vae(self.vae)
        with torch.no_grad(), untracked():
            pictures = self.vae.decode(self.network.process_latent_out(x0.float()))
            self.residency.make_room()
            if pictures.ndim == 5:  # a video model: its first frames
                pictures = pictures[:, 0]
            # Qwen-Image 2.1's autoencoder gives how opaque they are, too.
            return pictures[..., :3].clamp(0, 1).cpu()

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.schedule.add_noise(x0, noise, t)

    def target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.schedule.target(x0, noise, t)

    def predict_x0(
        self, x_t: torch.Tensor, t: torch.Tensor, prediction: torch.Tensor
    ) -> torch.Tensor:
        return self.schedule.predict_x0(x_t, t, prediction)

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        return self.denoiser.predict(x_t, t, conditioning)

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return self.denoiser.noise(count, self.size, generator).to(self.device)

    def sample(
        self,
        prompts: Sequence[str] | Conditioning,
        seed: int,
        steps: int = 20,
        guidance: float = 7.5,
    ) -> torch.Tensor:
        """Clean latents of pictures of `size`, one a prompt; see sampling.py."""
        return sampled(self, prompts, seed, steps, guidance)

    def preview(self, prompt: str, seed: int) -> torch.Tensor:
        """One quick picture (1, H, W, 3) of what the model now draws from the prompt."""
        return self.decode_latents(self.sample([prompt], seed, steps=8))

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
        rows = self.rows(part, select)
        edit = Edit(self.selected(part, select), rank, seed, self.device, rows)
        edit.after_step = self.release_saved_tensors
        if part == "denoiser":
            edit.gradient_scale = 1 / self.denoiser.gradient_scale
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
