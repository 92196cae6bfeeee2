"""The prompts of a solve in the text encoder; see methods/closed_form.py."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...core.kind import Kind
from ...core.model import TextModel
from ...prompts.paraphrases import plural
from ...prompts.retained import Retained
from ...prompts.sampler import PromptSampler, anchor_of
from .layer_ends import Place, places, read_together

# How far beyond the anchor a concept is drawn, as a share of their distance in each layer. A
# picture always has some style, so the anchor alone does not take a style away.
OVERSHOOT: dict[Kind, float] = {"object": 0.0, "style": 0.6, "character": 0.0, "action": 0.0}
AT_ONCE = 32 * 77  # tokens of a batch
# What is kept of all prompts at one layer, in bytes: so much, or half of what the encoder's layers
# take themselves, whichever is more. Where prompts are long and layers wide, fewer are read.
KEPT = 2e9
# Fewer, too, where each prompt is a pass of its own, and so a thread with helpers of its own.
ALONE = 256
LEAST = 8  # prompts of each concept
# Of one of very many concepts, where there is room; and how many are very many.
FEWEST, MANY = 24, 32
OTHERWISE = 4  # of each of its other names, as a share: one of so many
WEIGHTY = 2  # how often a further sentence counts
PARTS = ("named", "neutral", "origin", "others")


@dataclass(frozen=True)
class SolveSettings:
    """What a solve is told. Its figures are described where a user meets them, in
    methods/closed_form.py."""

    kind: Kind
    anchor: str | Mapping[str, str]
    further: float
    seed: int
    protect: tuple[str, ...] = ()
    strength: float = 1.0
    sentences: int = 96
    others: int = 512
    hold: float = 50.0
    ridge: float = 1e-4
    directions: int = 2
    last: int = 2
    keep: float = 0.99

    def with_concepts(self, count: int) -> SolveSettings:
        """The same for so many concepts at once.

        Each gets fewer sentences, since they have much in common. There are more other prompts, and
        they weigh more: together, many small changes move what none of them moves by itself.
        """
        more = (min(count, MANY) - 1) / (MANY - 1)
        few = max(FEWEST, self.sentences * 8 // max(8, count))
        return replace(
            self,
            sentences=min(self.sentences, few),
            others=round(self.others * (1 + 2 * more)),
            hold=self.hold * (1 + more),
        )


@dataclass
class Prompts:
    """All distinct prompts of a run in batches, and what each batch is.

    Many a prompt is drawn several times. It is read once, and counts as often as it was drawn. Of
    prompts with a concept the pair with the aim is what is distinct.
    """

    places: list[Place]
    """The layers of the text encoder where they will wait for one another."""
    batches: list[list[str]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    """Of each batch, one of PARTS. "named" and "origin" have the same batches."""
    numbers: list[list[int]] = field(default_factory=list)
    """Of each batch, the numbers of its prompts in their part."""
    drawn: list[list[int]] = field(default_factory=list)
    """Of each batch, how often each of its prompts was drawn."""
    owners: list[str] = field(default_factory=list)
    """Of each prompt with a concept, which one."""
    aims: list[int] = field(default_factory=list)
    """Of each prompt with a concept, the number of the same in "neutral"."""
    begun: list[int] = field(default_factory=list)
    """Of each of the others, how many batches it would begin if all were read as often as drawn."""

    @staticmethod
    def of(
        model: TextModel,
        concepts: Sequence[str],
        settings: SolveSettings,
        names: Mapping[str, Sequence[str]] = {},
        more: Mapping[str, Sequence[str]] = {},
    ) -> Prompts:
        """names: other names of a concept, for which its sentences are said, too. more: further
        sentences of a concept, with a slot."""
        spoken = [*concepts, *(name for concept in concepts for name in names.get(concept, ()))]
        words = PromptSampler(
            spoken,
            settings.kind,
            random.Random(settings.seed),
            anchors_of(concepts, names, settings.anchor),
        )
        sentences = [words.sentences(settings.sentences) for _ in spoken]
        kept_words = Retained(spoken, settings.kind, words.rng, settings.protect)
        others = kept_words.prompts(settings.others)
        found = Prompts(places(model, sentences[0][0].format(concepts[0])))
        # Two prompts that are equally long tell whether the encoder reads several at once.
        distinct = list(Counter(others))
        pairs = (some[:2] for some in model.batches(distinct, AT_ONCE) if len(some) > 1)
        pair = [distinct[i] for i in next(pairs, [])]
        at_once = AT_ONCE if pair and read_together(model, pair) else 1
        count = len(concepts) + (len(spoken) - len(concepts)) / OTHERWISE
        few, rest = that_fit(model, found.places, count, settings, at_once)
        drawn, said = [], dict(zip(spoken, sentences))
        for concept in concepts:
            for name in (concept, *names.get(concept, ())):
                anchor = words.neutral(name, model)
                some = said[name][: few if name == concept else max(2, few // OTHERWISE)]
                some = [*some, *list(more.get(name, ())) * WEIGHTY]
                drawn += [(concept, s.format(name), s.format(anchor)) for s in some]
        own, kept = Counter(drawn), Counter(others[:rest])
        found.owners = [owner for owner, _, _ in own]
        named, neutral = [text for _, text, _ in own], Counter(aim for _, _, aim in drawn)
        number = {aim: i for i, aim in enumerate(neutral)}
        found.aims = [number[aim] for _, _, aim in own]
        first = Counter(others[some[0]] for some in model.batches(others[:rest], at_once))
        found.begun = [first[prompt] for prompt in kept]
        counts = list(own.values()), list(neutral.values()), list(own.values()), list(kept.values())
        for part, prompts, times in zip(PARTS, (named, list(neutral), named, list(kept)), counts):
            for numbers in model.batches(prompts, at_once):
                found.batches.append([prompts[i] for i in numbers])
                found.parts.append(part)
                found.numbers.append(numbers)
                found.drawn.append([times[i] for i in numbers])
        return found

    @property
    def still(self) -> set[int]:
        """The numbers of the batches that go through the encoder as it was."""
        return {i for i, part in enumerate(self.parts) if part in ("neutral", "origin")}

    def split(self, values: Sequence) -> dict[str, list]:
        """The values of all batches, by part."""
        return {
            part: [value for value, own in zip(values, self.parts) if own == part] for part in PARTS
        }


def anchors_of(
    concepts: Sequence[str], names: Mapping[str, Sequence[str]], anchor: str | Mapping[str, str]
) -> dict[str, str]:
    """The anchor of each concept and of each of its other names: of a plural, the plural."""
    found: dict[str, str] = {}
    for concept in concepts:
        own, others = anchor_of(anchor, concept), names.get(concept, ())
        found |= dict.fromkeys((concept, *others), own)
        plurals = {plural(name) for name in (concept, *others)}
        found |= {name: plural(own) for name in others if own and name in plurals}
    return found


def most_kept(model: TextModel) -> float:
    """Bytes that are kept of all prompts at one layer, at most."""
    own = sum(w.nbytes for _, layer in model.encoder_layers() for w in layer.parameters())
    return max(KEPT, own / 2)


def that_fit(
    model: TextModel,
    found: Sequence[Place],
    concepts: float,
    settings: SolveSettings,
    at_once: int,
) -> tuple[int, int]:
    """How many sentences of each concept and how many other prompts there is room for."""
    room = int(most_kept(model) / 4 / max(place.floats for place in found))
    if at_once == 1:
        room = min(room, ALONE)
    others = min(settings.others, room // 2)
    # A sentence is read with the concept, with the anchor, and by the original encoder.
    return min(settings.sentences, max(LEAST, int((room - others) / (3 * concepts)))), others
