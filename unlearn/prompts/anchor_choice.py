"""An anchor chosen for a concept: what is drawn in its place where the user names nothing.

A concept that is drawn to the closest other one, but to no synonym, takes least else with it (AGE,
arXiv 2501.18950). How that one is found is ours: by the text encoder alone, without a picture.

A word's effect on a sentence is how far the sentence lies from the mean of the same sentence with
every candidate. Its meaning is the mean effect on two sentences, and words are as close as the
cosine of their meanings. A synonym is much closer than another thing of its kind. What the two
effects have in common tells how well the encoder knows a word: one that it only spells does
something else in each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..core.conditioning import Conditioning
from ..core.kind import ANCHORS, CLOSEST, QUALITIES, Kind
from ..core.progress import SILENT, Progress
from .names import unnamed
from .paraphrases import plural
from .sampler import anchor_of
from .translations import TRANSLATIONS
from .typed import short
from .vocabulary import VOCABULARY
from .word_checks import Settings, asked_anchor

if TYPE_CHECKING:
    from ..core.model import TextModel


Draws = Callable[[str, str], bool]
"""Called with a concept and a candidate: whether the model draws the candidate, and sees nothing of
the concept in it."""

# The word alone, and early in a long sentence: two that have little in common but the word.
SENTENCES: dict[Kind, tuple[str, str]] = {
    "object": ("a photo of a {}", "{} in the rain at night, highly detailed"),
    "character": ("a photo of {}", "{} in the rain at night, highly detailed"),
}
AT_ONCE = 32  # prompts of a batch
NEAR, SAMPLE = 24, 24  # candidates that are read again, of each concept and in all
STRONG = 0.95  # the quantile of the candidates' strengths that others are compared with
# The least strength, relative to that, of a word that may be an anchor, and of a concept that the
# encoder knows. Everyday words, which mean many things, are weaker than names.
KNOWN, HEARD = 0.75, 0.5
SAME = 0.55  # the cosine from which two words count as names of one thing
LETTERS = 3  # of a name that is looked for inside of a word, at least
TRIED = 6  # candidates that are drawn, at most
SHOWN = 6  # anchors that a sentence tells


@torch.no_grad()
def chosen_anchors(
    model: TextModel,
    concepts: Sequence[str],
    kind: Kind,
    taken: Sequence[str] = (),
    candidates: Sequence[str] | None = None,
    draws: Draws | None = None,
    progress: Progress = SILENT,
) -> dict[str, str]:
    """The anchor of each concept: the closest candidate that is known and no other name of it.

    It is the neutral word for a style or an action, for a concept that the encoder does not know,
    and where no candidate is left. taken: words that are no anchors either, beside the concepts.
    candidates: the words to choose from; None takes the vocabulary of the kind. draws: if given,
    the closest of TRIED candidates that it accepts. The same input gives the same choice on one
    machine.

    Raises ValueError where the neutral word is the concept itself; `progress` may raise to cancel.
    """
    found = dict.fromkeys(concepts, ANCHORS[kind])
    words = unlike(VOCABULARY[kind] if candidates is None else candidates, [*concepts, *taken])
    if kind not in QUALITIES and words:
        read = meanings(model, words, concepts, SENTENCES[kind], progress)
        for concept, own, strength in zip(concepts, read.own, read.own_strengths):
            if strength < HEARD * read.strong:
                continue
            closeness = torch.cosine_similarity(own, read.vectors, dim=1)
            fits = (closeness < SAME) & (read.strengths >= KNOWN * max(read.strong, strength))
            # Rounded, since one word's encoding depends a little on the others of its batch.
            near = [(-round(closeness[i].item(), 4), i) for i in fits.nonzero().flatten().tolist()]
            closest = (read.words[i] for _, i in sorted(near)[:TRIED])
            found[concept] = next(
                (word for word in closest if draws is None or draws(concept, word)), ANCHORS[kind]
            )
    for concept, anchor in found.items():
        if concept.casefold() == anchor:
            raise ValueError(
                f"No other word was found to draw in the place of {short(concept)}; type one as "
                "the anchor."
            )
    return found


def unlike(words: Sequence[str], concepts: Sequence[str]) -> list[str]:
    """The words that are no name of a concept: not its plural, its translation, part of it or a
    word that contains it. The neutral words are left out, too."""
    names = {name for concept in concepts for name in (concept.lower(), plural(concept.lower()))}
    foreign = {
        word for word, others in TRANSLATIONS.items() if names & {other.lower() for other in others}
    }
    long = [name for name in names if len(name) >= LETTERS]

    def within(word: str) -> bool:
        return any(name in word or (len(word) >= LETTERS and word in name) for name in long)

    kept = unnamed(dict.fromkeys(words), [*names, *foreign, *ANCHORS.values()])
    return [word for word in kept if not within(word.lower())]


@dataclass(frozen=True)
class Meanings:
    """What candidates and concepts mean to a text encoder."""

    words: list[str]
    """The candidates that were read in both sentences: those near to a concept, and a sample."""
    vectors: torch.Tensor
    """(words, width): the mean of each word's effects on the sentences."""
    strengths: torch.Tensor
    """(words,): the root of the product of its effects, 0 where they have nothing in common."""
    own: torch.Tensor
    """(concepts, width): as `vectors`."""
    own_strengths: torch.Tensor
    strong: torch.Tensor
    """The strength of a word that the encoder knows well."""


def meanings(
    model: TextModel,
    words: Sequence[str],
    concepts: Sequence[str],
    sentences: tuple[str, str],
    progress: Progress = SILENT,
) -> Meanings:
    """What the words mean. All candidates are read in the first sentence. In the second only those
    are that the first shows near to a concept, and an even sample, whose mean is the measure there.
    """
    count = len(words)
    first = effects(model, sentences[0], [*words, *concepts], range(count), progress)
    sample = range(0, count, max(1, count // SAMPLE))
    kept = set(sample)
    for own in first[count:]:
        closeness = torch.cosine_similarity(own, first[:count], dim=1)
        kept |= set(closeness.topk(min(NEAR, count)).indices.tolist())
    places = sorted(kept)
    some = [words[i] for i in places]
    sampled = [i for i, place in enumerate(places) if place in sample]
    second = effects(model, sentences[1], [*some, *concepts], sampled, progress)
    first = torch.cat([first[places], first[count:]])
    vectors = (first + second) / 2
    strengths = (first * second).sum(1).clamp(min=0).sqrt()
    return Meanings(
        some,
        vectors[: len(some)],
        strengths[: len(some)],
        vectors[len(some) :],
        strengths[len(some) :],
        strengths[sampled].quantile(STRONG),
    )


def effects(
    model: TextModel,
    sentence: str,
    words: Sequence[str],
    usual: Sequence[int],
    progress: Progress = SILENT,
    stage: str = "choosing an anchor",
) -> torch.Tensor:
    """(words, width): how the sentence with each word is read, relative to the mean over the words
    at the places `usual`. stage: what the user is told that is done."""
    parts = []
    for i in range(0, len(words), AT_ONCE):
        progress.stage(stage, i, len(words))
        prompts = [sentence.format(word) for word in words[i : i + AT_ONCE]]
        parts.append(mean_token(model.encode(prompts)))
    read = torch.cat(parts)
    return read - read[list(usual)].mean(0)


def mean_token(conditioning: Conditioning) -> torch.Tensor:
    """(N, width): the mean over each prompt's own tokens."""
    cross = conditioning.cross.float()
    if conditioning.tokens is None:
        return cross.mean(1).cpu()
    within = torch.arange(cross.shape[1], device=cross.device) < conditioning.tokens[:, None]
    return (cross * within[..., None]).sum(1).div(within.sum(1, keepdim=True).clamp(min=1)).cpu()


def asked_for(concepts: Sequence[str], settings: Settings) -> dict[str, str]:
    """The anchor of each concept as it was typed; the method's own where none was."""
    asked = {concept: asked_anchor(anchor_of(settings.anchor, concept)) for concept in concepts}
    return {concept: anchor or settings.empty_anchor for concept, anchor in asked.items()}


def to_choose(concepts: Sequence[str], settings: Settings) -> list[str]:
    """The concepts for which an anchor is to be chosen."""
    asked = asked_for(concepts, settings) if settings.uses_anchor else {}
    return [concept for concept, anchor in asked.items() if anchor == CLOSEST]


def anchored(
    model: TextModel,
    concepts: Sequence[str],
    settings: Settings,
    draws: Draws | None = None,
    progress: Progress = SILENT,
) -> tuple[Settings, dict[str, Any]]:
    """(a method's settings with the anchors that are chosen, what its record says of the choice).

    The settings stay what they are where words are named. draws, progress: see `chosen_anchors`,
    which may raise.
    """
    anchors = asked_for(concepts, settings)
    wanted = to_choose(concepts, settings)
    if not wanted:
        return settings, {}
    taken = [concept for concept in concepts if concept not in wanted]
    found = chosen_anchors(model, wanted, settings.named_as, taken, None, draws, progress)
    anchors |= found
    different = set(anchors.values())
    one_for_all = different.pop() if len(different) == 1 else anchors
    return replace(settings, anchor=one_for_all), {"anchors": found}


def recorded(record: Mapping) -> str | Mapping[str, str]:
    """The anchor in a record, or that of each concept; "" where there is none."""
    return record.get("settings", {}).get("anchor", "")


def told(record: Mapping) -> str:
    """The choice of anchors in a record, as sentences on one line; "" where none was made."""
    anchors, kind = record.get("anchors") or {}, record.get("kind")
    if not anchors or kind not in ANCHORS:
        return ""
    neutral = ANCHORS[kind]
    none = [concept for concept, anchor in anchors.items() if anchor == neutral]
    if kind in QUALITIES:
        none = []  # there it is what was wanted
    chosen = {concept: anchor for concept, anchor in anchors.items() if concept not in none}
    said = []
    if chosen and len(record.get("concepts", ())) == 1:
        said.append(f"The anchor was chosen: {next(iter(chosen.values()))}.")
    elif chosen:
        pairs = [f"{concept} -> {anchor}" for concept, anchor in chosen.items()]
        many = "anchors were" if len(pairs) > 1 else "anchor was"
        said.append(f"The {many} chosen: {listed(pairs)}.")
    if none:
        said.append(
            f"No anchor was found for {listed(none)}, so the neutral word {neutral!r} is drawn "
            "instead; name one that the model can draw."
        )
    return " ".join(said)


def listed(items: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {more} more" if more > 0 else "")
