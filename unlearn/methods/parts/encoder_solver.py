"""A solve for each layer of a text encoder, as the prompts come by; see methods/closed_form.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from ...core.model import TextModel
from ...core.progress import Progress
from .alignment import common_start, counterparts
from .layer_ends import Place
from .layers import Change, Waiting, walk
from .least_squares import compressed, rooted, solve
from .norm_gain import NormGain
from .solve_prompts import Prompts, SolveSettings
from .way_left import share_left

HELD = 12  # tokens of other prompts for each of a layer's inputs
# In layers with more inputs than WIDE the matrix of all pairs of inputs is not made: with 14,336 it
# takes 1.6 GB in float64, its factor as much again, and their solve minutes on a CPU. There it is
# solved in that of all pairs of tokens, of which there are TOKENS: 0.5 GB. A quarter of them are
# the concept's.
WIDE = 8192
TOKENS = 8192


def solved(
    model: TextModel,
    concepts: Sequence[str],
    names: Mapping[str, Sequence[str]],
    settings: SolveSettings,
    progress: Progress,
    more: Mapping[str, Sequence[str]] = {},
) -> Solver:
    """The changes that take the concepts out of the text encoder, each layer computed once.

    names: other names of a concept. more: further sentences of a concept, with a slot. Raises
    ValueError for an encoder whose layers cannot be changed so; `progress` may raise to cancel.
    """
    settings = settings.with_concepts(len(concepts))
    prompts = Prompts.of(model, concepts, settings, names, more)
    solver = Solver(prompts, settings, len(model.encoder_layers()), progress)
    walk(model, prompts.batches, prompts.places, solver.at, prompts.still)
    return solver


class Chosen(NamedTuple):
    """Tokens of a batch."""

    numbers: torch.Tensor
    times: torch.Tensor
    """How often each of them counts."""


class Solver:
    """Solves for each layer's change as the prompts come by, and collects the deltas."""

    def __init__(
        self, prompts: Prompts, settings: SolveSettings, layers: int, progress: Progress
    ) -> None:
        self.prompts, self.settings, self.progress = prompts, settings, progress
        self.layers, self.done = layers, 0
        self.deltas: dict[str, dict[str, torch.Tensor]] = {}
        self.left: list[float] = []
        """Of each layer: the squared distance of the concept's prompts from their aim, as a share
        of how far they were from the anchor's."""
        self.left_of: dict[str, float] = {}
        """Of each concept: the share of its way to the anchor that is left after the last layer; in
        several encoders, that of the one where most is left."""
        self.counterparts: dict[int, torch.Tensor | None] = {}
        """Of each named prompt, its tokens' counterparts in the stack of layers that it passes."""
        self.counting: list[Chosen] = []
        """Of each batch the tokens that count, without what prompts begin with."""
        self.repeated: list[torch.Tensor] = []
        """Of these, whether the token is the one before it again, as padding is."""

    def at(self, place: Place, waiting: list[Waiting]) -> list[Change | None]:
        """The change of this layer for each batch: none for those that show the original."""
        self.progress.stage("solving", self.done, self.layers)
        self.done += 1
        if place.first:
            self._align([one.entering for one in waiting])
        pairs = self._pairs([one.after for one in waiting])
        if place.first:
            self._count([one.entering for one in waiting], pairs)
        change = self._solved(place, self.prompts.split(waiting), pairs)
        self.deltas[place.key] = {
            name: half.float().cpu().contiguous()
            for name, half in zip(("lora_up", "lora_down"), change)
        }
        self._note_left(place, change, self.prompts.split(waiting)["named"], pairs)
        return [None if i in self.prompts.still else change for i in range(len(waiting))]

    def _align(self, entering: list[torch.Tensor]) -> None:
        neutral = dict(self._rows("neutral", entering))
        named = self._rows("named", entering)
        aims = self.prompts.aims
        self.counterparts = {i: counterparts(own, neutral[aims[i]]) for i, own in named}

    def _count(self, entering: list[torch.Tensor], pairs: list) -> None:
        """Find what the prompts of the concept and of the anchor begin with: the template of a
        language model. It does not count, or once in each batch of others: there is nothing to
        change, and as the larger part of all tokens it would leave little weight to the words.
        All else counts as often as its prompt was drawn."""
        part, numbers = self.prompts.parts, self.prompts.numbers
        start = entering[part.index("named")][0]
        for tensor, own in zip(entering, part):
            if own in ("named", "neutral"):
                start = start[: min(common_start(row, start) for row in tensor)]
        (_, away), first = pairs[0], numbers[part.index("named")]
        rows, shared = away.reshape(len(first), -1, away.shape[1]), len(start)
        # The start token alone is a token like any other. Where later tokens are read, too, as by
        # T5, what begins alike does not stay so.
        if shared < 2 or rows[:, :shared].abs().amax() > 1e-3 * rows.abs().amax():
            shared = 0
        self.counting, self.repeated = [], []
        for tensor, own, some, drawn in zip(entering, part, numbers, self.prompts.drawn):
            times = _of_rows(drawn, tensor)[:, None].repeat(1, tensor.shape[1])
            repeated = torch.zeros(tensor.shape[:2], dtype=torch.bool)
            repeated[:, 1:] = (tensor[:, 1:] == tensor[:, :-1]).all(-1).cpu()
            if shared:
                same = [common_start(row, start) == shared for row in tensor]
                begun = torch.zeros(len(tensor), dtype=times.dtype)
                if own == "others":  # of a prompt with several rows the first begins a batch
                    begun[:: len(tensor) // len(some)] = torch.tensor(
                        [self.prompts.begun[i] for i in some]
                    )
                times[same, :shared] = begun[same][:, None]
            counting = times.flatten().nonzero()[:, 0]
            self.counting.append(Chosen(counting, times.flatten()[counting]))
            self.repeated.append(repeated.flatten()[counting])

    def _pairs(self, after: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of each batch of named prompts (wanted, apart), (tokens of all prompts, width): how far
        its hidden states are from those that they should be, and how far the original encoder's are
        from those of the anchor's prompts."""
        neutral = dict(self._rows("neutral", after))
        by_part = self.prompts.split(list(zip(after, self.prompts.numbers)))
        pairs = []
        for (own, numbers), (origin, _) in zip(by_part["named"], by_part["origin"]):
            own_aims = [neutral[self.prompts.aims[i]] for i in numbers]
            aims = [_at(aim, self.counterparts[i]).float() for i, aim in zip(numbers, own_aims)]
            aim, was = torch.cat(aims), flat(origin.float())
            away = aim - was
            aim = (aim + self.settings.further * away).lerp(was, 1 - self.settings.strength)
            pairs.append((aim - flat(own.float()), away))
        return pairs

    def _rows(self, part: str, tensors: list[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        """(number, (tokens, width)) of each prompt of a part. A long prompt has several rows in a
        batch of its own."""
        for tensor, own, numbers in zip(tensors, self.prompts.parts, self.prompts.numbers):
            if own == part:
                rows = tensor.reshape(len(numbers), -1, tensor.shape[-1])
                yield from zip(numbers, rows)

    def _solved(
        self,
        place: Place,
        by_part: dict[str, list[Waiting]],
        pairs: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> Change:
        settings, gain = self.settings, place.gain
        width = place.linear.in_features
        is_wide = width > WIDE
        named = by_part["named"]
        chosen = self._sampled("named", TOKENS // 4 if is_wide else None, is_wide)
        times = [some.times for some in chosen]
        inputs = [_of_size(one, gain, some.numbers) for one, some in zip(named, chosen)]
        wanted = [picked(pair[0], some.numbers) for pair, some in zip(pairs, chosen)]
        if gain is not None:
            before = [picked(one.normed, some.numbers) for one, some in zip(named, chosen)]
            wanted = [gain.change(x, more) for x, more in zip(before, wanted)]
        enough = TOKENS - sum(int(own.sum()) for own in times) if is_wide else HELD * width
        chosen = self._sampled("others", enough, is_wide)
        held = [_of_size(one, gain, some.numbers) for one, some in zip(by_part["others"], chosen)]
        held_times = [some.times for some in chosen]
        change = solve(inputs, wanted, held, settings.hold, settings.ridge, times, held_times)
        up, down = compressed(change, inputs, settings.keep, times)
        if place.left < settings.last and settings.directions:
            often = self.prompts.split(self.prompts.drawn)["named"]
            apart = [rooted(away, _of_rows(own, away)) for (_, away), own in zip(pairs, often)]
            out = main_directions(apart, settings.directions)
            if gain is not None:  # what the norm multiplies, so that these directions stay out
                out = torch.linalg.qr(out * gain.gain.to(out)[:, None]).Q
            edited = from_the_left(place.linear, out, named[0].inputs) + (out.T @ up) @ down
            edited = min(1.0, settings.strength) * edited
            up, down = torch.cat([up, -out], 1), torch.cat([down, edited])
        return up, down

    def _note_left(
        self, place: Place, change: Change, named: list[Waiting], pairs: list[tuple]
    ) -> None:
        """Note what is left. pairs: of `_pairs`."""
        sums: dict[str, torch.Tensor] = {}
        of_batches = list(zip(self.prompts.numbers, self.prompts.drawn))
        batches = self.prompts.split(of_batches)["named"]
        for one, (wanted, apart), (numbers, drawn) in zip(named, pairs, batches):
            ways = wanted - flat(one.gain(place, change)), apart
            squares = [
                way.square().view(len(numbers), -1).sum(1, dtype=torch.float64) for way in ways
            ]
            for number, own, times in zip(numbers, torch.stack(squares, 1), drawn):
                owner = self.prompts.owners[number]
                sums[owner] = sums.get(owner, 0) + own * times
        rest, whole = sum(sums.values()).tolist()
        self.left.append(rest / max(whole, 1e-30))
        if not place.left:
            for owner, own in sums.items():
                share = round(share_left(*own.tolist()), 4)
                self.left_of[owner] = max(share, self.left_of.get(owner, 0.0))

    def _sampled(self, part: str, enough: int | None, words_first: bool) -> list[Chosen]:
        """Random tokens of each batch of a part: about `enough` in all. None: all of them.

        Each is there as often as it counts: it may be picked several times. Most tokens of a prompt
        are padding, each much like the next. words_first: as few of it as the words leave room for.
        """
        counting = self.prompts.split(self.counting)[part]
        total = sum(int(one.times.sum()) for one in counting)
        if enough is None or enough >= total:
            return counting
        repeated = [
            pads.repeat_interleave(one.times)
            for pads, one in zip(self.prompts.split(self.repeated)[part], counting)
        ]
        share = rest = enough / total
        if words_first:
            again = int(sum(one.sum() for one in repeated))
            share = min(1.0, enough / max(1, total - again))
            rest = (enough - share * (total - again)) / max(1, again)
        draw = torch.Generator().manual_seed(self.settings.seed)
        chosen = []
        for one, pads in zip(counting, repeated):
            own, shares = one.numbers.repeat_interleave(one.times), torch.where(pads, rest, share)
            picks = own[torch.rand(len(own), generator=draw) < shares]
            chosen.append(Chosen(*picks.unique(return_counts=True)))
        return chosen


def _of_rows(drawn: Sequence[int], tensor: torch.Tensor) -> torch.Tensor:
    """How often each row of a batch counts, of which a prompt may have several. drawn: how often
    each prompt was drawn."""
    return torch.tensor(drawn).repeat_interleave(len(tensor) // len(drawn))


def _of_size(one: Waiting, gain: NormGain | None, chosen: torch.Tensor) -> torch.Tensor:
    """The linear layer's inputs; before a norm, per unit of what it divides by, since there all
    tokens count alike."""
    inputs = picked(one.inputs, chosen)
    return inputs if gain is None else inputs / gain.size(picked(one.normed, chosen))


def picked(x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Some tokens of all prompts; without a copy where it is all of them."""
    rows = flat(x)
    return rows if len(chosen) == len(rows) else rows[chosen.to(rows.device)]


def _at(rows: torch.Tensor, numbers: torch.Tensor | None) -> torch.Tensor:
    return rows if numbers is None else rows[numbers.to(rows.device)]


def flat(x: torch.Tensor) -> torch.Tensor:
    """(tokens of all prompts, width)."""
    return x.flatten(0, -2)


def main_directions(apart: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """(width, count): the directions that hold most of these differences, orthonormal."""
    square = sum((part.T @ part).double() for part in apart)
    return torch.linalg.eigh(square).eigenvectors[:, -count:]


def from_the_left(
    linear: torch.nn.Module, directions: torch.Tensor, like: torch.Tensor
) -> torch.Tensor:
    """(count, width in), float64: directions, (width, count), times a linear layer's weight.

    The layer itself is run on a vector for each input, so that weights packed in any form need no
    code of their own. like: a tensor of the kind that it takes.
    """
    nothing = linear.forward(like.new_zeros(1, linear.in_features)).double()
    pieces = []
    for some in torch.arange(linear.in_features, device=like.device).split(1024):
        one_hot = like.new_zeros(len(some), linear.in_features)
        one_hot[torch.arange(len(some), device=like.device), some] = 1.0
        pieces.append((linear.forward(one_hot).double() - nothing) @ directions)
    return torch.cat(pieces).T
