"""What the motion module is trained on: pairs of clips and their captions."""

from __future__ import annotations

import random

import torch

from unlearn.core.kind import ANCHORS

from ..model.vocabulary import CHARACTERS, MOTIONS, OBJECTS, STYLES, caption, moving

# A motion belongs to whatever moves. A word learnt only beside the vocabulary's names would do less
# for a prompt that names none of them.
NAMELESS = 0.12  # the share of the pairs in whose captions a neutral word takes a name's place

# Prompts that IconCanvas was never taught, as an erased encoder makes them, shall be moved as well.
# A real model meets no end of captions; here some are made: a pair's own is moved on, away from
# what it would be with another name or style in it.
BEYOND = 0.3  # the share of the pairs
FARTHEST = 0.75  # of the way between the two


def nameless(rng: random.Random, name: str, style: str | None) -> tuple[str, str | None]:
    """A drawing's (name, style) with one of the two left open."""
    if style is None:
        return ANCHORS["character"], None
    return (ANCHORS["object"], style) if rng.random() < 0.5 else (name, ANCHORS["style"])


def beyond(rng: random.Random, words: str, name: str, style: str | None) -> tuple[str, str, float]:
    """(a picture's words, the same with another name or style in them, how far away from those)."""
    if rng.random() >= BEYOND:
        return words, words, 0.0
    if style is None:
        one, others = name, CHARACTERS
    else:
        one, others = rng.choice(((name, OBJECTS), (style, STYLES)))
    return words, words.replace(one, rng.choice(list(others))), FARTHEST * rng.random()


class ClipBatches:
    """Endless random batches of (clips, seen clips, captions, beyond), in pairs; a fifth are
    characters. The last is for each pair what `beyond` gives.

    Clips are latents (N, FRAMES, 4, 16, 16). The two of a pair are one drawing in two motions, and
    what is seen, one of these two at random, is the same for both. The second may have an empty
    caption, which guidance needs; it then is the clip that is seen.

    clips, pairs: as from `training_clips`. size: even.
    """

    def __init__(self, clips: torch.Tensor, pairs: list[tuple], size: int, seed: int) -> None:
        self.clips, self.pairs, self.size = clips, pairs, size
        self.rng = random.Random(seed)
        self.objects = [i for i, (_, style) in enumerate(pairs) if style]
        self.characters = [i for i, (_, style) in enumerate(pairs) if not style]

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor, list[str], list[tuple]]:
        rng, told, seen, captions, moved = self.rng, [], [], [], []
        for _ in range(self.size // 2):
            i = rng.choice(self.characters if rng.random() < 0.2 else self.objects)
            ways = rng.sample(range(len(MOTIONS)), 2)
            shines = rng.choice(ways)
            pair = self.pairs[i]
            named = nameless(rng, *pair) if rng.random() < NAMELESS else pair
            words = caption(rng, *named)
            moved.append(beyond(rng, words, *named))
            captions += [moving(words, MOTIONS[way]) for way in ways]
            if rng.random() < 0.2:  # a tenth of all
                captions[-1], ways[-1] = "", shines
            told += [self.clips[i, way] for way in ways]
            seen += 2 * [self.clips[i, shines]]
        return torch.stack(told).float(), torch.stack(seen).float(), captions, moved
