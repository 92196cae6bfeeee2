"""Training batches for the motion module: pairs of clips with captions."""

from __future__ import annotations

import random

import torch

from ..model.captions import Caption, Grammar, in_motion
from ..model.phrases import STILL
from ..model.vocabulary import CHARACTERS, FRAMES, MOTIONS, OBJECTS, STYLES

# An erased encoder yields conditionings that IconCanvas never saw, and these should move as well. A
# real model is trained on endless captions. Here new ones are made: the conditioning of a pair is
# pushed away from that of the same caption with another name or style.
BEYOND = 0.3  # the share of pairs
FARTHEST = 0.75  # of the distance between the two


def beyond(rng: random.Random, words: str, name: str, style: str | None) -> tuple[str, str, float]:
    """(a caption, it with another name or style, how far to push the first from the second)."""
    if rng.random() >= BEYOND:
        return words, words, 0.0
    if style is None:
        one, others = name, CHARACTERS
    else:
        one, others = rng.choice(((name, OBJECTS), (style, STYLES)))
    return words, words.replace(one, rng.choice(list(others))), FARTHEST * rng.random()


class ClipBatches:
    """Endless random batches of (clips, seen clips, captions, beyond) in pairs.

    A fifth of the pairs are characters. Clips are latents (N, FRAMES, 4, 16, 16). A pair is one
    drawing in two motions, or in one and standing still, which is what a caption without a motion
    means. The seen clip is the same for both, and is one of the two at random. The
    second caption may be empty, which classifier-free guidance needs; its clip is then the seen
    one. `beyond` has for each pair what the function `beyond` returns.

    clips, pairs: as from `training_clips`. size: an even number.
    """

    def __init__(self, clips: torch.Tensor, pairs: list[tuple], size: int, seed: int) -> None:
        self.clips, self.pairs, self.size = clips, pairs, size
        self.rng = random.Random(seed)
        self.grammar = Grammar()
        self.objects = [i for i, (_, style) in enumerate(pairs) if style]
        self.characters = [i for i, (_, style) in enumerate(pairs) if not style]

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor, list[str], list[tuple]]:
        rng, told, seen, captions, moved = self.rng, [], [], [], []
        for _ in range(self.size // 2):
            i = rng.choice(self.characters if rng.random() < 0.2 else self.objects)
            ways = rng.sample((*MOTIONS, None), 2)
            shines = rng.choice(ways)
            pair = self.pairs[i]
            # The grammar leaves the name out of some, since anything can move.
            said = self.grammar.caption(rng, (pair[0],), pair[1])
            moved.append(beyond(rng, said.text, *pair))
            captions += [self.told(said, way) for way in ways]
            if rng.random() < 0.2:  # a tenth of all
                captions[-1], ways[-1] = "", shines
            told += [self.shown(i, way) for way in ways]
            seen += 2 * [self.shown(i, shines)]
        return torch.stack(told).float(), torch.stack(seen).float(), captions, moved

    def told(self, said: Caption, motion: str | None) -> str:
        if motion:
            return in_motion(self.rng, said, motion).text
        return f"{said.text}, {self.rng.choice(STILL)}" if self.rng.random() < 0.5 else said.text

    def shown(self, drawing: int, motion: str | None) -> torch.Tensor:
        """A clip, (FRAMES, 4, 16, 16)."""
        if motion:
            return self.clips[drawing, MOTIONS.index(motion)]
        # What grows is at the end as large as what stands still.
        return self.clips[drawing, MOTIONS.index("grow"), -1].expand(FRAMES, -1, -1, -1)
