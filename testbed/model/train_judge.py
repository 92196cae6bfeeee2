"""Trains the judge on rendered drawings with strong augmentation."""

import json
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from unlearn.files.writing import whole_file

from ..host.precision import fast
from . import data
from .examples import halved
from .judge import HEADS, WEIGHTS, Judge, JudgeNetwork, augmented, labels, smeared, to_images
from .stage import DEVICE, WORKERS, Stage
from .vocabulary import CHARACTERS, HELD_OUT, OBJECTS, STYLES, other_drawing, resembles

# What a batch is made of: the vocabulary, two things side by side, characters, other icons, smears.
SHARES = {"object": 0.36, "two": 0.12, "character": 0.12, "other": 0.32, "smear": 0.08}


def examples(trial: bool = False) -> tuple[np.ndarray, list[tuple]]:
    """All drawings and their (name, style): the vocabulary, and other icons in known styles.

    Icons whose names resemble one of the vocabulary (such as a cat's face) are left out. trial:
    leave out what the trial judge never sees, too.
    """
    drawings = data.load()
    if trial:
        unseen = unseen_drawings(drawings)
        drawings = drawings.select([i for i in range(len(drawings)) if i not in unseen])
    icons = [one for one in other_icons() if not (trial and one in unseen_icons())]
    pairs = list(zip(drawings.names, drawings.styles))
    pairs += [(name, style) for _, name in icons for style in STYLES]
    return np.concatenate([drawings.images, *map(pictures_of, icons)]), pairs


def other_icons() -> list[tuple[int, str]]:
    """(number, name) of the icons whose names resemble none of the vocabulary."""
    names = json.loads((data.CACHE / "pretraining.json").read_text())
    return [(i, name) for i, name in enumerate(names) if not resembles(name)]


def pictures_of(icon: tuple[int, str]) -> np.ndarray:
    """An icon in all styles, uint8 (styles, 128, 128, 3)."""
    every = np.load(data.CACHE / "pretraining.npy", mmap_mode="r")
    return every[len(STYLES) * icon[0] : len(STYLES) * (icon[0] + 1)]


def unseen_drawings(drawings: data.Drawings) -> set[int]:
    """The drawings that the trial judge never sees: HELD_OUT, and every tenth of a character."""
    people = [i for i, style in enumerate(drawings.styles) if style is None]
    pairs = enumerate(zip(drawings.names, drawings.styles))
    return {i for i, pair in pairs if pair in HELD_OUT} | set(people[::10])


def unseen_icons() -> list[tuple[int, str]]:
    """The icons that the trial judge never sees: every tenth that is no sign."""
    return [icon for icon in other_icons() if other_drawing(icon[1])][::10]


class JudgeBatches:
    """Endless random batches of (augmented pictures (N, 3, 96, 96), right answers by head)."""

    def __init__(self, images: np.ndarray, pairs: list[tuple], size: int, seed: int) -> None:
        self.images, self.pairs = images, pairs
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.counts = {what: round(share * size) for what, share in SHARES.items()}
        kinds = {"object": OBJECTS, "character": CHARACTERS}
        self.of_kind = {
            kind: [i for i, (name, _) in enumerate(pairs) if name in words]
            for kind, words in kinds.items()
        }
        known = {*OBJECTS, *CHARACTERS}
        # Signs and clocks tell little about a style, and there are many of them.
        others = [i for i, (name, _) in enumerate(pairs) if name not in known]
        pictures = [i for i in others if other_drawing(pairs[i][0])]
        self.of_kind["other"] = 3 * pictures + others
        self.of_style: dict[str | None, list[int]] = {}
        for kind in ("object", "character"):
            for i in self.of_kind[kind]:
                self.of_style.setdefault(pairs[i][1], []).append(i)

    def __next__(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        pictures, answers = [], []
        for kind in ("object", "character", "other"):
            for i in self.rng.choices(self.of_kind[kind], k=self.counts[kind]):
                pictures.append(self.images[i])
                answers.append(labels((self.pairs[i][0],), self.pairs[i][1]))
        for _ in range(self.counts["two"]):
            picture, names, style = self.two()
            pictures.append(picture)
            answers.append(labels(names, style))
        smears = self.rng.choices(range(len(self.images)), k=max(4, self.counts["smear"]))
        x = torch.cat(
            [
                to_images(np.stack(pictures)),
                smeared(to_images(self.images[smears]), self.generator),
            ]
        )
        answers += [labels((), None, smear=True) for _ in smears]
        right = {head: torch.tensor([answer[head] for answer in answers]) for head in HEADS}
        return augmented(x, self.generator), right

    def two(self) -> tuple[np.ndarray, tuple[str, str], str | None]:
        """A picture of two things, their names and their style."""
        kind = "character" if self.rng.random() < 0.15 else "object"
        i = self.rng.choice(self.of_kind[kind])
        style = self.pairs[i][1]
        j = i if self.rng.random() < 0.2 else self.rng.choice(self.of_style[style])
        numbers = np.random.default_rng(self.rng.randrange(1 << 30))
        sides = halved(self.images[[i, j]], 1, numbers)
        return np.concatenate(list(sides), 1), (self.pairs[i][0], self.pairs[j][0]), style


def train_judge(folder: Path, steps: int = 4000, batch: int = 96, trial: bool = False) -> None:
    """Train the judge.

    trial: train the trial judge instead, which is not kept: it never sees some of the drawings, and
    its accuracy on them is what the judge's report tells.
    """
    images, pairs = examples(trial)
    network = JudgeNetwork().to(DEVICE, memory_format=torch.channels_last)
    batches = [JudgeBatches(images, pairs, batch // WORKERS, worker) for worker in range(WORKERS)]

    def loss(worker: int) -> torch.Tensor:
        x, right = next(batches[worker])
        with fast(DEVICE):
            logits = network(x.to(DEVICE, memory_format=torch.channels_last))
        return sum(
            F.cross_entropy(logits[head].float(), right[head].to(DEVICE), label_smoothing=0.05)
            for head in HEADS
        )

    name = "judge-trial" if trial else "judge"
    Stage(name, torch.nn.ModuleDict({"judge": network}), steps, 2e-3, decay=0.01, average=0.99).run(
        loss, folder
    )
    file = folder / "judge-trial.safetensors" if trial else WEIGHTS
    file.parent.mkdir(exist_ok=True)
    with whole_file(file) as new:
        save_file({k: v.half().contiguous() for k, v in network.state_dict().items()}, new)
    if trial:
        print("trial judge:", {k: f"{v:.1%}" for k, v in accuracy(Judge(file)).items()})


@torch.no_grad()
def accuracy(judge: Judge, variants: int = 10) -> dict[str, float]:
    """How often the trial judge is right on what it never saw, in `variants` augmentations each.

    "object": the pairs of HELD_OUT. "style": the icons of `unseen_icons`. "character": every tenth
    drawing. "one", "two", "smear": how often it counts them as that.
    """
    drawings, generator = data.load(), torch.Generator().manual_seed(10**6)
    rng, unseen = random.Random(0), sorted(unseen_drawings(drawings))
    icons = np.concatenate(list(map(pictures_of, unseen_icons())))
    asked = {"object": [], "style": [], "character": [], "one": [], "two": [], "smear": []}

    def answers(x: torch.Tensor) -> list[dict]:
        parts = augmented(x, generator).movedim(1, -1).split(64)
        return [answer for part in parts for answer in judge.answers(part)]

    for _ in range(variants):
        for i, seen in zip(unseen, answers(to_images(drawings.images[unseen]))):
            kind = "object" if drawings.styles[i] else "character"
            asked[kind].append(seen[kind] == drawings.names[i])
            asked["one"].append(seen["count"] == "one")
        styles = [seen["style"] for seen in answers(to_images(icons))]
        asked["style"] += [style == STYLES[i % len(STYLES)] for i, style in enumerate(styles)]
        both = (rng.sample(unseen, 16) for _ in range(2))
        sides = [halved(drawings.images[some], 1, np.random.default_rng(0)) for some in both]
        twos = to_images(np.concatenate(sides, 2))
        asked["two"] += [seen["count"] == "two" for seen in answers(twos)]
        smears = smeared(to_images(drawings.images[rng.sample(unseen, 16)]), generator)
        asked["smear"] += [seen["count"] is None for seen in answers(smears)]
    return {what: sum(values) / len(values) for what, values in asked.items()}
