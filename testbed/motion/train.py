"""Trains IconCanvas's motion module on moving drawings. The rest of IconCanvas is frozen.

A motion module reads no text. It still learns the motion words, from the traces that they leave in
the features of the frozen UNet, whose cross-attention reads every token: a linear classifier on
these features names the motion word of a prompt in nine cases of ten.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..host.precision import fast
from ..model import checkpoint, models
from ..model.stage import DEVICE, WORKERS, Stage
from ..model.train import Conditioner, attention, noise_schedule
from ..model.vocabulary import FRAMES
from . import motion
from .batches import ClipBatches
from .clips import training_clips

# From this timestep of 1000 on, the module should read the motion from the word, and not from what
# is left of the clip in the noise.
MUCH_NOISE = 800
APART = 4.0  # the weight of the error in a pair's difference there; that of its mean is 1


def clip_loss(
    unet: torch.nn.Module,
    encode: Conditioner,
    z: torch.Tensor,
    seen: torch.Tensor,
    captions: list[str],
    moved: list[tuple[str, str, float]] = (),
    lean: float = 0.5,
) -> torch.Tensor:
    """The noise prediction loss of clips z, (N, FRAMES, 4, 16, 16), with one timestep for each
    pair.

    At much noise, the noise is added to `seen` (of z's shape), and the clip to be predicted is z.
    The reason: even at the last timestep 1/200 of the power is the clip's, and the motion is easier
    to guess from that than from the word. But sampling starts from pure noise, and a module that
    relies on the clip there ignores the word. With `seen`, the two clips of a pair differ only in
    their words. The error in the difference of their two predictions then counts more than the
    error in their mean, most of which cannot be avoided.

    The error is weighted as an error in v, by 1 / alpha (Salimans and Ho, arXiv 2202.00512), and
    much noise is drawn more often. At much noise only the word tells how a clip moves; at less
    noise the motion can be seen. With the weights of the UNet's training much noise would count
    almost nothing, and the word would not be learnt. Each frame has noise of its own, as in
    AnimateDiff.

    moved: for each pair what `beyond` returns, or nothing. lean: the timestep, uniform in 0 to 1,
    is raised to this power; below 1 means more noise.
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
        context = encode(captions)
        context = context + away(encode, captions, moved).to(context.dtype)
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


def away(encode: Conditioner, captions: list[str], moved: list[tuple]) -> torch.Tensor:
    """What to add to the captions' conditioning, (len(captions), tokens, width); a single 0 if
    nothing. An empty caption gets nothing."""
    far = [(i, *one) for i, one in enumerate(moved) if one[2]]
    if not far:
        return torch.zeros(())
    words = [words for _, one, other, _ in far for words in (one, other)]
    one, other = encode(words).unflatten(0, (-1, 2)).unbind(1)
    by = torch.zeros(len(captions), *one.shape[1:], device=DEVICE)
    for (i, *_, how_far), step in zip(far, one - other):
        for k in (2 * i, 2 * i + 1):
            if captions[k]:
                by[k] = how_far * step
    return by


def frozen(folder: Path) -> tuple[torch.nn.Module, Conditioner]:
    """IconCanvas's UNet and text encoder, from the final states in `folder`."""
    unet, text = models.unet(), models.text_encoder()
    for name, module in (("unet", unet), ("text", text)):
        state = torch.load(folder / f"{name}.final.pt", weights_only=True)["modules"]
        module.load_state_dict(state)
        module.requires_grad_(False).to(DEVICE)
    return unet, Conditioner(text)


def train_motion(
    folder: Path,
    steps: int = 3500,
    batch: int = 8,
    file: Path = motion.WEIGHTS,
    further: bool = False,
) -> None:
    """Train on `batch` clips in each step and write the weights to `file`.

    The final states in the folder are unpacked from the repository's checkpoint, so that the module
    fits it. further: start from `file` instead of from random weights, at a quarter of the peak
    learning rate (more would undo what was learnt), with more steps at much noise, where the word
    decides.
    """
    checkpoint.unpack(folder)
    clips, pairs = training_clips(folder)
    unet, encode = frozen(folder)
    modules = (motion.load(file) if further else motion.Motion()).requires_grad_(True)
    modules.normalise("both").to(DEVICE)
    size = max(2, batch // WORKERS // 2 * 2)  # even, for pairs
    batches = [ClipBatches(clips, pairs, size, seed=worker) for worker in range(WORKERS)]
    with motion.inserted(unet, modules):
        name, peak, lean = ("motion-further", 2.5e-4, 0.33) if further else ("motion", 1e-3, 0.5)
        parts = torch.nn.ModuleDict({"motion": modules})
        stage = Stage(name, parts, steps, peak, 100 if further else 200, average=0.995)
        stage.run(lambda worker: clip_loss(unet, encode, *next(batches[worker]), lean), folder)
    motion.save(modules.cpu(), file)
    print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")
