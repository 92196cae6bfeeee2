"""Search for words that fill the gap of a sentence so that a loss becomes small.

Greedy coordinate gradient (Zou et al., arXiv 2307.15043): the gradient at the words as they are
says, to first order, what any other word in any place would change; some of the most promising
exchanges are tried, and the best is kept if it is better. What comes out are words that a person
can type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .token_slots import Vocabulary

PROMISING = 64  # exchanges at each step, of which some are tried


def search(
    vocabulary: Vocabulary,
    losses_of: Callable[[torch.Tensor], torch.Tensor],
    count: int,
    tokens: int,
    steps: int,
    tries: int,
    seed: int,
    after_step: Callable[[int], None] | None = None,
    start: Sequence[Sequence[str]] = (),
    look: Callable[[int, list[list[str]]], None] | None = None,
) -> list[list[str]]:
    """The best words found, `tokens` of them for each of `count` gaps, searched side by side.

    losses_of: (count, tokens, width) vectors to (count,) losses, the same function at every call.
    tries: exchanges of a word that are tried at each step. after_step(step) may raise to cancel.
    start: the words in each gap to begin with; none: random ones. look(step, words): told the best
    words after each step.
    """

    def written(numbers: torch.Tensor) -> list[list[str]]:
        return [[vocabulary.words[i] for i in row] for row in numbers.tolist()]

    generator = torch.Generator().manual_seed(seed)
    table = vocabulary.vectors
    size, rows = len(table), torch.arange(count, device=table.device)
    words = torch.randint(size, (count, tokens), generator=generator).to(table.device)
    if start:
        numbers = {word: i for i, word in enumerate(vocabulary.words)}
        words = torch.tensor([[numbers[word] for word in row] for row in start]).to(table.device)
    least = torch.full((count,), torch.inf, device=table.device)
    for step in range(steps):
        vectors = table[words].clone().requires_grad_()
        losses = losses_of(vectors)
        losses.sum().backward()
        least = losses.detach()
        # What exchanging the word at each place for each other word gains, (count, tokens * size).
        gain = vectors.grad @ table.T
        gain = ((vectors.grad * vectors.detach()).sum(-1, keepdim=True) - gain).flatten(1)
        promising = gain.topk(min(PROMISING, gain.shape[1])).indices
        # The most promising first, then some of the others.
        order = 1 + torch.rand(count, promising.shape[1] - 1, generator=generator).argsort(1)
        order = torch.cat([torch.zeros(count, 1, dtype=torch.long), order], 1).to(table.device)
        best = words.clone()
        for i in range(min(tries, promising.shape[1])):
            exchange = promising[rows, order[:, i]]
            tried = words.clone()
            tried[rows, exchange // size] = exchange % size
            with torch.no_grad():
                losses = losses_of(table[tried])
            better = losses < least
            best = torch.where(better[:, None], tried, best)
            least = torch.where(better, losses, least)
        words = best
        if after_step:
            after_step(step + 1)
        if look:
            look(step + 1, written(words))
    return written(words)
