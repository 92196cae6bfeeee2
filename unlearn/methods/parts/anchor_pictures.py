"""Pictures of the anchor, which domain correction learns from (DoCo, arXiv 2405.15304)."""

from __future__ import annotations

import random
from typing import Any

import torch

from ...core.edit import Edit
from ...core.model import DiffusionModel
from ...core.progress import SILENT, Progress
from ...core.resume import Resume
from ...prompts.sampler import PromptSampler


def paired_prompts(
    rng: random.Random, words: PromptSampler, settings: Any, concept: str
) -> tuple[str, str]:
    """(anchor prompt, the same with the concept in it).

    The paper puts the concept in the anchor's place, and adds a style to the sentence. Balanced
    also puts a style in the place of a neutral one, so that the rest of the sentence stays.
    """
    if settings.kind == "style" and settings.mode == "paper":
        sentence = f"a painting of a {settings.anchor or rng.choice(words.contexts)}"
        # Two thirds begin with the style, as in the authors' code.
        before = f"in {concept}'s style, {sentence}"
        return sentence, rng.choice((f"{sentence}, in the style of {concept}", before, before))
    sentence = rng.choice(words.sentences())
    return sentence.format(words.anchors[concept]), sentence.format(concept)


class Anchors:
    """Pictures of the anchor by the original model, in latents, and their two prompts each."""

    def __init__(
        self,
        model: DiffusionModel,
        edit: Edit,
        concepts: list[str],
        settings: Any,
        resume: Resume,
        progress: Progress = SILENT,
    ) -> None:
        rng = random.Random(settings.seed)
        protect = settings.protect if settings.mode == "balanced" else ()
        words = PromptSampler(concepts, settings.kind, rng, settings.anchor, protect)
        self.count = settings.of("pictures", 1000, 32)
        self.pairs: list[list[tuple[str, str]]] = []
        for _ in range(min(settings.prompts, self.count)):
            before, several = rng.getstate(), []
            for concept in concepts:
                rng.setstate(before)  # one sentence for all of them
                several.append(paired_prompts(rng, words, settings, concept))
            self.pairs.append(several)
        self.shared = len(set(words.anchors.values())) == 1
        size = settings.of("batch", 8, 4)

        def draw() -> torch.Tensor:
            parts = []
            with edit.off():
                for first in range(0, self.count, size):
                    progress.stage("drawing pictures of the anchor", first, self.count)
                    some = range(first, min(first + size, self.count))
                    prompts = [self.pair(i, i)[0] for i in some]
                    parts.append(
                        model.sample(prompts, settings.seed + first, steps=25, guidance=6.0).cpu()
                    )
            return torch.cat(parts)

        self.x0 = resume.once_latents("anchors", model, self.count, draw).to(model.device)

    def pair(self, picture: int, concept: int) -> tuple[str, str]:
        """The prompts of a picture, for one of the concepts. A picture serves them all where they
        have one anchor, else the one whose anchor it shows."""
        several = self.pairs[picture % len(self.pairs)]
        return several[(concept if self.shared else picture) % len(several)]
