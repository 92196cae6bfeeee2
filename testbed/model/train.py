"""Trains IconCanvas from its drawings: autoencoder, text encoder, UNet, in that order.

Each stage writes a checkpoint every few minutes, and continues from it when run again. Convolutions
and matrix products use bfloat16 if that is faster; weights and optimiser stay in float32.
"""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..host.precision import fast
from . import data, models, tokens
from .captions import Caption
from .examples import Batches, to_tensor
from .stage import DEVICE, WORKERS, Stage
from .traces import MotionTraces
from .vocabulary import MOTIONS, STYLES

# Steps and pictures a step, by the kind of device: a few hours on two cores. Those for a graphics
# card of a data centre are meant for a quarter of an hour and were not tried.
AMOUNTS = {
    "cpu": {"text": {"steps": 2000, "batch": 96}, "unet": {"steps": 6000, "batch": 64}},
    "cuda": {"text": {"steps": 2000, "batch": 256}, "unet": {"steps": 8000, "batch": 256}},
}


TRACES = 0.005  # the weight of naming the motion beside that of the noise prediction


def shallow(modules: torch.nn.ModuleDict, on: bool) -> None:
    """Skip, or use again, the most expensive residual blocks: those at full and half resolution.

    A block's branch starts at zero, so a skipped block is only its last activation.
    """
    encoder, decoder = modules["encoder"], modules["decoder"]
    for costly in (encoder[1], encoder[4], encoder[5], decoder[14], decoder[15], decoder[18]):
        costly.forward = F.relu if on else type(costly).forward.__get__(costly)


def train_autoencoder(folder: Path, steps: int = 6000, crop: int = 64, batch: int = 16) -> None:
    """Train an autoencoder like TAESD on every icon that all sets share; every 20th name is held
    out.

    Half of the crops come from IconCanvas's own drawings, which it must draw well. A term of the
    loss keeps each channel of the latents near mean 0 and standard deviation 1, and the decoder
    learns to tolerate a little noise in them. The first four fifths of the steps skip the expensive
    blocks and run several times as fast.
    """
    images = np.load(data.CACHE / "pretraining.npy", mmap_mode="r")
    own = data.load().images
    names = np.arange(len(images)) // len(STYLES)
    seen = np.flatnonzero(names % 20 != 0)
    rngs = [np.random.default_rng(worker) for worker in range(WORKERS)]
    encoder, decoder = models.autoencoder()
    modules = torch.nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    modules.to(DEVICE, memory_format=torch.channels_last)

    def loss(worker: int) -> torch.Tensor:
        rng, crops = rngs[worker], []
        for _ in range(batch // WORKERS):
            mine = rng.random() < 0.5
            picture = own[rng.integers(len(own))] if mine else images[rng.choice(seen)]
            y, x = rng.integers(0, (data.SIZE - crop) // 8 + 1, 2) * 8
            piece = picture[y : y + crop, x : x + crop]
            crops.append(piece[:, ::-1] if rng.random() < 0.5 else piece)
        target = to_tensor(np.stack(crops)).to(DEVICE, memory_format=torch.channels_last)
        with fast(DEVICE):
            z = encoder(target)
            output = decoder(z + 0.05 * torch.randn_like(z)).float()
        z = z.float()
        spread = z.mean((0, 2, 3)).square().sum() + (z.std((0, 2, 3)) - 1).square().sum()
        error = output - target
        return error.abs().mean() + 4 * error.square().mean() + 0.01 * spread

    shallow(modules, True)
    Stage("autoencoder-shallow", modules, steps * 4 // 5, 8e-4, average=0.995).run(loss, folder)
    shallow(modules, False)
    Stage("autoencoder", modules, steps // 5, 4e-4, average=0.995).run(loss, folder)
    psnr = reconstruction(modules, images[np.flatnonzero(names % 20 == 0)])
    print(f"autoencoder: {psnr:.2f} dB on unseen icons")
    torch.save({"modules": modules.state_dict(), "psnr": psnr}, folder / "autoencoder.final.pt")


@torch.no_grad()
def reconstruction(modules: torch.nn.ModuleDict, images: np.ndarray) -> float:
    """The autoencoder's mean peak signal-to-noise ratio, in dB, on uint8 pictures (N, H, W, 3)."""
    ratios = []
    for part in np.array_split(images, max(1, len(images) // 16)):
        target = to_tensor(part).to(DEVICE, memory_format=torch.channels_last)
        output = modules["decoder"](modules["encoder"](target)).clamp(0, 1)
        ratios.append(-10 * (output - target).square().mean((1, 2, 3)).log10())
    return torch.cat(ratios).mean().item()


class ImageTower(torch.nn.Module):
    """The image encoder of the contrastive training. It is not kept."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(4, width, 3, padding=1),
            torch.nn.GELU(),
            torch.nn.Conv2d(width, width, 3, padding=1),
            torch.nn.GELU(),
            torch.nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            torch.nn.GroupNorm(8, 2 * width),
            torch.nn.GELU(),
            torch.nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            torch.nn.GELU(),
            torch.nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
            torch.nn.GroupNorm(8, 4 * width),
            torch.nn.GELU(),
            torch.nn.Flatten(),
            torch.nn.Linear(4 * width * 16, models.CONTEXT_DIM),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.layers(z).float(), dim=-1)


def matching(captions: list[Caption], shown: list[tuple]) -> torch.Tensor:
    """(N, N) booleans: whether caption i, written for picture i, also describes picture j.

    shown: (names, style) of each picture.
    """
    return torch.tensor([[caption.fits(*picture) for picture in shown] for caption in captions])


def attention(*args, **kwargs) -> torch.Tensor:
    """Plain softmax attention, for the host's two calling conventions.

    These are (q, k, v, heads, mask) and, as an override, (function, q, k, v, heads, ...). In
    training on a CPU torch's fused kernel is several times slower.
    """
    if callable(args[0]):
        args = args[1:]
    q, k, v, heads = args[:4]
    mask = args[4] if len(args) > 4 else kwargs.get("mask")
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    return (scores.softmax(-1, dtype=v.dtype) @ v).transpose(1, 2).flatten(2)


def states(text: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The text encoder's output, (N, L, width), for token ids (N, L).

    Written out here because the encoder's own forward pass writes into its activations, and then a
    backward pass fails.
    """
    table = text.embeddings
    x = table.token_embedding(ids) + table.position_embedding.weight[: ids.shape[1]]
    mask = torch.full((ids.shape[1],) * 2, -1e4, device=ids.device).triu(1)
    for layer in text.encoder.layers:
        x = x + layer.self_attn(layer.layer_norm1(x), mask, attention)
        x = x + layer.mlp(layer.layer_norm2(x))
    return text.final_layer_norm(x).float()


def summaries(text: torch.nn.Module, ids: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """A vector for each caption, (N, width): the encoder's output at the end of the text, or at a
    place in the padding after it.

    All of the padding learns to tell what the whole caption says. So the UNet finds that at the
    same places whatever the caption's length.
    """
    ends = (ids == tokens.tokenizer().eos_token_id).int().argmax(1)
    vectors = torch.empty(len(ids), text.final_layer_norm.weight.shape[0], device=ids.device)
    # Captions of like length together: attention is causal, so what stands behind the last place
    # that is read changes nothing and is left out.
    for some in ends.argsort().chunk(4):
        length = min(tokens.LENGTH, int(ends[some].max()) + 1 + rng.randrange(8))
        places = ends[some].where(torch.rand(len(some), device=ids.device) < 0.5, length - 1)
        found = states(text, ids[some, :length])[torch.arange(len(some)), places]
        vectors = vectors.index_copy(0, some, found)
    return vectors


def train_text_encoder(
    folder: Path, steps: int = 2000, batch: int = 96, further: bool = False
) -> None:
    """Train the text encoder as CLIP does, contrastively, against the latents of the drawings.

    A caption that names only the object matches all of its styles, so a row of the softmax may have
    several positives. A linear classifier learns with it to tell the motion that some captions ask
    for. The token embeddings are not trained, since most of them never occur.
    """
    text, image = models.text_encoder(), ImageTower()
    text.embeddings.token_embedding.weight.requires_grad_(False)
    ways = torch.nn.Linear(models.CONTEXT_DIM, len(MOTIONS) + 1)
    modules = torch.nn.ModuleDict({"text": text, "image": image, "motion": ways}).to(DEVICE)
    scale = torch.nn.Parameter(torch.tensor(2.7, device=DEVICE))
    modules.register_parameter("scale", scale)
    # Each worker gets a whole batch, since the softmax runs over it.
    batches = [
        Batches(folder, batch, seed=worker, others=0.15, moving=0.15) for worker in range(WORKERS)
    ]
    hits = []

    def loss(worker: int) -> torch.Tensor:
        z, captions, shown = next(batches[worker])
        matches = matching(captions, shown).to(DEVICE)
        ids, _ = tokens.weighted([caption.text for caption in captions])
        with fast(DEVICE):
            vectors = summaries(text, ids.to(DEVICE), batches[worker].rng)
            told = ways(vectors).float()
            vectors = F.normalize(vectors, dim=-1)
            scores = vectors @ image(z.to(DEVICE)).T * scale.exp().clamp(max=100)
        best = scores.argmax(1)
        hits.append(matches[torch.arange(len(best)), best].float().mean().item())
        rows = scores.masked_fill(~matches, -torch.inf).logsumexp(1) - scores.logsumexp(1)
        columns = scores.masked_fill(~matches, -torch.inf).logsumexp(0) - scores.logsumexp(0)
        motions = [MOTIONS.index(c.motion) if c.motion else len(MOTIONS) for c in captions]
        motion = F.cross_entropy(told, torch.tensor(motions, device=DEVICE))
        return -(rows.mean() + columns.mean()) / 2 + 0.3 * motion

    name = "text-further" if further else "text"
    Stage(name, modules, steps, 5e-4, average=0.99).run(loss, folder)
    retrieval = sum(hits[-50:]) / max(1, len(hits[-50:]))
    print(f"text encoder: {retrieval:.1%} of captions find a picture that fits them")
    torch.save({"modules": text.state_dict(), "retrieval": retrieval}, folder / "text.final.pt")


class Conditioner:
    """The frozen text encoder, with prompt weights read as the host reads them."""

    def __init__(self, text: torch.nn.Module) -> None:
        self.text = text
        self.empty: torch.Tensor | None = None

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> torch.Tensor:
        """The conditioning of the captions, (N, 77, width)."""
        ids, weights = tokens.weighted(captions)
        context = self.text(ids.to(DEVICE))[0]
        if (weights == 1).all():
            return context
        if self.empty is None:
            self.empty = self.text(tokens.tokenize([""]).to(DEVICE))[0]
        return self.empty + (context - self.empty) * weights[..., None].to(context)


def noise_schedule() -> torch.Tensor:
    """Stable Diffusion's cumulative alphas, (1000,): the roots of the betas rise linearly, and the
    betas go from 0.00085 to 0.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def train_unet(folder: Path, steps: int = 6000, batch: int = 64, further: bool = False) -> None:
    """Train the UNet to predict noise, with the frozen text encoder.

    The loss has min-SNR weights (Hang et al., arXiv 2303.09556). Classifiers keep the motion words
    readable, for the motion module. further: start from unet.final.pt in the folder, at half the
    peak learning rate, instead of from random weights.
    """
    text = models.text_encoder().requires_grad_(False).to(DEVICE)
    text.load_state_dict(torch.load(folder / "text.final.pt", weights_only=True)["modules"])
    unet = models.unet().to(DEVICE)
    if further:
        unet.load_state_dict(torch.load(folder / "unet.final.pt", weights_only=True)["modules"])
    conditioner = Conditioner(text)
    size = batch // WORKERS
    batches = [Batches(folder, size, worker, moving=0.3) for worker in range(WORKERS)]
    alphas = noise_schedule().to(DEVICE)
    traces = MotionTraces(unet).to(DEVICE)

    def loss(worker: int) -> torch.Tensor:
        z, captions, _ = next(batches[worker])
        # A tenth has the empty prompt, which classifier-free guidance needs.
        rng = batches[worker].rng
        motions = [caption.motion for caption in captions]
        captions = ["" if rng.random() < 0.1 else caption.text for caption in captions]
        t = torch.randint(0, 1000, (len(z),), device=DEVICE)
        alpha = alphas[t].view(-1, 1, 1, 1)
        z = z.to(DEVICE)
        noise = torch.randn_like(z)
        traces.start()
        with fast(DEVICE):
            context = conditioner(captions)
            predicted = unet(
                alpha.sqrt() * z + (1 - alpha).sqrt() * noise,
                t,
                context=context,
                transformer_options={"optimized_attention_override": attention},
            ).float()
        weight = (5 * (1 - alpha) / alpha).clamp(max=1)
        asked = torch.tensor([bool(caption) for caption in captions], device=DEVICE)
        named = traces.loss(motions, asked)
        return (weight * (predicted - noise).square()).mean() + TRACES * named

    name, peak = ("unet-further", 3e-4) if further else ("unet", 1e-3)
    modules = torch.nn.ModuleDict({"unet": unet, "traces": traces})
    Stage(name, modules, steps, peak, 200, average=0.998).run(loss, folder)
    torch.save({"modules": unet.state_dict()}, folder / "unet.final.pt")
