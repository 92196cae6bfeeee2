"""Trains IconCanvas's motion module on moving drawings, and with it the five motion words.

A motion module reads no text. It learns the motion words all the same, by the traces that they
leave in the features of the frozen UNet, whose cross-attention answers to every token: a linear
classifier on these features names the word behind a prompt in nine cases of ten. The words'
vectors (words.py) are learnt together with it; the rest of IconCanvas stays as it is.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..host.precision import fast
from ..model import checkpoint, models, tokens
from ..model.stage import DEVICE, WORKERS, Stage
from ..model.train import attention, noise_schedule
from ..model.vocabulary import FRAMES
from . import motion
from .batches import ClipBatches
from .clips import training_clips
from .words import MotionWords

# From this time of 1000 on the word, not what shines through the noise, shall tell the motion.
MUCH_NOISE = 800
APART = 4.0  # by how much more a pair's difference counts there than what it has in common


def clip_loss(
    unet: torch.nn.Module,
    text: torch.nn.Module,
    z: torch.Tensor,
    seen: torch.Tensor,
    captions: list[str],
    moved: list[tuple[str, str, float]] = (),
    lean: float = 0.5,
) -> torch.Tensor:
    """The error in the noise of clips z, (N, FRAMES, 4, 16, 16), at a random time for each pair.

    Where there is much noise, it is laid over `seen`, of z's shape, and the clip to be found is z.
    Even at the last time a two-hundredth of the power is the clip's, from which its motion can be
    guessed better than from a word; a clip that is made begins with noise alone, so a module that
    goes by the picture there follows no word. A pair then differs in its words alone, and by how
    much its predictions should differ counts more than what they err in common, most of which
    nothing can make good.

    It is weighted as an error in v (Salimans and Ho, 2202.00512), by 1 / alpha, and much noise is
    drawn more often: under much noise the word alone tells how a clip moves, under less it can be
    seen. Weighted as in the UNet's training, much noise counts next to nothing, and the word is not
    learnt. Each frame has noise of its own, as in AnimateDiff.

    moved: for each pair what `beyond` gives, or nothing. lean: the power to which a time, uniform
    in 0 to 1, is raised: below 1 leans to much noise.
    """
    alphas = noise_schedule().to(DEVICE)
    z, seen = z.to(DEVICE), seen.to(DEVICE)
    t = (1000 * torch.rand(len(z) // 2, device=DEVICE).pow(lean)).long().clamp(max=999)
    much = t >= MUCH_NOISE
    alpha = alphas[t].view(-1, 1, 1, 1, 1).repeat_interleave(2, 0)
    shown = torch.where(much.repeat_interleave(2).view(-1, 1, 1, 1, 1), seen, z)
    noise = torch.randn_like(z[::2]).repeat_interleave(2, 0)
    noisy = alpha.sqrt() * shown + (1 - alpha).sqrt() * noise
    wanted = (noisy - alpha.sqrt() * z) / (1 - alpha).sqrt()
    with fast(DEVICE):
        context = text(tokens.tokenize(captions).to(DEVICE))[0]
        context = context + away(text, captions, moved).to(context.dtype)
        predicted = unet(
            noisy.flatten(0, 1),
            t.repeat_interleave(2 * FRAMES),
            context=context.repeat_interleave(FRAMES, 0),
            transformer_options={"optimized_attention_override": attention},
        ).float()
    error = (predicted.view_as(z) - wanted) / alpha.sqrt()
    one, other = error[::2], error[1::2]
    common, apart = (x.square().mean((1, 2, 3, 4)) for x in ((one + other) / 2, (one - other) / 2))
    return (common + torch.where(much, APART, 1.0) * apart).mean()


@torch.no_grad()
def away(text: torch.nn.Module, captions: list[str], moved: list[tuple]) -> torch.Tensor:
    """What moves the captions' encodings on, (len(captions), tokens, width), or 0.0 for all; an
    empty caption stays what it is."""
    far = [(i, *one) for i, one in enumerate(moved) if one[2]]
    if not far:
        return torch.zeros(())
    words = [words for _, one, other, _ in far for words in (one, other)]
    one, other = text(tokens.tokenize(words).to(DEVICE))[0].unflatten(0, (-1, 2)).unbind(1)
    by = torch.zeros(len(captions), *one.shape[1:], device=DEVICE)
    for (i, *_, how_far), step in zip(far, one - other):
        for k in (2 * i, 2 * i + 1):
            if captions[k]:
                by[k] = how_far * step
    return by


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

    further: start from `file` instead of from nothing, at a quarter of the peak rate, more of which
    would undo what was learnt, and with more of the steps under much noise, where the word decides.
    """
    checkpoint.unpack(folder)
    clips, pairs = training_clips(folder)
    unet, text = frozen(folder)
    modules = (motion.load(file) if further else motion.Motion()).requires_grad_(True)
    modules.normalise("both").to(DEVICE)
    words = MotionWords(text).to(DEVICE)
    size = max(2, batch // WORKERS // 2 * 2)  # in pairs
    batches = [ClipBatches(clips, pairs, size, seed=worker) for worker in range(WORKERS)]
    with motion.inserted(unet, modules), words.taught(text):
        name, peak, lean = ("motion-further", 2.5e-4, 0.33) if further else ("motion", 1e-3, 0.5)
        parts = torch.nn.ModuleDict({"motion": modules, "words": words})
        stage = Stage(name, parts, steps, peak, 100 if further else 200, average=0.995)
        stage.run(lambda worker: clip_loss(unet, text, *next(batches[worker]), lean), folder)
    motion.save(modules.cpu(), file)
    checkpoint.teach(words.numbers.cpu(), words.vectors.detach().cpu())
    print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")
