"""Trains the judge on drawings: as rendered, and worn as a diffusion model draws them."""

import json
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from unlearn.files.writing import whole_file

from ..host.precision import fast
from . import data
from .augment import augmented, smeared, to_images
from .examples import halved
from .judge import HEADS, IGNORED, SIZE, WEIGHTS, Judge, JudgeNetwork, labels, summary
from .stage import DEVICE, WORKERS, Stage
from .vocabulary import CHARACTERS, HELD_OUT, OBJECTS, STYLES, other_drawing, resembles
from .worn import Worn, worn

# By the kind of device: steps of a judge that starts from nothing, as the trial judge does, and of
# one that goes on from the trial judge; pictures a step. Those for a graphics card were not tried.
AMOUNTS = {
    "cpu": {"first": 4200, "further": 1400, "batch": 96},
    "cuda": {"first": 5000, "further": 1600, "batch": 256},
}
# What a batch is made of, as drawn and worn: the vocabulary, two things side by side, characters,
# other icons (most, since they teach the styles), smears.
SHARES = {
    "object": (0.16, 0.15),
    "two": (0.08, 0.04),
    "character": (0.05, 0.05),
    "other": (0.24, 0.16),
    "smear": (0.04, 0.03),
}
# Of each head's loss: the weight, and the smoothing of the right answers. A style is the hardest to
# tell, and its answers must be sure enough to separate sets that look alike.
LOSSES = {"object": (1.0, 0.05), "style": (2.0, 0.0), "character": (1.0, 0.05), "count": (1.0, 0.0)}


# A thing's name is also asked for by a head that is not kept. It knows the names of all icons, so
# what it learns of drawings of one thing in other styles holds for things that it has seen in few.
NAME = 1.0  # its weight


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


def kind_of_example(names: tuple[str, ...]) -> str:
    """The kind of a picture that shows these things, a key of SHARES."""
    if len(names) != 1:
        return "two" if names else "smear"
    return "object" if names[0] in OBJECTS else "character" if names[0] in CHARACTERS else "other"


class JudgeBatches:
    """Endless random batches of (augmented pictures (N, 3, SIZE, SIZE), right answers by head, and
    as "name" the number of what they show in `names`).

    images, pairs: the drawings, and the (name, style) of each.
    """

    def __init__(
        self, images: np.ndarray, pairs: list[tuple], worn: Worn, size: int, seed: int
    ) -> None:
        self.images, self.pairs, self.worn = images, pairs, worn
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.names = sorted({name.replace("-", " ") for name, _ in pairs})
        self.number = {name: i for i, name in enumerate(self.names)}
        self.counts = {
            what: tuple(round(share * size) for share in shares) for what, shares in SHARES.items()
        }
        self.of_kind: dict[str, list[int]] = {kind: [] for kind in SHARES}
        for i, (name, _) in enumerate(pairs):
            self.of_kind[kind_of_example((name,))].append(i)
        # Signs and clocks tell little about a style, and there are many of them.
        others = self.of_kind["other"]
        self.of_kind["other"] = 3 * [i for i in others if other_drawing(pairs[i][0])] + others
        self.worn_of_kind: dict[str, list[int]] = {kind: [] for kind in SHARES}
        for i, (names, _) in enumerate(worn.shown):
            self.worn_of_kind[kind_of_example(names)].append(i)
        self.of_style: dict[str | None, list[int]] = {}
        for kind in ("object", "character"):
            for i in self.of_kind[kind]:
                self.of_style.setdefault(pairs[i][1], []).append(i)

    def __next__(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        pictures, answers = [], []
        for kind in ("object", "character", "other"):
            for i in self.rng.choices(self.of_kind[kind], k=self.counts[kind][0]):
                pictures.append(self.images[i])
                answers.append(self.answer((self.pairs[i][0],), self.pairs[i][1]))
        for _ in range(self.counts["two"][0]):
            picture, names, style = self.two()
            pictures.append(picture)
            answers.append(self.answer(names, style))
        smears = self.rng.choices(range(len(self.images)), k=max(4, self.counts["smear"][0]))
        drawn = torch.cat(
            [
                to_images(np.stack(pictures)),
                smeared(to_images(self.images[smears]), self.generator),
            ]
        )
        answers += [self.answer((), None) for _ in smears]
        chosen = [
            i
            for kind, (_, count) in self.counts.items()
            for i in self.rng.choices(self.worn_of_kind[kind], k=count)
        ]
        answers += [self.answer(*self.worn.shown[i]) for i in chosen]
        sets = drawn, to_images(self.worn.images[chosen])
        x = torch.cat([augmented(some, self.generator) for some in sets])
        heads = (*HEADS, "name")
        return x, {head: torch.tensor([answer[head] for answer in answers]) for head in heads}

    def answer(self, names: tuple[str, ...], style: str | None) -> dict[str, int]:
        """The right answers of a picture of these things; no name means a smear."""
        shown = names[0].replace("-", " ") if len(names) == 1 else ""
        return {
            **labels(names, style, smear=not names),
            "name": self.number.get(shown, IGNORED),
        }

    def two(self) -> tuple[np.ndarray, tuple[str, str], str | None]:
        """A picture of two things, their names and their style."""
        kind = "character" if self.rng.random() < 0.15 else "object"
        i = self.rng.choice(self.of_kind[kind])
        style = self.pairs[i][1]
        j = i if self.rng.random() < 0.2 else self.rng.choice(self.of_style[style])
        numbers = np.random.default_rng(self.rng.randrange(1 << 30))
        sides = halved(self.images[[i, j]], 1, numbers)
        return np.concatenate(list(sides), 1), (self.pairs[i][0], self.pairs[j][0]), style


def train_judge(
    folder: Path, steps: int | None = None, batch: int | None = None, trial: bool = False
) -> None:
    """Train the judge. It goes on from the trial judge, if that was trained before.

    trial: train the trial judge instead, which is not kept: it never sees some of the drawings, and
    its accuracy on them is what the judge's report tells. steps, batch: other amounts than AMOUNTS.
    """
    amounts, tried = AMOUNTS[DEVICE.type], folder / "judge-trial.safetensors"
    further = not trial and tried.is_file()
    stage = "judge-trial" if trial else "judge-further" if further else "judge"
    network = JudgeNetwork()
    if further:
        network.load_state_dict({k: v.float() for k, v in load_file(tried).items()})
    network.to(DEVICE, memory_format=torch.channels_last)
    images, pairs = examples(trial)
    unseen = unseen_drawings(data.load())
    pictures = worn(folder, unseen)
    left_out = unseen | {icon.replace("-", " ") for _, icon in unseen_icons()}
    size = (batch or amounts["batch"]) // WORKERS
    seen = pictures.made_of(left_out, wanted=False) if trial else pictures
    batches = [JudgeBatches(images, pairs, seen, size, worker) for worker in range(WORKERS)]
    width = network.heads["object"].in_features
    name = torch.nn.Linear(width, len(batches[0].names)).to(DEVICE)

    def loss(worker: int) -> torch.Tensor:
        x, right = next(batches[worker])
        with fast(DEVICE):
            maps = network.maps(x.to(DEVICE, memory_format=torch.channels_last))
            logits = {**network.logits(maps), "name": name(summary(maps[-1]))}
        return sum(
            weight
            * F.cross_entropy(logits[head].float(), right[head].to(DEVICE), label_smoothing=smooth)
            for head, (weight, smooth) in {**LOSSES, "name": (NAME, 0.0)}.items()
        )

    modules = torch.nn.ModuleDict({"judge": network, "name": name})
    steps = steps or amounts["further" if further else "first"]
    peak = 7e-4 if further else 2e-3
    Stage(stage, modules, steps, peak, decay=0.03, average=0.99).run(loss, folder)
    file = tried if trial else WEIGHTS
    file.parent.mkdir(exist_ok=True)
    with whole_file(file) as new:
        state = {k: v.half().contiguous() for k, v in network.state_dict().items()}
        save_file(state, new, {"size": str(SIZE)})
    if trial:
        found = accuracy(Judge(file), pictures.made_of(left_out))
        print("\n".join(["trial judge:", *(f"  {k}: {v:.1%}" for k, v in found.items())]))


@torch.no_grad()
def accuracy(judge: Judge, worn: Worn, variants: int = 5) -> dict[str, float]:
    """How often the trial judge is right on what it never saw.

    "object": the pairs of HELD_OUT. "style": the icons of `unseen_icons`. "character": every tenth
    drawing. Each as drawn, in `variants` augmentations, and worn (`worn`: pictures of these alone).
    "another icon": how often it names no object in such icons. "one", "two": how often it counts
    them as that. "smear": how often it names nothing in one.
    """
    drawings, generator = data.load(), torch.Generator().manual_seed(10**6)
    rng, unseen = random.Random(0), sorted(unseen_drawings(drawings))
    icons = np.concatenate(list(map(pictures_of, unseen_icons())))
    asked: dict[str, list[bool]] = {}

    def answers(x: torch.Tensor) -> list[dict]:
        return [seen for part in x.movedim(1, -1).split(64) for seen in judge.answers(part)]

    def ask(x: torch.Tensor, shown: list[tuple], way: str) -> None:
        for (names, style), seen in zip(shown, answers(x), strict=True):
            kind = kind_of_example(names)
            if kind == "two":
                asked.setdefault(f"two, {way}", []).append(seen["count"] == "two")
                continue
            asked.setdefault(f"one, {way}", []).append(seen["count"] == "one")
            if kind == "other":
                asked.setdefault(f"style, {way}", []).append(seen["style"] == style)
                asked.setdefault(f"another icon, {way}", []).append(seen["object"] is None)
            else:
                asked.setdefault(f"{kind}, {way}", []).append(seen[kind] == names[0])

    shown = [((drawings.names[i],), drawings.styles[i]) for i in unseen]
    shown += [((name,), style) for _, name in unseen_icons() for style in STYLES]
    drawn = to_images(np.concatenate([drawings.images[unseen], icons]))
    ask(drawn, shown, "as drawn")
    for _ in range(variants):
        ask(augmented(drawn, generator), shown, "augmented")
        both = (rng.sample(unseen, 16) for _ in range(2))
        sides = [halved(drawings.images[some], 1, np.random.default_rng(0)) for some in both]
        twos = augmented(to_images(np.concatenate(sides, 2)), generator)
        ask(twos, [(("", ""), None)] * len(twos), "augmented")
        smears = smeared(to_images(drawings.images[rng.sample(unseen, 32)]), generator)
        seen = answers(augmented(smears, generator))
        asked.setdefault("smear", []).extend(not (s["object"] or s["character"]) for s in seen)
    ask(to_images(worn.images), worn.shown, "worn")
    return {what: sum(values) / len(values) for what, values in sorted(asked.items())}
