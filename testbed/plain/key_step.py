"""Key-step concept unlearning (KSCU), plainly: Zhang et al., arXiv 2507.06526."""

from __future__ import annotations

import copy
import random

import torch

from unlearn.prompts.templates import augmented

from .model import Context, OnStep, PlainModel, trainable


def key_step(
    model: PlainModel,
    concept: str,
    kind: str = "style",
    start: int = 24,
    iterations: int = 500,
    steps: int = 50,
    guidance: float = 3.0,
    rate: float = 1e-5,
    seed: int = 0,
    on_step: OnStep = lambda step, loss: None,
) -> None:
    """Tune the denoiser in place at steps `start` and later of its own trajectories.

    Cross-attention is trained for a style and a character, all other linear layers and
    convolutions for an object. A second, frozen denoiser gives the targets.
    """
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    original, student = copy.deepcopy(model.unet), model.unet
    crosses = kind in ("style", "character")
    matrices = matrices_of(student)
    weights = trainable(
        student, lambda name: name.rpartition(".")[0] in matrices and ("attn2" in name) == crosses
    )
    optimiser = torch.optim.Adam(weights, rate)
    with torch.no_grad():
        prompt, empty = model.encode([concept]), model.encode([""])
    others = augmented(random.Random(seed), kind, concept)
    times = [1000 * (steps - 1 - i) / steps + 1 for i in range(steps)]
    done, walks = 0, 0
    while done < iterations:
        x = fresh_noise(model, times[0], generator)
        for i, time in enumerate(times):
            t = torch.full((1,), time, device=x.device)
            if i >= start:
                if done == iterations:
                    break
                asked = prompt
                if done >= 0.95 * iterations:
                    asked = noisy(model, rng.choice(others), generator)
                loss = loss_of(model, original, student, x, t, prompt, asked, empty)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                done += 1
                on_step(done, loss.item())
            if i + 1 < steps and done < iterations:
                with torch.no_grad():
                    own = model.predict(student, x, t, prompt)
                    none = model.predict(student, x, t, empty)
                    towards = none + guidance * (own - none)
                    x0 = model.predict_x0(x, t, towards)
                    x = model.add_noise(x0, towards, torch.full_like(t, times[i + 1]))
        walks += 1
        if walks % 8 == 0 and 10 * (start + 1) < 9 * steps:
            start += 1


def loss_of(
    model: PlainModel,
    original: torch.nn.Module,
    student: torch.nn.Module,
    x: torch.Tensor,
    t: torch.Tensor,
    prompt: Context,
    asked: Context,
    empty: Context,
) -> torch.Tensor:
    """The paper's two terms: the concept turned away, and the empty prompt a little."""
    with torch.no_grad():
        own = model.predict(original, x, t, prompt)
        none = model.predict(original, x, t, empty)
    erased = model.predict(student, x, t, asked)
    nothing = model.predict(student, x, t, empty)
    away = 0.02 * (1 - t.item() / 1000)
    turned = (erased - (none - (own - none))).square().mean()
    return turned + 1e-4 * (nothing - (none - away * (own - none))).square().mean()


def matrices_of(unet: torch.nn.Module) -> set[str]:
    """The names of the linear layers and convolutions."""
    kinds = torch.nn.Linear, torch.nn.Conv2d
    return {name for name, module in unet.named_modules() if isinstance(module, kinds)}


def fresh_noise(model: PlainModel, t: float, generator: torch.Generator) -> torch.Tensor:
    """Where a trajectory begins: noise alone, in the share that the first timestep has of it."""
    config, device = model.unet.config, model.device
    shape = 1, config.in_channels, config.sample_size, config.sample_size
    noise = torch.randn(shape, generator=generator).to(device)
    return model.add_noise(torch.zeros_like(noise), noise, torch.full((1,), t, device=device))


@torch.no_grad()
def noisy(model: PlainModel, text: str, generator: torch.Generator) -> Context:
    """The conditioning of an augmented prompt, with a little noise on it."""
    states, pooled = model.encode([text])
    return states + 1e-5 * torch.randn(states.shape, generator=generator).to(states), pooled
