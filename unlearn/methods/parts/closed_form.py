"""A start in closed form: the concept taken out of what the cross-attention reads, in one solve.

Keys and values are linear in the conditioning, so a linear map that turns the concept's prompts
into neutral ones, and leaves others as they are, can be written into their weights at once. It is
the least-squares edit of Unified Concept Editing (Gandikota et al., arXiv 2308.14761), over whole
prompts: every token behind a word tells of it, the padding most of all.

It serves denoisers whose cross-attention reads the conditioning as it is (Stable Diffusion 1.x, 2.x
and XL). Where something lies between (a projection of the text, joint attention), nothing is done.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...core.conditioning import Conditioning
from ...core.edit import Edit
from ...core.erasure import NETWORK
from ...core.kind import Kind
from ...core.model import DiffusionModel
from ...core.trainable import reads_prompt
from ...prompts.sampler import PromptSampler

# How far beyond the anchor a concept is drawn, as a share of their distance in keys and values. A
# picture always has some style, so the anchor alone does not take a style away.
OVERSHOOT: dict[Kind, float] = {"object": 0.0, "style": 0.6, "character": 0.0, "action": 0.0}
RETENTION = 25.0  # weight of other prompts
REST = 0.2  # of the rate, once the solution is in
SENTENCES = 128  # of each concept
OTHERS = 512
AT_ONCE = 32  # prompts
RIDGE = 1e-4  # relative to the mean square of what is read


@torch.no_grad()
def start(
    model: DiffusionModel,
    edit: Edit,
    optimiser: torch.optim.Optimizer,
    words: PromptSampler,
    concepts: Sequence[str],
    push: float,
) -> bool:
    """Give the edit's keys and values the change that erases the concepts; whether there are any.

    push: how far beyond the neutral prompts. The optimiser, whose rate is made for a start from
    nothing, is slowed down: little is left to do.
    """
    width = model.encode([""]).cross.shape[-1]
    keys = [
        key
        for key, weight in edit.weights.items()
        if reads_prompt(key.removeprefix(NETWORK), weight, width)
    ]
    if keys:
        change = erasing_map(model, words, concepts, push)
        for key in keys:
            weight = edit.weights[key].float()
            edit.deltas[key].assign(weight @ change.T.to(weight))
        for group in optimiser.param_groups:
            group["lr"] *= REST
    return bool(keys)


def erasing_map(
    model: DiffusionModel,
    words: PromptSampler,
    concepts: Sequence[str],
    push: float,
    retention: float = RETENTION,
) -> torch.Tensor:
    """(width, width) D, float64: a token x of the concepts' prompts becomes x + x D.

    The least squares of a D - (1 + push) (b - a) over tokens a of the concepts' prompts and b of
    the same with the neutral word, and of `retention` times k D over tokens k of other prompts.
    """
    sentences = words.sentences(SENTENCES)
    pairs = [(s.format(c), s.format(words.anchors[c])) for c in concepts for s in sentences]
    own, across, kept = (Mean() for _ in range(3))
    for some in batches(pairs):
        named, neutral = tokens(model, [n for n, _ in some], [n for _, n in some])
        own.add(named.T @ named, len(named))
        across.add(named.T @ (neutral - named), len(named))
    for some in batches(words.others(OTHERS)):
        (others,) = tokens(model, some)
        kept.add(others.T @ others, len(others))
    square = own.value + retention * kept.value
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    return torch.linalg.solve(square, (1 + push) * across.value)


class Mean:
    """Of sums that come in parts: the tokens of all prompts together may be large."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, part: torch.Tensor, count: int) -> None:
        self.total, self.count = self.total + part, self.count + count

    @property
    def value(self) -> torch.Tensor:
        return self.total / self.count


def batches(prompts: Sequence) -> list[Sequence]:
    return [prompts[i : i + AT_ONCE] for i in range(0, len(prompts), AT_ONCE)]


def tokens(model: DiffusionModel, *groups: Sequence[str]) -> list[torch.Tensor]:
    """Of each group of as many prompts, (prompts * tokens, width) in float64 on the CPU; token by
    token, the shorter padded with zeros."""
    together = Conditioning.cat([model.encode(group) for group in groups]).cross.cpu().double()
    return [part.flatten(0, 1) for part in together.chunk(len(groups))]
