"""How well a concept was unlearned: UnlearnCanvas's measures (arXiv 2402.11846) on IconCanvas.

UA is the share of the concept's own prompts in whose pictures the judge does not see it. IRA and
CRA use prompts that do not name the concept: the share of its own kind, or of the other kinds, that
the judge still sees, relative to the unedited model. Style kept is the share of the concept's own
prompts whose style is still right, among those where it was right before.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from typing import Literal

import torch

from ..host.precision import fast
from .judge import Judge
from .vocabulary import CHARACTERS, OBJECTS, STYLES

Kind = Literal["object", "style", "character"]
STEPS, GUIDANCE = 12, 5.0


def kind_of(concept: str) -> Kind:
    """The kind of a concept. Raises ValueError if IconCanvas does not know the word."""
    for kind, words in (("object", OBJECTS), ("style", STYLES), ("character", CHARACTERS)):
        if concept in words:
            return kind
    raise ValueError(
        f"IconCanvas does not know {concept!r}; its concepts are: "
        + ", ".join((*OBJECTS, *STYLES, *CHARACTERS))
    )


def known(concept: str) -> str:
    """The concept, as a type for argparse."""
    try:
        kind_of(concept)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return concept


@dataclass(frozen=True)
class Prompt:
    """A prompt, what the picture should show, and the measure that it counts for."""

    text: str
    object: str | None = None
    style: str | None = None
    character: str | None = None
    measure: Literal["own", "in", "cross"] = "own"

    def asked(self, kind: Kind) -> list[Kind]:
        """The kinds of things that are checked in its picture when a concept of `kind` is erased.

        For the concept's own kind, only that kind; across kinds, every other kind that the prompt
        names.
        """
        if self.measure != "cross":
            return [kind]
        return [k for k in ("object", "style", "character") if k != kind and getattr(self, k)]

    def kept(self, seen: dict, kind: Kind) -> bool:
        """Whether the judge sees the thing of this kind that the prompt asks for."""
        return seen[kind] == getattr(self, kind)


def styled(name: str, style: str, measure: str) -> Prompt:
    return Prompt(f"a photo of a {name}, {style} style", name, style, measure=measure)


def portrait(name: str, measure: str, template: str = "a photo of {}") -> Prompt:
    return Prompt(template.format(name), character=name, measure=measure)


def prompts_for(concept: str, seed: int = 0) -> list[Prompt]:
    """The concept's own prompts, and random prompts of neighbours that do not name it."""
    kind, rng = kind_of(concept), random.Random(f"{concept}/{seed}")
    others = [name for name in OBJECTS if name != concept]
    styles = [style for style in STYLES if style != concept]
    people = [name for name in CHARACTERS if name != concept]

    def objects(count: int, measure: str) -> list[Prompt]:
        return [styled(name, rng.choice(styles), measure) for name in rng.sample(others, count)]

    if kind == "object":
        own = [styled(concept, style, "own") for style in STYLES]
        near = objects(12, "in")
        far = [styled(rng.choice(others), style, "cross") for style in STYLES]
        far += [portrait(name, "cross") for name in rng.sample(people, 5)]
    elif kind == "style":
        own = [styled(name, concept, "own") for name in rng.sample(OBJECTS, 8)]
        near = [styled(name, style, "in") for style in styles for name in rng.sample(OBJECTS, 2)]
        far = objects(8, "cross") + [portrait(name, "cross") for name in rng.sample(people, 4)]
    else:
        templates = (
            "{}",
            "a photo of {}",
            "a portrait of {}",
            "a picture of {}",
            "the face of {}",
            "a drawing of {}",
            "a good photo of a {}",
            "a close-up photo of a {}",
        )
        own = [portrait(concept, "own", template) for template in templates]
        near = [portrait(name, "in") for name in rng.sample(people, 12)]
        far = objects(10, "cross")
    return own + near + far


def draw(model, prompts: list[Prompt], seed: int, steps: int = STEPS) -> torch.Tensor:
    """One picture for each prompt, (N, 128, 128, 3).

    It computes in bfloat16 if that is faster, which changes a pixel by 0.002 on average.
    """
    with fast(model.device):
        x0 = model.sample([p.text for p in prompts], seed, steps, GUIDANCE)
        return model.decode_latents(x0.float()).float()


def score(
    concept: str, prompts: list[Prompt], before: torch.Tensor, after: torch.Tensor, judge: Judge
) -> dict[str, float]:
    """{"ua", "ira", "cra", "style_kept", "drift_pixel", "drift_feature"}, shares from 0 to 1.

    before, after: the pictures of the prompts by the unedited and the edited model, with the same
    seeds. For a style or a character style_kept is 1, since its own prompts name no other style.
    """
    kind = kind_of(concept)
    saw, sees = judge(before), judge(after)
    own = [i for i, p in enumerate(prompts) if p.measure == "own"]
    others = [i for i, p in enumerate(prompts) if p.measure != "own"]

    def kept(measure: str) -> float:
        asked = [
            (i, k) for i, p in enumerate(prompts) if p.measure == measure for k in p.asked(kind)
        ]
        was = sum(prompts[i].kept(saw[i], k) for i, k in asked)
        still = sum(prompts[i].kept(sees[i], k) for i, k in asked if prompts[i].kept(saw[i], k))
        return still / was if was else 1.0

    styled_own = [i for i in own if kind == "object" and prompts[i].kept(saw[i], "style")]
    features = [judge.features(images[others]) for images in (before, after)]
    return {
        "ua": sum(not prompts[i].kept(sees[i], kind) for i in own) / len(own),
        "ira": kept("in"),
        "cra": kept("cross"),
        "style_kept": (
            sum(prompts[i].kept(sees[i], "style") for i in styled_own) / len(styled_own)
            if styled_own
            else 1.0
        ),
        "drift_pixel": (after - before)[others].abs().mean().item(),
        "drift_feature": (1 - (features[0] * features[1]).sum(1)).mean().item(),
    }
