"""Hardening: an erasure trained on against the words that would bring the concept back.

After AdvUnlearn (Zhang et al., arXiv 2405.15234, NeurIPS 2024): before each step, tokens are sought
that revive the concept (soft_prefix.py), and the step is taken against them, while other prompts
are held. Ours begins where an erasure stopped and lasts as many seconds as it is given. In the text
encoder it asks no denoiser: the attacker wants the conditioning that the original gave the
prompt, the defender draws it to the neutral prompt's. In the denoiser both speak of predictions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ...core.conditioning import Conditioning
from ...core.ddim import at
from ...core.edit import Edit
from ...core.kind import Kind
from ...core.model import DiffusionModel
from ...core.progress import SILENT, Progress
from ...core.prompt_spread import prompt_spread
from ...prompts.sampler import PromptSampler
from .retention import RetentionSet

# UnlearnDiffAtk has 3 for styles and objects, and 5 for nudity. A character's 5 and an action's 3
# are ours.
TOKENS: dict[Kind, int] = {"object": 3, "style": 3, "character": 5, "action": 3}
SENTENCES, OTHERS = 4, 8  # prompts attacked, and prompts held, in a step of the encoder's
RETENTION = 10.0
PULL = 3.0  # of attacked prompts, and of plain ones
WARM_UP = 10  # steps
LEAST = 0.1  # of the rate, at the end
SECONDS = 60.0  # where nothing else is asked for: there it begins to pay (docs/harden.md)


def check_hardening(mode: str, seconds: float) -> None:
    """Raises ValueError with one sentence where a run cannot be hardened."""
    if seconds and mode != "balanced":
        raise ValueError(
            f"Mode {mode} is the published method and is not hardened: choose mode balanced, or no "
            "hardening."
        )


@dataclass
class Hardening:
    """One run: an edit, what is to be taken out of it, and how long.

    push: how far beyond the neutral prompts. rate: of a step relative to the weights, at its
    height. now: a clock, in seconds.
    """

    model: DiffusionModel
    edit: Edit
    concepts: Sequence[str]
    words: PromptSampler
    push: float
    rate: float
    seconds: float
    seed: int = 0
    progress: Progress = SILENT
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        words = self.model.vocabulary().without(*self.concepts)
        self.vocabulary, self.scale = words.vectors, words.scale
        self.generator = torch.Generator().manual_seed(self.seed)
        self.optimiser = self.edit.adam((0.9, 0.98), 1e-12, relative_rate=self.rate)

    def encoder(self) -> None:
        """Harden an edit of the text encoder.

        Raises what Edit.step raises, and ValueError where the encoder has no room for more tokens
        before its prompts; `progress` may raise to cancel.
        """
        model, words = self.model, self.words
        with self.edit.off():
            spread = prompt_spread(model, words.common[:16])
        neutral_words = {concept: words.neutral(concept, model) for concept in self.concepts}
        for concept in self._steps():
            named, neutral = self._sentences(concept, SENTENCES, neutral_words[concept])
            others = words.others(OTHERS)
            start, beside = self._some_words(len(named)), self._some_words(len(others))
            with self.edit.off():
                wanted = self._after(start, named)
                # Before the neutral prompts stand the words that the attack begins with, not those
                # it ends with, which may tell of the concept themselves.
                aim = self._after(start, neutral).extrapolate_from(wanted, self.push)
                plain_aim = model.encode(neutral).extrapolate_from(model.encode(named), self.push)
                held, held_after = model.encode(others), self._after(beside, others)

            def missed(vectors: torch.Tensor, named=named, wanted=wanted) -> torch.Tensor:
                return self._after(vectors, named).distance(wanted)

            found = soft_prefix(missed, start, scale=self.scale)
            attacked = self._after(found, named).distance(aim).mean()
            plain = model.encode(named).distance(plain_aim).mean()
            kept = model.encode(others).distance(held).mean()
            kept = kept + self._after(beside, others).distance(held_after).mean()
            self._step((PULL * (attacked + plain) + RETENTION / 2 * kept) / spread)

    def network(
        self, held: RetentionSet, pictures: torch.Tensor, times: Sequence[float], retention: float
    ) -> None:
        """Harden an edit of the denoising network.

        held: other prompts and pictures. pictures: (N, ...) latents of the concepts, as many of
        each, in their order. times: timesteps at which it is trained. Raises as `encoder`.
        """
        model = self.model
        each = len(pictures) // len(self.concepts)
        for concept in self._steps():
            first = self.concepts.index(concept) * each
            t = times[self.words.rng.randrange(len(times))]
            x0 = pictures[first + torch.randperm(each, generator=self.generator)[:2]].to(
                model.device
            )
            noise = torch.randn(x0.shape, generator=self.generator).to(x0)
            x = model.add_noise(x0, noise, at(t, x0))
            named, neutral = self._sentences(concept, len(x), self.words.anchors[concept])
            start = self._some_words(len(x))
            other_x, other_prompts = held.add_noise(self.words.rng, self.generator, t)
            plain = model.encode(named)
            with self.edit.off():
                own, aim = self._predictions(
                    t, (x, self._after(start, named)), (x, self._after(start, neutral))
                )
                plain_own, plain_aim, others_were = self._predictions(
                    t, (x, plain), (x, model.encode(neutral)), (other_x, other_prompts)
                )
            far = (plain_own - plain_aim).square().mean().clamp(min=1e-12)

            def missed(vectors: torch.Tensor, t=t, x=x, named=named, own=own) -> torch.Tensor:
                (now,) = self._predictions(t, (x, self._after(vectors, named)))
                return (now - own).square().flatten(1).mean(1)

            found = soft_prefix(missed, start, scale=self.scale)
            attacked_is, plain_is, others_are = self._predictions(
                t, (x, self._after(found, named)), (x, plain), (other_x, other_prompts)
            )
            attacked = (attacked_is - aim + self.push * (own - aim)).square().mean()
            left = (plain_is - plain_aim + self.push * (plain_own - plain_aim)).square().mean()
            kept = (others_are - others_were).square().mean()
            self._step((attacked + left + retention * kept) / far)

    def _steps(self) -> Iterator[str]:
        """The concept of each step while there is time, the rate rising at first, then falling."""
        full = [group["lr"] for group in self.optimiser.param_groups]
        self.began, self.before, self.done = self.now(), len(self.edit.history), 0
        while (elapsed := self.now() - self.began) < self.seconds:
            share = min(1.0, (self.done + 1) / WARM_UP) * (1 - (1 - LEAST) * elapsed / self.seconds)
            for group, rate in zip(self.optimiser.param_groups, full):
                group["lr"] = rate * share
            yield self.concepts[self.done % len(self.concepts)]

    def _step(self, loss: torch.Tensor) -> None:
        value = self.edit.step(self.optimiser, loss)
        self.done += 1
        elapsed = self.now() - self.began
        left = math.ceil(max(0.0, self.seconds - elapsed) * self.done / max(elapsed, 1e-6))
        done = self.before + self.done
        self.progress.step(done, done + left, value, self.edit)

    def _sentences(self, concept: str, count: int, neutral: str) -> tuple[list[str], list[str]]:
        """Prompts that name the concept, and the same with a neutral word."""
        sentences = self.words.sentences(count)
        return [s.format(concept) for s in sentences], [s.format(neutral) for s in sentences]

    def _some_words(self, count: int) -> torch.Tensor:
        """(count, tokens, width): vectors of words drawn from all that the encoder has."""
        size = count, TOKENS[self.words.kind]
        chosen = torch.randint(len(self.vocabulary), size, generator=self.generator)
        return self.vocabulary[chosen.to(self.vocabulary.device)]

    def _after(self, vectors: torch.Tensor, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of prompts with tokens before them."""
        return self.model.encode_with_embeddings(["{} " + prompt for prompt in prompts], vectors)

    def _predictions(
        self, t: float, *asked: tuple[torch.Tensor, Conditioning]
    ) -> tuple[torch.Tensor, ...]:
        """The denoiser's prediction of each (x_t, prompts), in one pass."""
        x = torch.cat([x for x, _ in asked])
        prompts = Conditioning.cat([prompts for _, prompts in asked])
        return self.model.predict(x, at(t, x), prompts).split([len(x) for x, _ in asked])


STEPS = 10
STEP = 0.3  # of the size of a token vector, at first; it falls to nothing


# The inner attack. AdvUnlearn (Zhang et al., arXiv 2405.15234, NeurIPS 2024) seeks one soft token
# with Adam, 30 steps at 1e-3. Ours are as many as an attacker has words, and a step is a share of
# the size of the token vectors, which differs from encoder to encoder.
def soft_prefix(
    losses_of: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    steps: int = STEPS,
    scale: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """The vectors that `steps` steps of normalised gradient descent lead to from `start`.

    losses_of: (N, tokens, width) to (N,) losses, each of its own vectors. start: token vectors of
    words. scale: Vocabulary.scale, so that one encoder's larger numbers do not outweigh another's.
    Gradients go to the vectors alone; what is being trained gets none.
    """
    vectors = start.detach() / scale
    size = vectors.square().mean().sqrt() * start.shape[-1] ** 0.5
    for step in range(steps):
        vectors.requires_grad_()
        (gradient,) = torch.autograd.grad(losses_of(vectors * scale).sum(), vectors)
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)  # of what overflowed in half precision
        length = gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        vectors = (vectors - STEP * (1 - step / steps) * size * gradient / length).detach()
    return vectors * scale
