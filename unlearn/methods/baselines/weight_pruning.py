"""Weight pruning, a baseline of CPDM: Ma et al., arXiv 2403.12052.

Of the denoiser's convolutions, the channels that answer most to noised pictures of the concept are
looked up, and in their filters the weights with the largest gradient of the denoising loss are set
to zero; the next draw finds the network pruned like this. That is the released code's; which shares
it took was not released, and is ours. So are the stages: the released code's are off by one layer.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from ...core.denoising import NoiseSampler, denoising_loss
from ...core.edit import Edit
from ...core.erasure import NETWORK, Erasure
from ...core.kind import Kind
from ...core.model import DiffusionModel
from ...core.progress import OnStep, Progress, as_progress
from ...core.token_reading import Read
from ...prompts.templates import named
from ...prompts.word_checks import check_words, words_read
from ..parts import shared
from ..parts.concepts import check_concepts, concept_latents, pictures_record
from ..parts.method import Method
from ..parts.retention import EncodeCache
from ..parts.run import run_method
from ..parts.settings import constant, setting


@dataclass(frozen=True)
class WeightPruningSettings:
    kind: Kind = shared.kind()
    channels: float = constant(0.05, "Share of a stage's channels that each draw looks into...")
    weights: float = constant(0.05, "... and of each one's filter that is set to zero.")
    pooling: Literal["avg", "max"] = constant(
        "avg",
        "What stands for a channel's answer: the mean of its size over the places, or the largest.",
    )
    draws: int = setting(
        10, "Draws of noise and timestep. What one names is zero in the next.", at_least=1
    )
    shots: int = setting(
        4,
        "How many pictures of each concept the model draws where none are given.",
        at_least=1,
    )
    batch: int = setting(2, "Pictures of a draw.", at_least=1)
    seed: int = shared.seed()
    rank: ClassVar[int] = 0  # no thin matrices set single weights to zero


def weight_pruning(
    model: DiffusionModel,
    concepts: Sequence[str],
    images: torch.Tensor | None = None,
    settings: WeightPruningSettings = WeightPruningSettings(),
    progress: Progress | OnStep | None = None,
) -> Erasure:
    """Set those of the denoiser's weights to zero that concepts' pictures use most.

    images: (N, H, W, 3) in 0..1, shared out as few_shot does; None lets the model draw them. The
    same seed gives the same erasure on one machine. Raises ValueError for bad input, before any
    work; `progress` may raise to cancel. The model is afterwards what it was.
    """
    progress = as_progress(progress)
    check(concepts, images, settings, model.readings)
    concepts = words_read(concepts, model.readings)
    pictures = concept_latents(
        model, concepts, images, settings.kind, settings.shots, settings.seed
    )
    return run_method(
        model,
        "denoiser",
        "convolution",
        "weight_pruning",
        list(concepts),
        settings,
        lambda edit: prune(model, edit, list(concepts), pictures, settings, progress),
        kind=settings.kind,
        images=pictures_record(pictures, images),
    )


def check(
    concepts: Sequence[str],
    images: torch.Tensor | None,
    settings: WeightPruningSettings,
    read: Read | None = None,
) -> None:
    """Raises ValueError with one sentence for what cannot be used."""
    check_concepts(concepts, images)
    check_words(concepts, read=read)
    check_settings(settings)


def check_settings(settings: WeightPruningSettings) -> None:
    """Raises ValueError with one sentence where they cannot be used."""
    for name in ("channels", "weights"):
        share = getattr(settings, name)
        if not 0 < share <= 1:
            raise ValueError(f"The share of {name} is {share}; choose one above 0 and at most 1.")
    if settings.draws < 1:
        raise ValueError("Nothing is looked up without a draw; choose at least one.")


def prune(
    model: DiffusionModel,
    edit: Edit,
    concepts: list[str],
    pictures: list[torch.Tensor],
    settings: WeightPruningSettings,
    progress: Progress,
) -> None:
    """Look up what to set to zero, and set it, draw by draw; of several concepts in turn."""
    draw, encoded = NoiseSampler(model, settings.seed), EncodeCache(model)
    rng, prompt_rng = random.Random(settings.seed), random.Random(settings.seed)
    filters = {key: delta for key, delta in edit.deltas.items() if key.endswith(".weight")}
    cut = {key: torch.zeros_like(delta.full, dtype=torch.bool) for key, delta in filters.items()}
    for number in range(settings.draws):
        concept, latents = concepts[number % len(concepts)], pictures[number % len(concepts)]
        chosen = [rng.randrange(len(latents)) for _ in range(settings.batch)]
        x_t, t, target = draw.add_noise(latents[chosen])
        prompts = encoded(*named(prompt_rng, settings.kind, concept, len(chosen)))
        for parameter in edit.parameters():
            parameter.grad = None
        with record_activations(model.layers, filters, settings.pooling) as stages:
            loss = denoising_loss(model, x_t, t, target, prompts).mean()
            loss.backward()
        for stage in stages.values():
            for key, channels in top_channels(stage, settings.channels).items():
                gradient = filters[key].value().grad[channels]
                cut[key][channels] |= largest(gradient.abs().flatten(1), settings.weights).view_as(
                    gradient
                )
        for key, rows in cut.items():
            filters[key].assign(-edit.weights[key].float() * rows)
        edit.history.append(loss.item())
        progress.step(number + 1, settings.draws, loss.item(), edit)
    for key, delta in edit.deltas.items():
        if key not in cut or not cut[key].any():
            for parameter in delta.parameters():
                parameter.grad = None  # nothing to write of it


@contextmanager
def record_activations(
    layers: torch.nn.Module, keys: Iterable[str], pooling: str
) -> Iterator[dict[tuple, dict[str, torch.Tensor]]]:
    """What the channels of the named convolutions answer while it is open: (N, C) by key, for each
    stage, which is a part of the denoiser at one resolution."""
    stages: dict[tuple, dict[str, torch.Tensor]] = defaultdict(dict)

    def listening(key: str, part: str):
        def hook(module, given, output: torch.Tensor) -> None:
            size = output.detach().float().abs().flatten(2)
            pooled = size.mean(2) if pooling == "avg" else size.amax(2)
            stages[part, output.shape[2:]][key] = pooled

        return hook

    with ExitStack() as stack:
        for key in keys:
            name = key.removeprefix(NETWORK).rpartition(".")[0]
            hook = listening(key, name.split(".")[0])
            stack.callback(layers.get_submodule(name).register_forward_hook(hook).remove)
        yield stages


def top_channels(stage: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """Of a stage's answers (N, C) by key, the channels (k,) of each key that are among the largest
    share of all, in any of the N."""
    every = torch.cat([one.flatten() for one in stage.values()])
    least = every.topk(max(1, int(share * every.numel()))).values[-1]
    hook = {key: (one >= least).any(0).nonzero().flatten() for key, one in stage.items()}
    return {key: channels for key, channels in hook.items() if len(channels)}


def largest(rows: torch.Tensor, share: float) -> torch.Tensor:
    """(k, n) True at the largest share of each row of (k, n), one at least."""
    count = max(1, int(share * rows.shape[1]))
    return torch.zeros_like(rows, dtype=torch.bool).scatter(1, rows.topk(count, 1).indices, True)


METHOD = Method(
    name="weight_pruning",
    title="Weight Pruning",
    about="Sets those of the denoiser's weights to zero that the concept's pictures use most.",
    paper="2403.12052",
    part="denoiser",
    settings=WeightPruningSettings,
    train=weight_pruning,
    check=check,
    takes_pictures=True,
)
