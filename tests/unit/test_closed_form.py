"""The start in closed form: against an independent least squares, and what it does to a network."""

from __future__ import annotations

import random

import pytest
import tiny
import torch
from tiny import TinyNetworkModel

import testbed.model.pack
from unlearn.core.conditioning import Conditioning
from unlearn.core.edit import Delta
from unlearn.core.erasure import NETWORK
from unlearn.core.trainable import reads_prompt
from unlearn.methods.key_step import KeyStepSettings, key_step
from unlearn.methods.parts import closed_form
from unlearn.methods.parts.closed_form import erasing_map, start
from unlearn.methods.parts.key_step_settings import BY_KIND
from unlearn.prompts.sampler import PromptSampler

KEYS_AND_VALUES = "cross-attention-kv"


def words(concept: str = "cat", anchor: str = "") -> PromptSampler:
    return PromptSampler([concept], "object", random.Random(0), anchor)


def tokens(model, prompts: list[str]) -> torch.Tensor:
    """As they are read in parts; the shorter prompts of a part are padded with zeros."""
    size = closed_form.AT_ONCE
    parts = [model.encode(prompts[i : i + size]).cross for i in range(0, len(prompts), size)]
    return torch.cat([part.flatten(0, 1) for part in parts]).double()


def test_the_map_is_the_least_squares_solution(monkeypatch) -> None:
    """Against torch's solver on the stacked equations, a weight in each row's square root."""
    monkeypatch.setattr(closed_form, "SENTENCES", 12)
    monkeypatch.setattr(closed_form, "OTHERS", 40)
    monkeypatch.setattr(closed_form, "RIDGE", 0.0)
    model = TinyNetworkModel()
    around = words()
    sentences, others = around.sentences(12), around.others(40)
    own = tokens(model, [sentence.format("cat") for sentence in sentences])
    neutral = tokens(model, [sentence.format(around.anchors["cat"]) for sentence in sentences])
    kept = tokens(model, others)
    left = torch.cat([own / len(own) ** 0.5, kept * (9.0 / len(kept)) ** 0.5])
    right = torch.cat([1.5 * (neutral - own) / len(own) ** 0.5, torch.zeros_like(kept)])
    expected = torch.linalg.lstsq(left, right).solution
    found = erasing_map(model, words(), ["cat"], push=0.5, retention=9.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_ridge_and_retention_by_hand(monkeypatch) -> None:
    """The normal equations, of 128 sentences and 512 other prompts, which weigh 25 times as much:
    (own + 25 kept + ridge) D = across, the ridge in shares of the mean square."""
    monkeypatch.setattr(closed_form, "RIDGE", 0.5)
    model, around = TinyNetworkModel(), words()
    sentences, others = around.sentences(128), around.others(512)
    own = tokens(model, [sentence.format("cat") for sentence in sentences])
    neutral = tokens(model, [sentence.format(around.anchors["cat"]) for sentence in sentences])
    kept = tokens(model, others)
    square = own.T @ own / len(own) + 25 * kept.T @ kept / len(kept)
    ridge = 0.5 * square.diagonal().mean() * torch.eye(8, dtype=torch.float64)
    expected = torch.linalg.solve(square + ridge, own.T @ (neutral - own) / len(own))
    found = erasing_map(model, words(), ["cat"], push=0.0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_a_ridge_keeps_the_map_finite_where_the_prompts_leave_it_open() -> None:
    class Narrow(TinyNetworkModel):
        def encode(self, prompts) -> Conditioning:
            cross = super().encode(prompts).cross.clone()
            cross[..., 4:] = 0.0  # which no prompt ever says
            return Conditioning(cross)

    found = erasing_map(Narrow(), words(), ["cat"], push=0.0)
    assert found.isfinite().all()
    assert not found[4:].any()
    assert found[:4, :4].abs().max() > 0.01


def test_retention_decides_between_the_concept_and_others() -> None:
    model = TinyNetworkModel()
    own = tokens(model, ["a photo of a cat"])
    neutral = tokens(model, ["a photo of a picture"])
    others = tokens(model, ["a photo of a dog", "a photo of a house"])

    def measured(retention: float) -> tuple[float, float]:
        """How much of the concept is left, how far others move."""
        change = erasing_map(model, words(), ["cat"], 0.0, retention)
        left = (own + own @ change - neutral).norm() / (own - neutral).norm()
        return left.item(), ((others @ change).norm() / others.norm()).item()

    (left, moved), (left_held, moved_held) = measured(0.01), measured(25.0)
    assert left < left_held < 1
    assert moved_held < 0.05
    assert moved_held < moved


@pytest.mark.slow
def test_on_a_trained_model_the_concept_goes_and_its_neighbours_stay(pack) -> None:
    """What the network reads of a name becomes what it reads of the neutral word."""
    around = words("fox")
    model = pack.nodes.backend.model.ComfyModel(*testbed.model.pack.checkpoint(), size=(128, 128))
    with torch.inference_mode(), model.training():
        check_fox(model, around)


def check_fox(model, around: PromptSampler) -> None:
    change = erasing_map(model, around, ["fox"], push=0.0)

    def read(prompt: str) -> torch.Tensor:
        return model.encode([prompt]).cross[0].cpu().double()

    for style in ("noto", "ink"):
        own = read(f"a photo of a fox, {style} style")
        neutral = read(f"a photo of a {around.anchors['fox']}, {style} style")
        way = (own - neutral).norm()
        assert (own + own @ change - neutral).norm() < 0.5 * way
        for word in ("cat", "castle"):
            kept = read(f"a photo of a {word}, {style} style")
            assert (kept @ change).norm() < 0.3 * way


def test_keys_and_values_get_the_change_and_the_rate_goes_down() -> None:
    model = TinyNetworkModel()
    with model.edit("denoiser", KEYS_AND_VALUES) as edit:
        optimiser = edit.adam((0.9, 0.98), 1e-12, relative_rate=0.1)
        rates = [group["lr"] for group in optimiser.param_groups]
        assert start(model, edit, optimiser, words(), ["cat"], push=0.0)
        change = erasing_map(model, words(), ["cat"], push=0.0)
        for key, delta in edit.deltas.items():
            if key.endswith("weight"):
                expected = edit.weights[key].double() @ change.T
                torch.testing.assert_close(
                    delta.value().detach().double(), expected, atol=1e-5, rtol=1e-4
                )
        assert [group["lr"] for group in optimiser.param_groups] == pytest.approx(
            [rate / 5 for rate in rates]
        )
        assert all("diff" in tensors for tensors in edit.tensors().values())


def test_where_nothing_reads_the_prompt_itself_nothing_is_done() -> None:
    model = TinyNetworkModel()
    with model.edit("denoiser", "outside-cross-attention") as edit:
        optimiser = edit.adam((0.9, 0.98), 1e-12, relative_rate=0.1)
        rates = [group["lr"] for group in optimiser.param_groups]
        assert not start(model, edit, optimiser, words(), ["cat"], push=0.0)
        assert not any(delta.value().any() for delta in edit.deltas.values())
        assert [group["lr"] for group in optimiser.param_groups] == rates


@pytest.mark.parametrize(
    ("name", "shape", "reads"),
    [
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (320, 768), True),
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_v.weight", (320, 768), True),
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight", (320, 768), False),
        ("input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight", (320, 768), False),
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.bias", (768,), False),
        # Wan's text goes through a projection first.
        ("blocks.0.cross_attn.k.weight", (1536, 1536), False),
        ("joint_blocks.0.context_block.attn.qkv.weight", (4608, 768), False),
    ],
)
def test_which_weights_read_the_prompt(name: str, shape: tuple, reads: bool) -> None:
    assert reads_prompt(name, torch.zeros(shape), width=768) is reads


def test_of_a_low_rank_the_nearest_change_is_taken() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 20, generator=generator)
    wanted = torch.randn(12, 3, generator=generator) @ torch.randn(3, 20, generator=generator)
    exact = Delta(weight, 3, generator)
    exact.assign(wanted)
    torch.testing.assert_close(exact.value().detach(), wanted, atol=1e-4, rtol=1e-4)
    nearest = Delta(weight, 2, generator)
    nearest.assign(wanted)
    error = (nearest.value().detach() - wanted).norm()
    # Eckart and Young: what is lost is the last singular value.
    assert error.item() == pytest.approx(torch.linalg.svdvals(wanted)[2].item(), rel=1e-3)


def test_without_a_step_it_is_an_erasure_of_its_own() -> None:
    model = TinyNetworkModel()
    erasure = key_step(model, ["cat"], KeyStepSettings(steps=10, iterations=0))
    assert erasure.record["steps"] == 0
    assert erasure.deltas
    assert all(key.startswith(NETWORK) for key in erasure.deltas)
    x0 = 0.5 * model.noise(4, torch.Generator().manual_seed(1))
    erased = model.erased(erasure)
    left = tiny.left(erased, x0, "a photo of a cat", "a photo of a picture")
    assert left < 0.95, "nearer to the anchor's prediction, whose distance was 1"
    assert not key_step(
        model, ["cat"], KeyStepSettings(steps=10, iterations=0, start_solved=False)
    ).deltas


def test_a_style_is_pushed_beyond_the_anchor() -> None:
    """By 0.6 of the way there, which was tuned; a thing and a character are not."""
    assert {kind: KeyStepSettings(kind=kind).beyond for kind in BY_KIND} == {
        "object": 0.0,
        "style": 0.6,
        "character": 0.0,
        "nudity": 0.0,
    }
    assert KeyStepSettings(kind="style", push=0.1).beyond == 0.1
