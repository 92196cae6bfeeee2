"""Identify: finds the word that the model itself uses for the content of pictures.

A diffusion model is a zero-shot classifier (Li et al., arXiv 2303.16203): of several words, the
right one lets the denoiser predict the noise in the pictures best. Nothing is trained. Our addition
is a weight on the difference that a word makes in the prediction (CONDITIONAL_WEIGHT).

All words get the same noise and timesteps, so only the word differs. Weak words are dropped early,
by successive halving (Karnin, Koren and Somekh, ICML 2013). A stopping rule by confidence bounds
would need the spread of the differences, which a few draws do not give, and its cost would depend
on the pictures. Halving only ranks, so its cost is known before it begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..core.conditioning import Conditioning
from ..core.denoising import GOLDEN
from ..core.images import check_images
from ..core.kind import Kind
from ..core.model import DiffusionModel
from ..core.progress import SILENT, Progress
from ..prompts.templates import SENTENCES
from ..prompts.typed import split_words
from ..prompts.vocabulary import VOCABULARY

# The ranges of timesteps. An object shows in much noise, and so does a style that is asked for
# without an object. A style in a sentence with an object shows in less noise. Timesteps with too
# much noise for any word to matter do no harm: all words have the same loss there.
TIMES = (400.0, 1000.0)
TIMES_BESIDE_A_THING = (100.0, 800.0)
# The weight of the difference that a word makes in the prediction. For pictures unlike its training
# data, a denoiser overstates the effect of a word that describes the whole picture.
CONDITIONAL_WEIGHT = {"object": 0.5, "style": 1.0, "character": 0.5, "action": 0.5}
THING_DRAWS = 32  # draws to find the object in a picture, before its style is asked for
MOST_WORDS = 2000  # the most candidates; each costs at least one evaluation
IN_FULL = 10  # up to this many words get all draws; more words are halved down to it
AT_ONCE = 65536  # latent pixels in one batch: 16 latents of 64 x 64...
ROWS_AT_ONCE = 64  # ... but never more latents than this
ASKING = "asking the model"  # the name of the stage
ENCODED_AT_ONCE = 32  # prompts in one batch of the text encoder

Rows = TypeVar("Rows", list, torch.Tensor)


@dataclass(frozen=True)
class Word:
    """A candidate and how well it explains the pictures."""

    word: str
    explained: float
    """By what share the word lowers the loss without any word: the mean over its draws."""
    error: float
    """The standard error of its difference to the first word; 0 for the first itself."""
    draws: int
    """How many draws of noise and timestep it had before it was dropped."""


@dataclass(frozen=True)
class Ranking:
    """The candidates in order, best first."""

    words: list[Word]
    """Best first. A word that was dropped later stands before one that was dropped earlier."""
    confidence: float
    """The probability, 0 to 1, that the first word would also win the last round with endlessly
    many draws."""
    evaluations: int
    """How many evaluations of the denoiser it took, each of one latent."""
    kind: Kind = "object"

    @property
    def best(self) -> str:
        return self.words[0].word


def parse_words(text: str, kind: Kind) -> list[str]:
    """The candidates that a user typed, separated by commas or line breaks; the built-in ones for
    an empty text.

    Raises ValueError for fewer than two or too many.
    """
    # CLIP ignores capitals, so two spellings of one word would always tie.
    words: dict[str, str] = {}
    for word in split_words(text, "candidate"):
        words.setdefault(word.lower(), word)
    return check_candidates(list(words.values()) or VOCABULARY[kind])


def check_candidates(words: Sequence[str]) -> list[str]:
    """The words as a list. Raises ValueError for fewer than two or more than MOST_WORDS."""
    if len(words) < 2:
        raise ValueError(
            f"There is nothing to choose from: {len(words)} candidate is given; type at least two, "
            "separated by commas or lines, or none for the built-in words."
        )
    if len(words) > MOST_WORDS:
        raise ValueError(
            f"There are {len(words)} candidates, but at most {MOST_WORDS} are compared; remove the "
            "least likely ones."
        )
    return list(words)


def rounds(count: int, draws: int) -> list[tuple[int, int]]:
    """The plan of successive halving: for each round (words left, draws that each of them has had
    at its end).

    Up to IN_FULL words get all draws in one round. With more words, every round costs the same: the
    better half goes on, with twice the draws.
    """
    plan, left, until = [], count, 0
    while True:
        # At least one new draw in every round.
        until = min(draws, max(until + 1, IN_FULL * draws // left))
        plan.append((left, until))
        if until == draws:
            return plan
        left = math.ceil(left / 2)


@dataclass(frozen=True)
class Context:
    """The prompts that are compared for a picture."""

    without: str
    """The prompt without a candidate."""
    sentence: str
    """The prompt with a slot for a candidate."""


def alone(kind: Kind) -> Context:
    """The prompts for a picture of nothing but the concept."""
    return Context("", SENTENCES[kind])


def beside(thing: str) -> Context:
    """The prompts for the style of a picture that shows an object, `thing`."""
    return Context(f"a picture of a {thing}", f"a picture of a {thing} in the style of {{}}")


@torch.no_grad()
def identify(
    model: DiffusionModel,
    images: torch.Tensor,
    words: Sequence[str],
    kind: Kind = "object",
    draws: int = 64,
    seed: int = 0,
    progress: Progress = SILENT,
    things: Sequence[str] = VOCABULARY["object"],
) -> Ranking:
    """Rank words by how well the model predicts the noise in the pictures with each as the prompt.

    images: (N, H, W, 3) in 0..1, all of one object or in one style. draws: of noise and timestep,
    for each word in the last round. The pictures share them evenly, and each has at least one.
    things: for kind "style", the objects that the pictures may show. The object of each picture is
    found first, and then named in the prompts. Empty: the prompts name the style alone, for
    pictures that show no object. The same seed gives the same ranking.

    Raises ValueError for bad input, before any work; `progress` may raise to cancel.
    """
    check_images(images)
    words, draws = check_candidates(words), max(draws, len(images))
    plan = rounds(len(words), draws)
    total, spent, times = _evaluations(plan), 0, TIMES
    if kind == "style" and things:
        before = len(images) * _evaluations(rounds(len(things), THING_DRAWS))
        total += before
        contexts = _things(model, images, things, seed, progress, total)
        spent, times = before, TIMES_BESIDE_A_THING
    else:
        contexts = [alone(kind)] * len(images)
    noised = _in_turns(model, model.encode_images(images), times, draws, seed)
    prompts = _Prompts(model, contexts, words)
    # Row 0 is the prompt without a word; it is never dropped.
    losses = torch.full((len(words) + 1, draws), torch.nan)
    left, had = list(range(1, len(words) + 1)), 0
    for count, until in plan:
        if had:
            left = _ordered(losses, left, had)[:count]
        rows = [(row, draw) for draw in range(had, until) for row in (0, *left)]
        for batch in _batches(rows, noised.at_once):
            row, at = torch.tensor(batch).T
            conditioning = prompts.of(row, noised.picture[at])
            losses[row, at] = noised.loss(at, conditioning, row == 0, CONDITIONAL_WEIGHT[kind])
            spent += len(batch)
            complete = int(at[-1]) + (row[-1] == left[-1])  # draws that all words have had
            ahead = _ordered(losses, left, complete)[0] if complete else left[0]
            progress.stage(ASKING, spent, total, words[ahead - 1] if complete else "")
        had = until
    return _ranking(losses, words, spent, kind)


def _things(
    model: DiffusionModel,
    images: torch.Tensor,
    things: Sequence[str],
    seed: int,
    progress: Progress,
    total: int,
) -> list[Context]:
    """The prompts for each picture's style, with the object that the picture shows.

    If the prompt did not name the object, its part of the loss would outweigh any style's.
    """
    contexts = []
    for i in range(len(images)):
        on_part = progress.part(i, len(images), total)
        found = identify(model, images[[i]], things, "object", THING_DRAWS, seed, on_part)
        contexts.append(beside(found.best))
    return contexts


def _evaluations(plan: list[tuple[int, int]]) -> int:
    """The evaluations of all rounds, with those of the prompt without a word."""
    before = [0, *(until for _, until in plan)]
    return sum((left + 1) * (until - had) for (left, until), had in zip(plan, before))


def explained(
    model: DiffusionModel,
    x0: torch.Tensor,
    contexts: Sequence[Context],
    words: Sequence[str],
    draws: range,
    kind: Kind = "object",
    seed: int = 0,
    progress: Progress = SILENT,
) -> torch.Tensor:
    """(pictures, words, draws): by what share each word lowers each picture's loss without a word.

    draws: which draws; a later call can ask for others. For the rest see `Asking`.
    """
    asking = Asking(model, x0, contexts, words, draws.stop, kind, seed, progress)
    return asking.shares(range(len(x0)), range(len(words)), draws)


class Asking:
    """How well words explain pictures. Losses are computed when first needed, and then kept."""

    @torch.no_grad()
    def __init__(
        self,
        model: DiffusionModel,
        x0: torch.Tensor,
        contexts: Sequence[Context],
        words: Sequence[str],
        draws: int,
        kind: Kind = "object",
        seed: int = 0,
        progress: Progress = SILENT,
    ) -> None:
        """x0: clean latents of the pictures, which all get the same noise and timesteps. contexts:
        one per picture, see `alone` and `beside`. draws: the most per picture. `progress` may raise
        to cancel."""
        noise = torch.randn((draws, *x0.shape[1:]), generator=torch.Generator().manual_seed(seed))
        self.noised = _Draws(
            model,
            x0,
            torch.arange(len(x0)).repeat_interleave(draws),
            _evenly(draws, TIMES).repeat(len(x0)),
            noise.repeat(len(x0), *[1] * (noise.ndim - 1)),
        )
        self.prompts = _Prompts(model, contexts, words)
        self.losses = torch.full((len(x0), len(words) + 1, draws), torch.nan)
        self.weight, self.progress = CONDITIONAL_WEIGHT[kind], progress

    @torch.no_grad()
    def shares(
        self, pictures: Sequence[int], words: Sequence[int], draws: Sequence[int]
    ) -> torch.Tensor:
        """(pictures, words, draws): by what share each word lowers the loss without a word.

        pictures, words, draws: their numbers from 0. Raises ValueError where a prediction is not
        finite.
        """
        pictures, draws, rows = list(pictures), list(draws), [0, *(word + 1 for word in words)]
        places = torch.cartesian_prod(*map(torch.tensor, (pictures, draws, rows))).view(-1, 3)
        picture, draw, row = places.T
        places = places[self.losses[picture, row, draw].isnan()]
        done = 0
        for batch in _batches(places, self.noised.at_once):
            picture, draw, row = batch.T
            at = picture * self.losses.shape[2] + draw
            conditioning = self.prompts.of(row, picture)
            self.losses[picture, row, draw] = self.noised.loss(
                at, conditioning, row == 0, self.weight
            )
            done += len(batch)
            self.progress.stage(ASKING, done, len(places))
        losses = self.losses[pictures][:, rows][:, :, draws]
        return 1 - losses[:, 1:] / losses[:, :1]


def _evenly(count: int, times: tuple[float, float]) -> torch.Tensor:
    """(count,) timesteps. Multiples of the golden ratio: the first n are even for every n."""
    share = (0.5 + torch.arange(count) * GOLDEN) % 1
    return times[0] + (times[1] - times[0]) * share


def _in_turns(
    model: DiffusionModel, x0: torch.Tensor, times: tuple[float, float], count: int, seed: int
) -> _Draws:
    """Draws for which the pictures take turns in random order, so that each round sees as many of
    them as possible."""
    generator = torch.Generator().manual_seed(seed)
    turns = [torch.randperm(len(x0), generator=generator) for _ in range(-(-count // len(x0)))]
    # On the CPU: many draws would fill a GPU's memory.
    noise = torch.randn((count, *x0.shape[1:]), generator=generator)
    return _Draws(model, x0, torch.cat(turns)[:count], _evenly(count, times), noise)


class _Draws:
    """The draws of noise and timestep that all words share, and the losses on them."""

    def __init__(
        self,
        model: DiffusionModel,
        x0: torch.Tensor,
        picture: torch.Tensor,
        t: torch.Tensor,
        noise: torch.Tensor,
    ) -> None:
        """picture: (draws,), the picture of each draw. t: (draws,). noise: (draws, ...). All on the
        CPU."""
        self.picture, self.x0, self.t, self.noise = picture, x0, t, noise
        self.plain = torch.zeros_like(noise)
        """The predictions without a word, (draws, ...)."""
        self.model = model
        self.at_once = rows_at_once(x0[0, 0].numel())

    def loss(
        self, at: torch.Tensor, conditioning: Conditioning, without: torch.Tensor, weight: float
    ) -> torch.Tensor:
        """(N,) mean squared error of the predictions for the draws `at`, (N,), each with its own
        conditioning; on the CPU.

        without: (N,), true for rows without a word; each draw's comes before its other rows.
        weight: of the difference between the prediction with a word and without.
        """
        x0 = self.x0[self.picture[at].to(self.x0.device)]
        noise, t = self.noise[at].to(x0), self.t[at].to(x0.device)
        predicted = self.model.predict(self.model.add_noise(x0, noise, t), t, conditioning).float()
        self.plain[at[without]] = predicted[without.to(x0.device)].cpu()
        if not predicted.isfinite().all():
            raise ValueError(
                "The denoiser's predictions are not finite; load the model in another precision, "
                "such as bfloat16 or float32, and check the LoRAs on it."
            )
        plain = self.plain[at].to(predicted)
        error = plain + weight * (predicted - plain) - self.model.target(x0, noise, t).float()
        return error.square().flatten(1).mean(1).cpu()


class _Prompts:
    """The conditioning without a word and with each word, in each of the pictures' contexts."""

    def __init__(
        self, model: DiffusionModel, contexts: Sequence[Context], words: Sequence[str]
    ) -> None:
        different = list(dict.fromkeys(contexts))
        self.context = torch.tensor([different.index(context) for context in contexts])
        self.size = len(words) + 1
        sentences = [
            sentence
            for context in different
            for sentence in (context.without, *(context.sentence.format(word) for word in words))
        ]
        self.device = model.device
        # On the CPU: T5's conditioning of some hundred words takes gigabytes.
        self.conditioning = Conditioning.cat(
            [
                model.encode(sentences[i : i + ENCODED_AT_ONCE]).to("cpu")
                for i in range(0, len(sentences), ENCODED_AT_ONCE)
            ]
        )

    def of(self, row: torch.Tensor, picture: torch.Tensor) -> Conditioning:
        """The conditioning of N rows. row: (N,), 0 without a word, else the word's number from 1.
        picture: (N,), the number of the picture."""
        index = self.context[picture] * self.size + row
        return self.conditioning[index].to(self.device)


def rows_at_once(pixels: int) -> int:
    """The batch size of the denoiser for latents of so many pixels."""
    return min(ROWS_AT_ONCE, max(1, AT_ONCE // pixels))


def _batches(rows: Rows, size: int) -> Iterator[Rows]:
    for i in range(0, len(rows), size):
        yield rows[i : i + size]


def _relative(losses: torch.Tensor, rows: Sequence[int], draws: int) -> torch.Tensor:
    """(rows, draws) losses divided by those without a word. Losses in little and in much noise
    differ a hundredfold, and each draw should count the same."""
    return losses[list(rows), :draws] / losses[0, :draws]


def _ordered(losses: torch.Tensor, rows: Sequence[int], draws: int) -> list[int]:
    """Rows, best first, by their first `draws` draws."""
    order = _relative(losses, rows, draws).mean(1).argsort(stable=True)
    return [rows[i] for i in order]


def _ranking(losses: torch.Tensor, words: Sequence[str], spent: int, kind: Kind) -> Ranking:
    had = (~losses.isnan()).sum(1).tolist()
    by_draws: dict[int, list[int]] = {}
    for row in range(1, len(losses)):
        by_draws.setdefault(had[row], []).append(row)
    order = [
        row for n in sorted(by_draws, reverse=True) for row in _ordered(losses, by_draws[n], n)
    ]
    ranked = []
    for row in order:
        own, first = _relative(losses, (row, order[0]), had[row])
        ranked.append(Word(words[row - 1], 1 - own.mean().item(), _error(own - first), had[row]))
    rivals = [word for word in ranked[1:] if word.draws == ranked[0].draws]
    return Ranking(ranked, _confidence(ranked[0], rivals), spent, kind)


def _error(differences: torch.Tensor) -> float:
    """The standard error of the mean; infinite for a single draw."""
    if len(differences) < 2:
        return math.inf
    return (differences.std() / math.sqrt(len(differences))).item()


def _confidence(first: Word, rivals: Sequence[Word]) -> float:
    """1 minus the sum of the probabilities that a rival is better than the first word.

    Each is taken from the paired differences. With many draws, their mean is nearly normal.
    """
    overtaken = sum(
        0.5
        * math.erfc((first.explained - rival.explained) / max(rival.error, 1e-12) / math.sqrt(2))
        for rival in rivals
    )
    return max(0.0, 1.0 - overtaken)
