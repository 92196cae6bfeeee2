"""Trains IconCanvas's motion module on moving drawings; the rest of IconCanvas stays as it is.

A motion module reads no text. It learns the motion words all the same, by the traces that they
leave in the features of the frozen UNet, whose cross-attention answers to every token: a linear
classifier on these features names the word behind a prompt in nine cases of ten.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch

from . import checkpoint, models, motion, tokens
from .clips import training_clips
from .train import DEVICE, WORKERS, Stage, attention, autocast, noise_schedule
from .vocabulary import FRAMES, MOTIONS, caption, moving

# From this time of 1000 on the word, not what shines through the noise, shall tell the motion.
MUCH_NOISE = 800


class ClipBatches:
    """Endless random batches of (clips, misleading clips, captions); a fifth are characters.

    Clips are latents (N, FRAMES, 4, 16, 16). Misleading is the same drawing moved as chance has it,
    for half of the clips; for the others, and where the caption is empty, it is the clip itself.

    clips, pairs: as from `training_clips`.
    """

    def __init__(self, clips: torch.Tensor, pairs: list[tuple], size: int, seed: int) -> None:
        self.clips, self.pairs, self.size = clips, pairs, size
        self.rng = random.Random(seed)
        self.objects = [i for i, (_, style) in enumerate(pairs) if style]
        self.characters = [i for i, (_, style) in enumerate(pairs) if not style]

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        rng = self.rng
        chosen = [
            rng.choice(self.characters if rng.random() < 0.2 else self.objects)
            for _ in range(self.size)
        ]
        ways = [rng.randrange(len(MOTIONS)) for _ in chosen]
        captions = [
            moving(caption(rng, *self.pairs[i]), MOTIONS[way]) for i, way in zip(chosen, ways)
        ]
        # A tenth learns the empty prompt, which guidance needs.
        captions = ["" if rng.random() < 0.1 else words for words in captions]
        others = [
            rng.randrange(len(MOTIONS)) if words and rng.random() < 0.5 else way
            for words, way in zip(captions, ways)
        ]
        return self.clips[chosen, ways].float(), self.clips[chosen, others].float(), captions


def clip_loss(
    unet: torch.nn.Module,
    text: torch.nn.Module,
    z: torch.Tensor,
    misleading: torch.Tensor,
    captions: list[str],
    lean: float = 0.5,
) -> torch.Tensor:
    """The error in the noise of clips z, (N, FRAMES, 4, 16, 16), at a random time for each.

    Where there is much noise, it is laid over `misleading`, of z's shape, and the clip to be found
    is z. Even at the last time a two-hundredth of the power is the clip's, from which its motion
    can be guessed better than from a word; a clip that is made begins with noise alone, so a module
    that goes by the picture there follows no word.

    It is weighted as an error in v (Salimans and Ho, 2202.00512), by 1 / alpha, and much noise is
    drawn more often: under much noise the word alone tells how a clip moves, under less it can be
    seen. Weighted as in the UNet's training, much noise counts next to nothing, and the word is not
    learnt. Each frame has noise of its own, as in AnimateDiff.

    lean: the power to which a time, uniform in 0 to 1, is raised: below 1 leans to much noise.
    """
    alphas = noise_schedule().to(DEVICE)
    t = (1000 * torch.rand(len(z), device=DEVICE).pow(lean)).long().clamp(max=999)
    misled = (t >= MUCH_NOISE).view(-1, 1, 1, 1, 1)
    seen = torch.where(misled, misleading.to(DEVICE), z.to(DEVICE)).flatten(0, 1)
    t = t.repeat_interleave(FRAMES)
    alpha = alphas[t].view(-1, 1, 1, 1)
    z = z.to(DEVICE).flatten(0, 1)
    noisy = alpha.sqrt() * seen + (1 - alpha).sqrt() * torch.randn_like(z)
    noise = (noisy - alpha.sqrt() * z) / (1 - alpha).sqrt()
    with autocast():
        context = text(tokens.tokenize(captions).to(DEVICE))[0].to(torch.bfloat16)
        predicted = unet(
            noisy,
            t,
            context=context.repeat_interleave(FRAMES, 0),
            transformer_options={"optimized_attention_override": attention},
        ).float()
    return ((predicted - noise).square() / alpha).mean()


def frozen(folder: Path) -> tuple[torch.nn.Module, torch.nn.Module]:
    """IconCanvas's UNet and text encoder, from the final states in `folder`."""
    unet, text = models.unet(), models.text_encoder()
    for name, module in (("unet", unet), ("text", text)):
        state = torch.load(folder / f"{name}.final.pt", weights_only=True)["modules"]
        module.load_state_dict(state)
        module.requires_grad_(False).to(DEVICE)
    return unet, text


def train_motion(
    folder: Path,
    steps: int = 3500,
    batch: int = 8,
    file: Path = motion.WEIGHTS,
    further: bool = False,
) -> None:
    """Train on `batch` clips a step and write the weights to `file`.

    The folder's final states are those of the repository's checkpoint, so what is trained fits it.

    further: start from `file` instead of from nothing, at half the peak rate and with more of the
    steps under much noise, where the word decides.
    """
    checkpoint.unpack(folder)
    clips, pairs = training_clips(folder)
    unet, text = frozen(folder)
    modules = (motion.load(file) if further else motion.Motion()).requires_grad_(True)
    modules.normalise("both").to(DEVICE)
    size = batch // WORKERS
    batches = [ClipBatches(clips, pairs, size, seed=worker) for worker in range(WORKERS)]
    with motion.inserted(unet, modules):
        name, peak, lean = ("motion-further", 5e-4, 0.25) if further else ("motion", 1e-3, 0.5)
        parts = torch.nn.ModuleDict({"motion": modules})
        stage = Stage(name, parts, steps, peak, 200, average=0.995)
        stage.run(lambda worker: clip_loss(unet, text, *next(batches[worker]), lean), folder)
    motion.save(modules.cpu(), file)
    print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")
