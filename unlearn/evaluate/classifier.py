"""Identify: what a model itself calls the thing in some pictures.

The model is a classifier as it stands (Li et al., arXiv 2303.16203): of several words the right one
is that under which the network predicts the noise in the pictures best. Nothing is trained and
nothing else is needed. Ours is that only a share of what a word changes in the prediction counts.

Every word gets the same noise and the same timesteps, so that what differs is the word alone. Weak
words are dropped early, by successive halving (Karnin, Koren and Somekh, ICML 2013). A bound on
paired differences would need their spread, which a handful of draws does not tell, and its cost
would depend on the pictures; halving only ranks, and its cost is known before it begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..core.conditioning import Conditioning
from ..core.denoising import GOLDEN
from ..core.images import check_images
from ..core.kind import Kind
from ..core.model import DiffusionModel
from ..prompts.templates import SENTENCES
from ..prompts.typed import split_words
from ..prompts.vocabulary import VOCABULARY

# Timesteps that are tried: what a thing is shows in much noise, and so does a style that is asked
# for without one; beside a thing it shows in less. Where there is too much noise for any word to
# matter, all losses are alike and nothing is lost.
TIMES = (400.0, 1000.0)
TIMES_BESIDE_A_THING = (100.0, 800.0)
# How much of what a word changes in the prediction is believed. Of pictures unlike those that it
# learnt from, a network overstates what a word for the whole picture says.
CONDITIONAL_WEIGHT = {"object": 0.5, "style": 1.0, "character": 0.5}
THING_DRAWS = 32  # with which the thing in a picture is found, before its style is asked for
MOST_WORDS = 2000  # candidates: each is asked for at least once
IN_FULL = 10  # as many words get every draw; more of them are halved down to it
AT_ONCE = 65536  # pixels of latents that the network works on at once: 16 of 64 x 64...
ROWS_AT_ONCE = 64  # ... but no more than these
ENCODED_AT_ONCE = 32  # prompts

Rows = TypeVar("Rows", list, torch.Tensor)
OnRow = Callable[[int, int, str], None]
"""on_row(evaluations so far, all of them, the leading word), called often; it may raise to cancel.
The word is "" where none leads yet."""


@dataclass(frozen=True)
class Word:
    """A candidate and how well it explains the pictures."""

    word: str
    explained: float
    """Share of the loss without any word that the word takes away: a mean over its draws."""
    error: float
    """Standard error of its distance from the first word; 0 for the first itself."""
    draws: int
    """How many draws of noise and timestep it was given before it was dropped."""


@dataclass(frozen=True)
class Ranking:
    words: list[Word]
    """Best first; one that was kept longer stands before one that was dropped earlier."""
    confidence: float
    """How likely the first word would still be first among those that were left in the end, after
    endlessly many draws, 0 to 1."""
    evaluations: int
    """Network evaluations of one row that it took."""
    kind: Kind = "object"

    @property
    def best(self) -> str:
        return self.words[0].word


def parse_words(text: str, kind: Kind) -> list[str]:
    """The words that a user typed, separated by commas or lines; the built-in ones for an empty
    text.

    Raises ValueError when there is nothing to choose from.
    """
    # CLIP reads no capitals, and two spellings of one word would tie for ever.
    words: dict[str, str] = {}
    for word in split_words(text, "candidate"):
        words.setdefault(word.lower(), word)
    return check_candidates(list(words.values()) or VOCABULARY[kind])


def check_candidates(words: Sequence[str]) -> list[str]:
    """Raises ValueError with one sentence when there is nothing to choose from."""
    if len(words) < 2:
        raise ValueError(
            f"There is nothing to choose from: {len(words)} candidate is given; name at least two, "
            "separated by commas or lines, or none for the built-in words."
        )
    if len(words) > MOST_WORDS:
        raise ValueError(
            f"There are {len(words)} candidates and at most {MOST_WORDS} are asked for; leave out "
            "the least likely."
        )
    return list(words)


def rounds(count: int, draws: int) -> list[tuple[int, int]]:
    """(words left, draws that each has had by its end) of every round.

    Up to IN_FULL words get all draws at once. More of them begin with as many as cost the same;
    then the better half goes on, with twice the draws, until all are done.
    """
    plan, left, until = [], count, 0
    while True:
        # None is dropped without a draw more.
        until = min(draws, max(until + 1, IN_FULL * draws // left))
        plan.append((left, until))
        if until == draws:
            return plan
        left = math.ceil(left / 2)


@dataclass(frozen=True)
class Context:
    """The sentences that a picture is judged by."""

    without: str
    """That names no candidate."""
    sentence: str
    """With a gap for one."""


def alone(kind: Kind) -> Context:
    """Of a picture that shows nothing beside what is asked for."""
    return Context("", SENTENCES[kind])


def beside(thing: str) -> Context:
    """Of a picture of a thing, whose style is asked for."""
    return Context(f"a picture of a {thing}", f"a picture of a {thing} in the style of {{}}")


@torch.no_grad()
def identify(
    model: DiffusionModel,
    images: torch.Tensor,
    words: Sequence[str],
    kind: Kind = "object",
    draws: int = 64,
    seed: int = 0,
    on_row: OnRow | None = None,
    things: Sequence[str] = VOCABULARY["object"],
) -> Ranking:
    """Rank words by how well the model predicts the noise in the pictures under each.

    images: (N, H, W, 3) in 0..1, all of one thing or in one style. draws: of noise and timestep for
    the words that are left in the end, shared out evenly among the pictures; at least one for each.
    things: what pictures whose style is asked for may show; it is found first. None: the style is
    asked for by itself, of pictures that show no thing. The same seed gives the same ranking.

    Raises ValueError for bad input, before any work; `on_row` may raise to cancel.
    """
    check_images(images)
    words, draws = check_candidates(words), max(draws, len(images))
    plan = rounds(len(words), draws)
    total, spent, times = _evaluations(plan), 0, TIMES
    if kind == "style" and things:
        before = len(images) * _evaluations(rounds(len(things), THING_DRAWS))
        total += before
        contexts = _things(model, images, things, seed, on_row, total)
        spent, times = before, TIMES_BESIDE_A_THING
    else:
        contexts = [alone(kind)] * len(images)
    noised = _in_turns(model, model.encode_images(images), times, draws, seed)
    prompts = _Prompts(model, contexts, words)
    # Rows: no word, which is never dropped, and the words.
    losses = torch.full((len(words) + 1, draws), torch.nan)
    left, had = list(range(1, len(words) + 1)), 0
    for count, until in plan:
        if had:
            left = _ordered(losses, left, had)[:count]
        rows = [(row, draw) for draw in range(had, until) for row in (0, *left)]
        for some in _batches(rows, noised.at_once):
            row, at = torch.tensor(some).T
            conditioning = prompts.of(row, noised.picture[at])
            losses[row, at] = noised.loss(at, conditioning, row == 0, CONDITIONAL_WEIGHT[kind])
            spent += len(some)
            if on_row:
                complete = int(at[-1]) + (row[-1] == left[-1])  # draws that all have had
                ahead = _ordered(losses, left, complete)[0] if complete else left[0]
                on_row(spent, total, words[ahead - 1] if complete else "")
        had = until
    return _ranking(losses, words, spent, kind)


def _things(
    model: DiffusionModel,
    images: torch.Tensor,
    things: Sequence[str],
    seed: int,
    on_row: OnRow | None,
    total: int,
) -> list[Context]:
    """What each picture shows, so that its style can be asked for in a whole sentence.

    A style's own sentence names no thing, and of a thing that is there the network then errs more
    than any style can make good.
    """
    contexts = []
    for i in range(len(images)):

        def on(done: int, of: int, leader: str, i: int = i) -> None:
            on_row(i * of + done, total, leader)

        found = identify(
            model, images[[i]], things, "object", THING_DRAWS, seed, on if on_row else None
        )
        contexts.append(beside(found.best))
    return contexts


def _evaluations(plan: list[tuple[int, int]]) -> int:
    """Rows of the network in all rounds, those without a word with them."""
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
    on_row: OnRow | None = None,
) -> torch.Tensor:
    """(pictures, words, draws) shares of the loss without any word that each word takes away of
    each picture. What is given and raised: see `Asking`, which can be asked for more later.

    draws: which of them, so that more can be asked for later.
    """
    asking = Asking(model, x0, contexts, words, draws.stop, kind, seed, on_row)
    return asking.shares(range(len(x0)), range(len(words)), draws)


class Asking:
    """What words explain of pictures, asked for a few of them at a time: what the network has said
    once it is not asked again."""

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
        on_row: OnRow | None = None,
    ) -> None:
        """x0: clean latents of the pictures, which all get the same noise and timesteps. contexts:
        of each picture, see `alone` and `beside`. draws: at most so many. `on_row` may raise to
        cancel."""
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
        self.believed, self.on_row = CONDITIONAL_WEIGHT[kind], on_row

    @torch.no_grad()
    def shares(
        self, pictures: Sequence[int], words: Sequence[int], draws: Sequence[int]
    ) -> torch.Tensor:
        """(pictures, words, draws) shares of the loss without any word that each takes away.

        By their numbers. Raises ValueError where the network predicts what is not finite.
        """
        pictures, draws, rows = list(pictures), list(draws), [0, *(word + 1 for word in words)]
        places = torch.cartesian_prod(*map(torch.tensor, (pictures, draws, rows))).view(-1, 3)
        picture, draw, row = places.T
        places = places[self.losses[picture, row, draw].isnan()]
        done = 0
        for some in _batches(places, self.noised.at_once):
            picture, draw, row = some.T
            at = picture * self.losses.shape[2] + draw
            conditioning = self.prompts.of(row, picture)
            self.losses[picture, row, draw] = self.noised.loss(
                at, conditioning, row == 0, self.believed
            )
            done += len(some)
            if self.on_row:
                self.on_row(done, len(places), "")
        losses = self.losses[pictures][:, rows][:, :, draws]
        return 1 - losses[:, 1:] / losses[:, :1]


def _evenly(count: int, times: tuple[float, float]) -> torch.Tensor:
    """(count,) timesteps. Multiples of the golden ratio: however many are used, they lie evenly."""
    share = (0.5 + torch.arange(count) * GOLDEN) % 1
    return times[0] + (times[1] - times[0]) * share


def _in_turns(
    model: DiffusionModel, x0: torch.Tensor, times: tuple[float, float], count: int, seed: int
) -> _Draws:
    """Draws for which the pictures take turns, in random order, so that every round sees as many as
    it can."""
    generator = torch.Generator().manual_seed(seed)
    turns = [torch.randperm(len(x0), generator=generator) for _ in range(-(-count // len(x0)))]
    # On the CPU: of many draws they would fill a card.
    noise = torch.randn((count, *x0.shape[1:]), generator=generator)
    return _Draws(model, x0, torch.cat(turns)[:count], _evenly(count, times), noise)


class _Draws:
    """The draws of noise and timestep that all words share, and the loss in them."""

    def __init__(
        self,
        model: DiffusionModel,
        x0: torch.Tensor,
        picture: torch.Tensor,
        t: torch.Tensor,
        noise: torch.Tensor,
    ) -> None:
        """picture: (draws,) which one each is of. t: (draws,). noise: (draws, ...). On the CPU."""
        self.picture, self.x0, self.t, self.noise = picture, x0, t, noise
        self.plain = torch.zeros_like(noise)
        """The predictions without a word."""
        self.model = model
        self.at_once = rows_at_once(x0[0, 0].numel())

    def loss(
        self, at: torch.Tensor, conditioning: Conditioning, without: torch.Tensor, believed: float
    ) -> torch.Tensor:
        """(N,) mean squared error of the prediction in the draws `at`, each under its own
        conditioning; on the CPU.

        without: (N,) which rows name no word; each draw's is asked for before the others. Of what a
        word changes against it, `believed` is the share that counts.
        """
        x0 = self.x0[self.picture[at].to(self.x0.device)]
        noise, t = self.noise[at].to(x0), self.t[at].to(x0.device)
        predicted = self.model.predict(self.model.add_noise(x0, noise, t), t, conditioning).float()
        self.plain[at[without]] = predicted[without.to(x0.device)].cpu()
        if not predicted.isfinite().all():
            raise ValueError(
                "What the network predicts is not finite, so it cannot be asked: load it in "
                "another precision, such as bfloat16 or float32, and look at the LoRAs on it."
            )
        plain = self.plain[at].to(predicted)
        error = plain + believed * (predicted - plain) - self.model.target(x0, noise, t).float()
        return error.square().flatten(1).mean(1).cpu()


class _Prompts:
    """The conditioning of no word and of every word, in each of the pictures' contexts."""

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
        # Kept on the CPU: T5's of some hundred words are gigabytes.
        self.conditioning = Conditioning.cat(
            [
                model.encode(sentences[i : i + ENCODED_AT_ONCE]).to("cpu")
                for i in range(0, len(sentences), ENCODED_AT_ONCE)
            ]
        )

    def of(self, row: torch.Tensor, picture: torch.Tensor) -> Conditioning:
        """row: (N,) 0 for no word, else the word's place from 1; picture: (N,)."""
        index = self.context[picture] * self.size + row
        return self.conditioning[index].to(self.device)


def rows_at_once(pixels: int) -> int:
    """How many rows the network works on at once, where a picture's latents have so many pixels."""
    return min(ROWS_AT_ONCE, max(1, AT_ONCE // pixels))


def _batches(rows: Rows, size: int) -> Iterator[Rows]:
    for i in range(0, len(rows), size):
        yield rows[i : i + size]


def _relative(losses: torch.Tensor, rows: Sequence[int], draws: int) -> torch.Tensor:
    """(rows, draws) losses as shares of that without a word: a clean and a noisy latent differ a
    hundredfold, and each draw shall count alike."""
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
    """Standard error of the mean; infinite of a single draw."""
    if len(differences) < 2:
        return math.inf
    return (differences.std() / math.sqrt(len(differences))).item()


def _confidence(first: Word, rivals: Sequence[Word]) -> float:
    """One less the chances that each of the rivals is better in truth, by their paired differences.

    A difference is taken as normal with its standard error: the draws are many.
    """
    overtaken = sum(
        0.5
        * math.erfc((first.explained - rival.explained) / max(rival.error, 1e-12) / math.sqrt(2))
        for rival in rivals
    )
    return max(0.0, 1.0 - overtaken)
