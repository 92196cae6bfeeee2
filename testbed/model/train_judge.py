"""Trains the judge on rendered drawings with strong augmentation."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ..host.precision import fast
from . import data
from .judge import HEADS, WEIGHTS, JudgeNetwork, augmented, labels, to_images
from .stage import DEVICE, WORKERS, Stage
from .vocabulary import STYLES, resembles


def examples() -> tuple[np.ndarray, list[dict[str, int]]]:
    """All drawings with their labels: the vocabulary, and other icons as "none" in known styles.

    Icons whose names resemble one of the vocabulary (such as a cat's face) are left out.
    """
    drawings = data.load()
    images, answers = [drawings.images], [labels(*p) for p in zip(drawings.names, drawings.styles)]
    common = json.loads((data.CACHE / "pretraining.json").read_text())
    others = np.load(data.CACHE / "pretraining.npy", mmap_mode="r")
    strange = [i for i, name in enumerate(common) if not resembles(name)]
    images.append(
        np.concatenate([others[len(STYLES) * i : len(STYLES) * (i + 1)] for i in strange])
    )
    answers += [labels(None, style) for _ in strange for style in STYLES]
    return np.concatenate(images), answers


def train_judge(folder: Path, steps: int = 2500, batch: int = 96) -> None:
    """Train the judge. Of each batch about half are from the vocabulary, 15% are characters, and
    the rest are other icons."""
    images, answers = examples()
    targets = {head: torch.tensor([answer[head] for answer in answers]) for head in HEADS}
    kinds = [
        np.flatnonzero(targets["object"] < len(HEADS["object"])),
        np.flatnonzero(targets["character"] < len(HEADS["character"])),
        np.flatnonzero(
            (targets["object"] == len(HEADS["object"]))
            & (targets["character"] == len(HEADS["character"]))
        ),
    ]
    network = JudgeNetwork().to(DEVICE, memory_format=torch.channels_last)
    rngs = [np.random.default_rng(worker) for worker in range(WORKERS)]
    generators = [torch.Generator().manual_seed(worker) for worker in range(WORKERS)]

    def loss(worker: int) -> torch.Tensor:
        rng = rngs[worker]
        chosen = np.array(
            [rng.choice(kinds[rng.choice(3, p=(0.55, 0.15, 0.3))]) for _ in range(batch // WORKERS)]
        )
        x = augmented(to_images(images[chosen]), generators[worker]).to(DEVICE)
        with fast(DEVICE):
            logits = network(x.to(memory_format=torch.channels_last))
        return sum(
            F.cross_entropy(
                logits[head].float(), targets[head][chosen].to(DEVICE), label_smoothing=0.05
            )
            for head in HEADS
        )

    Stage(
        "judge", torch.nn.ModuleDict({"judge": network}), steps, 2e-3, decay=0.01, average=0.99
    ).run(loss, folder)
    WEIGHTS.parent.mkdir(exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in network.state_dict().items()}, WEIGHTS)
    print("judge:", {k: f"{v:.1%}" for k, v in accuracy(images, targets, kinds).items()})


@torch.no_grad()
def accuracy(images: np.ndarray, targets: dict, kinds: list[np.ndarray]) -> dict[str, float]:
    """The accuracy of each head on unseen renderings: new augmentations of the drawings."""
    from .judge import Judge

    network, generator = Judge().network, torch.Generator().manual_seed(10**6)
    right = {head: [] for head in HEADS}
    for kind, heads in zip(kinds[:2], (("object", "style"), ("character",))):
        for part in np.array_split(kind, max(1, len(kind) // 64)):
            logits = network(augmented(to_images(images[part]), generator))
            for head in heads:
                right[head].append((logits[head].argmax(1) == targets[head][part]).float())
    return {head: torch.cat(values).mean().item() for head, values in right.items()}
