"""The plain loops change the weights as the paper modes do, from the same draws."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import small_pipelines
import torch

from testbed.plain.domain_correction import domain_correction as plain_domain_correction
from testbed.plain.few_shot import few_shot as plain_few_shot
from testbed.plain.key_step import key_step as plain_key_step
from testbed.plain.model import PlainModel
from unlearn.core.erasure import NETWORK, Erasure
from unlearn.core.kind import Kind
from unlearn.core.resume import Resume
from unlearn.diffusers_backend.model import DiffusersModel
from unlearn.methods.domain_correction import DomainCorrectionSettings, domain_correction
from unlearn.methods.few_shot import FewShotSettings, few_shot
from unlearn.methods.key_step import key_step
from unlearn.methods.parts.anchor_pictures import paired_prompts
from unlearn.methods.parts.few_shot_pictures import paper_latents
from unlearn.methods.parts.key_step_settings import KeyStepKind, KeyStepSettings
from unlearn.prompts.sampler import PromptSampler

ROUNDING = 1e-3  # of the norm of the change


@pytest.fixture(scope="module")
def pipeline():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return small_pipelines.sd1()


@pytest.fixture
def ours(pipeline) -> DiffusersModel:
    return DiffusersModel(copy.deepcopy(pipeline))


@pytest.fixture
def plain(pipeline) -> PlainModel:
    return PlainModel(copy.deepcopy(pipeline))


def weights_of(plain: PlainModel, pipeline) -> dict[str, torch.Tensor]:
    """The plain model's weights by ComfyUI's names."""
    trained = copy.copy(pipeline)
    ((trained.text_encoder, _),), trained.unet = plain.text, plain.unet
    return DiffusersModel(trained).weights


def check_same_change(erasure: Erasure, ours: DiffusersModel, after: dict, part: str) -> None:
    before = {key: weight for key, weight in ours.weights.items() if is_of(key, part)}
    moved = {key: after[key] - weight for key, weight in before.items()}
    moved = {key: change for key, change in moved.items() if change.any()}
    assert moved.keys() == {key for key in erasure.deltas if erasure.delta(key).any()}
    # All together: where nothing is felt of a weight, Adam makes whole steps out of rounding. A
    # key's bias is such a weight in every layer, since softmax does not feel it.
    felt = {key: change for key, change in moved.items() if not key.endswith("k_proj.bias")}
    assert felt
    apart = sum((change - erasure.delta(key)).square().sum() for key, change in felt.items())
    whole = sum(change.square().sum() for change in felt.values())
    assert (apart / whole).sqrt() < ROUNDING


def is_of(key: str, part: str) -> bool:
    return key.startswith(NETWORK) == (part == "denoiser")


@pytest.mark.parametrize("kind", ["object", "style"])
def test_few_shot(kind: Kind, ours: DiffusersModel, plain: PlainModel, pipeline) -> None:
    images = torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    (latents,) = paper_latents(ours, ["fox"], images, kind, shots=4, seed=0)
    settings = FewShotSettings(mode="paper", kind=kind, epochs=2)
    erasure = few_shot(ours, ["fox"], images, settings)
    steps: list[int] = []
    plain_few_shot(
        plain, list(latents), "fox", kind, epochs=2, on_step=lambda n, loss: steps.append(n)
    )
    assert steps == [1, 2, 3, 4]
    check_same_change(erasure, ours, weights_of(plain, pipeline), "encoder")


@pytest.mark.parametrize(("kind", "start", "iterations"), [("style", 3, 10), ("object", 2, 18)])
def test_key_step(
    kind: KeyStepKind,
    start: int,
    iterations: int,
    ours: DiffusersModel,
    plain: PlainModel,
    pipeline,
) -> None:
    """After eight walks the object's begin one step later, and the style's, which are at the latest
    step, do not. The last prompt is augmented."""
    asked = {"start": start, "steps": 4, "iterations": iterations}
    settings = KeyStepSettings(mode="paper", kind=kind, **asked)
    erasure = key_step(ours, ["fox"], settings)
    plain_key_step(plain, "fox", kind, **asked)
    check_same_change(erasure, ours, weights_of(plain, pipeline), "denoiser")


@pytest.mark.parametrize("kind", ["object", "style"])
def test_domain_correction(
    kind: Kind, ours: DiffusersModel, plain: PlainModel, pipeline, tmp_path: Path
) -> None:
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    resume = Resume(tmp_path / "run", every=3600)
    resume.once("anchors", lambda: latents)
    asked = {"iterations": 5, "alone": 2, "batch": 2}
    settings = DomainCorrectionSettings(
        mode="paper", kind=kind, anchor="dog", pictures=3, prompts=2, seed=3, **asked
    )
    erasure = domain_correction(ours, ["fox"], settings, resume=resume)
    rng = random.Random(settings.seed)
    words = PromptSampler(["fox"], kind, rng, "dog")
    prompts = [paired_prompts(rng, words, settings, "fox") for _ in range(2)]
    # A picture has eight bits, as a file's.
    pictures = (ours.decode_latents(latents).movedim(-1, 1) * 255).round() / 255
    plain_domain_correction(plain, pictures, prompts, kind, seed=3, **asked)
    check_same_change(erasure, ours, weights_of(plain, pipeline), "denoiser")
