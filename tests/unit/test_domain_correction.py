"""Domain correction: discriminator and losses by hand, its loops on a tiny network."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from tiny import (
    Cancelled,
    OutOfMemoryAtTheEnd,
    TinyNetworkModel,
    cancel_at,
    kept_and_cancelled,
    same,
)
from torch import nn

from unlearn.core.edit import Diverged, Edit
from unlearn.core.erasure import NETWORK, Erasure
from unlearn.core.progress import Progress
from unlearn.core.resume import Resume
from unlearn.core.trainable import network_weights
from unlearn.methods.domain_correction import DomainCorrectionSettings, domain_correction
from unlearn.methods.parts.anchor_pictures import Anchors, paired_prompts
from unlearn.methods.parts.concepts import STOP_WINDOW
from unlearn.methods.parts.discriminator import Discriminator, discriminator_loss, generator_loss
from unlearn.methods.parts.doco_pictures import Pictures, drawn_size, prefix, resized
from unlearn.methods.parts.retention import RetentionSet
from unlearn.prompts.sampler import PromptSampler

PAPER = DomainCorrectionSettings(mode="paper", pictures=6, iterations=12, batch=3)
BALANCED = DomainCorrectionSettings(pictures=6, iterations=14, batch=3)
MODES = [
    pytest.param(PAPER, id="paper"),
    pytest.param(BALANCED, id="balanced", marks=pytest.mark.costly),
]
KEYS_AND_VALUES = {
    f"{NETWORK}transformer_blocks.0.attn2.{name}.weight" for name in ("to_k", "to_v")
}


def left(model: TinyNetworkModel, erasure: Erasure) -> float:
    """How far the concept's prediction still is from the anchor's, the original's as 1."""
    original = TinyNetworkModel(model.parameterisation)
    x0 = original.sample(["a photo of a thing"] * 4, 9)
    return tiny.left(original.erased(erasure), x0, "a photo of a cat", "a photo of a thing")


class Quick(TinyNetworkModel):
    """Draws noise at once, and notes what it was asked for."""

    def sample(
        self, prompts: Sequence[str], seed: int, steps: int = 20, guidance: float = 7.5
    ) -> torch.Tensor:
        self.drawn.append([*prompts])
        self.how = steps, guidance
        return self.noise(len(prompts), torch.Generator().manual_seed(seed))


# The discriminator


def test_the_discriminator_has_the_papers_layers() -> None:
    layers = list(Discriminator(4, 64))
    assert [type(layer).__name__ for layer in layers] == [
        *("Conv2d", "LeakyReLU"),
        *("Conv2d", "BatchNorm2d", "LeakyReLU") * 3,
        "Conv2d",
    ]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [
        *((4, 64), (64, 128), (128, 256), (256, 512)),
        (512, 1),
    ]
    assert all(c.kernel_size == (4, 4) for c in convolutions)
    assert [c.stride[0] for c in convolutions] == [2, 2, 2, 2, 1]
    slopes = {layer.negative_slope for layer in layers if isinstance(layer, nn.LeakyReLU)}
    assert slopes == {0.2}


def test_the_last_padding_is_the_released_codes_in_the_paper_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of latents of 64, 4 x 4 places come to the last convolution: 3 x 3 patches, or 5 x 5."""
    for padding, patches in ((1, 3), (2, 5)):
        scores = Discriminator(4, 64, padding)(torch.randn(2, 4, 64, 64))
        assert scores.shape == (2, 1, patches, patches)
    made: list[int] = []

    class Noted(Discriminator):
        def __init__(self, channels: int, side: int, padding: int = 2) -> None:
            super().__init__(channels, side, padding)
            made.append(self[-1].padding[0])

    monkeypatch.setattr("unlearn.methods.domain_correction.Discriminator", Noted)
    for settings in (PAPER, BALANCED):
        with pytest.raises(Cancelled):
            domain_correction(Quick(), ["cat"], settings, cancel_at(1))
    assert made == [1, 2]


@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("side", [4, 8, 12, 16, 32, 64, (8, 24)])
def test_there_is_a_patch_whatever_the_latents_side(
    side: int | tuple[int, int], padding: int
) -> None:
    height, width = side if isinstance(side, tuple) else (side, side)
    scores = Discriminator(4, min(height, width), padding)(torch.randn(2, 4, height, width))
    assert scores.shape[:2] == (2, 1)
    assert min(scores.shape[2:]) >= 1


@pytest.mark.parametrize(("side", "halvings"), [(16, None), (32, 4), (64, 4), (128, 4)])
def test_there_are_four_halvings_for_latents_of_32_and_more(
    side: int, halvings: int | None
) -> None:
    found = sum(getattr(layer, "stride", None) == (2, 2) for layer in Discriminator(4, side))
    assert found == halvings if halvings else found < 4


def test_a_batch_of_one_small_latent_can_be_judged() -> None:
    """Batch norm needs more than one value a channel."""
    for side in (4, 8, 16, 32):
        assert Discriminator(4, side).train()(torch.randn(1, 4, side, side)).isfinite().all()


def test_a_videos_frames_are_judged_as_pictures() -> None:
    judge = Discriminator(4, 16).eval()
    video = torch.randn(2, 4, 3, 16, 16)
    scores = judge(video)
    assert len(scores) == 6
    assert torch.allclose(scores[1], judge(video[:, :, 1])[0], atol=1e-6)
    assert torch.allclose(scores[3], judge(video[:, :, 0])[1], atol=1e-6)


def test_discriminator_loss_by_hand() -> None:
    real, fake = torch.tensor([0.0, 2.0]), torch.tensor([1.0])
    says_real = (math.log(2) + math.log(1 + math.exp(-2))) / 2
    says_fake = math.log(1 + math.exp(1))
    assert discriminator_loss(real, fake).item() == pytest.approx((says_real + says_fake) / 2)


def test_generator_loss_by_hand() -> None:
    fake = torch.tensor([[1.0], [-2.0]])
    wanted = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert generator_loss(fake).item() == pytest.approx(wanted)


def test_the_two_losses_pull_the_concepts_score_apart() -> None:
    fake = torch.zeros(1, requires_grad=True)
    down = torch.autograd.grad(discriminator_loss(torch.zeros(1), fake), fake)[0]
    up = torch.autograd.grad(generator_loss(fake), fake)[0]
    assert (down.item(), up.item()) == pytest.approx((0.25, -0.5))


# Weight decay


def test_shrink_by_hand() -> None:
    edit = Edit({"w": torch.tensor([2.0, -4.0])}, rank=0)
    delta = edit.deltas["w"].full
    delta.data.copy_(torch.tensor([1.0, 0.0]))
    edit.shrink(0.1)
    assert delta.tolist() == pytest.approx([0.7, 0.4])  # minus a tenth of 3 and of -4
    edited = edit.changed("w", edit.weights["w"])
    assert edited.tolist() == pytest.approx([2.7, -3.6])


def test_shrink_and_a_step_are_adamws() -> None:
    weight = torch.tensor([2.0, -4.0])
    edit = Edit({"w": weight}, rank=0)
    adam = edit.adam((0.9, 0.999), 1e-8, rate=0.01)
    whole = weight.clone().requires_grad_()
    adamw = torch.optim.AdamW([whole], 0.01, weight_decay=0.5)
    for _ in range(5):
        edit.shrink(0.01 * 0.5)
        edit.step(adam, edit.changed("w", weight).square().sum())
        adamw.zero_grad()
        whole.square().sum().backward()
        adamw.step()
    assert torch.allclose(edit.changed("w", weight), whole, atol=1e-6)


def test_shrink_leaves_low_rank_deltas_as_they_are() -> None:
    """There is no gradient of the weight itself that AdamW's decay would go with."""
    edit = Edit({"w": torch.ones(4, 4)}, rank=1)
    delta = edit.deltas["w"]
    delta.up.data.copy_(torch.tensor([[1.0], [-2.0], [3.0], [0.5]]))
    before = delta.value().detach().clone()
    assert before.abs().min() > 0
    edit.shrink(0.5)
    assert torch.equal(delta.value(), before)


# Prompts and anchors


def pairs(settings: DomainCorrectionSettings, concept: str) -> set[tuple[str, str]]:
    rng = random.Random(0)
    words = PromptSampler([concept], settings.kind, rng, settings.anchor)
    return {paired_prompts(rng, words, settings, concept) for _ in range(40)}


@pytest.mark.parametrize("mode", ["paper", "balanced"])
def test_the_concept_stands_in_the_anchors_place(mode: str) -> None:
    found = pairs(DomainCorrectionSettings(mode=mode, anchor="animal"), "cat")
    assert len(found) > 20
    for anchor, concept in found:
        assert "animal" in anchor
        assert "cat" not in anchor.split()
        assert anchor.replace("animal", "cat") == concept


def test_the_paper_adds_a_style_to_the_sentence() -> None:
    found = pairs(DomainCorrectionSettings(mode="paper", kind="style"), "Van Gogh")
    assert len({anchor for anchor, _ in found}) > 10
    for anchor, concept in found:
        assert anchor.startswith("a painting of a ")
        behind, before = f"{anchor}, in the style of Van Gogh", f"in Van Gogh's style, {anchor}"
        assert concept in (behind, before)
    assert {concept.startswith("in Van") for _, concept in found} == {True, False}
    named = pairs(DomainCorrectionSettings(mode="paper", kind="style", anchor="house"), "Van Gogh")
    assert {anchor for anchor, _ in named} == {"a painting of a house"}


def test_two_thirds_of_the_papers_prompts_of_a_style_begin_with_it() -> None:
    settings, rng = DomainCorrectionSettings(mode="paper", kind="style"), random.Random(0)
    words = PromptSampler(["Van Gogh"], "style", rng)
    found = [paired_prompts(rng, words, settings, "Van Gogh")[1] for _ in range(600)]
    assert sum(prompt.startswith("in Van Gogh's style") for prompt in found) == pytest.approx(
        400, abs=40
    )


# The pictures of the paper's steps


def test_a_picture_is_made_smaller_on_grey() -> None:
    picture = torch.rand(6, 6, 3)
    found = resized(picture, 3, random.Random(0))
    inside = (found != 0.5).any(-1)
    assert found.shape == picture.shape
    assert inside.sum() == 9
    rows, columns = inside.nonzero().T
    assert rows.max() - rows.min() == columns.max() - columns.min() == 2
    by_torch = torch.nn.functional.interpolate(
        picture.movedim(-1, 0)[None], (3, 3), mode="bilinear", antialias=True
    )[0].movedim(0, -1)
    assert torch.equal(found[inside], by_torch.flatten(0, 1))
    corners = {
        tuple((resized(picture, 3, random.Random(i)) != 0.5).any(-1).nonzero()[0].tolist())
        for i in range(40)
    }
    assert {row for row, _ in corners} == {column for _, column in corners} == {0, 1, 2, 3}


def test_a_picture_is_made_larger_and_cut() -> None:
    picture = torch.linspace(0, 1, 10)[None, :, None].expand(10, 10, 3)
    found = resized(picture, 14, random.Random(0))
    assert found.shape == picture.shape
    # Its slope from left to right is that of a picture 1.4 times as large.
    steps = found[0, 3:7, 0].diff()
    assert torch.allclose(steps, torch.full((3,), 1 / 9 / 1.4), atol=1e-3)
    assert torch.equal(resized(picture, 10, random.Random(0)), picture)


def test_how_large_a_picture_becomes() -> None:
    """By hand, of 100 rows: 33 to 100 with p = 0.66, else 120 to 139."""
    rng = random.Random(0)
    found = [drawn_size(rng, 100) for _ in range(6000)]
    smaller = [rows for rows in found if rows <= 100]
    larger = [rows for rows in found if rows > 100]
    assert len(smaller) / len(found) == pytest.approx(0.66, abs=0.02)
    assert (min(smaller), max(smaller)) == (33, 100)
    assert (min(larger), max(larger)) == (120, 139)
    assert sum(smaller) / len(smaller) == pytest.approx(66.5, abs=1.5)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (33, {"a far away ", "very small "}),
        (59, {"a far away ", "very small "}),
        (60, {""}),
        (100, {""}),
        (120, {"zoomed in ", "close up "}),
    ],
)
def test_the_prompt_tells_of_a_picture_that_is_much_smaller_or_larger(
    rows: int, words: set[str]
) -> None:
    rng = random.Random(0)
    assert {prefix(rng, rows, 100) for _ in range(40)} == words


class Wide(Quick):
    """Pictures of 2 x 4, in whose latents each column is multiplied by its number."""

    def _mean_latents(self, images: torch.Tensor) -> torch.Tensor:
        return (images * torch.arange(1.0, images.shape[2] + 1)[:, None]).movedim(-1, 1)

    def decode_latents(self, x0: torch.Tensor) -> torch.Tensor:
        return x0.movedim(1, -1) / torch.arange(1.0, x0.shape[-1] + 1)[:, None]


def test_pictures_are_flipped_before_they_are_encoded_and_drawn_anew_each_time() -> None:
    model, shown = Wide(), torch.randint(0, 256, (8, 2, 4, 3)) / 255
    pictures = Pictures(model, model.encode_images(shown))
    rng, noise = random.Random(0), torch.Generator().manual_seed(0)
    ways = []
    for _ in range(4):
        x0, prefixes = pictures.encoded(range(8), rng, noise, resize=False)
        assert prefixes == [""] * 8
        ways.append([])
        for latent, picture in zip(x0, shown, strict=True):
            plain, flipped = (
                model.encode_images(some[None])[0] for some in (picture, picture.flip(1))
            )
            ways[-1].append(torch.allclose(latent, flipped, atol=1e-5))
            assert ways[-1][-1] or torch.allclose(latent, plain, atol=1e-5)
    assert 8 <= sum(map(sum, ways)) <= 24
    assert ways[0] != ways[1]
    model.deviation = 0.1
    first, again = (pictures.encoded([0], random.Random(1), noise, False)[0] for _ in range(2))
    assert not torch.allclose(first, again, atol=1e-3)


@pytest.mark.parametrize(("kind", "prefixed"), [("object", True), ("style", False)])
def test_things_are_resized_and_their_prompts_say_so_and_styles_are_not(
    kind: str, prefixed: bool
) -> None:
    model = TinyNetworkModel()
    settings = replace(PAPER, kind=kind, iterations=12, alone=11, batch=4, anchor="thing")
    domain_correction(model, ["cat"], settings)
    # Its last prompt measures how far the concept moved.
    named = {p for some in model.encoded for p in some if "cat" in p}
    begun = ("a far away ", "very small ", "zoomed in ", "close up ")
    found = {prompt for prompt in named if prompt.startswith(begun)}
    assert bool(found) == prefixed
    anchors_said = {p for some in model.encoded for p in some if "thing" in p and "cat" not in p}
    assert anchors_said
    assert not any(prompt.startswith(begun) for prompt in anchors_said)


def test_the_pictures_of_the_preserving_loss_keep_their_size() -> None:
    """In each step those of the erasing loss come first."""
    shown: list[torch.Tensor] = []

    class Watched(Quick):
        def encode_images(self, images, generator=None):
            shown.append(images)
            return super().encode_images(images, generator)

    model = Watched()
    domain_correction(model, ["cat"], replace(PAPER, iterations=8, alone=0))
    drawn = (model.decode_latents(anchors(Quick(), ["cat"]).x0) * 255).round() / 255
    whole = torch.cat([drawn, drawn.flip(2)])

    def are_whole(pictures: torch.Tensor) -> list[bool]:
        apart = (pictures[:, None] - whole).abs().flatten(2).amax(2)
        return (apart.amin(1) < 1e-6).tolist()

    erasing, kept = (torch.cat(some) for some in (shown[::2], shown[1::2]))
    assert len(erasing) == len(kept) == 8 * 3
    assert all(are_whole(kept))
    assert are_whole(erasing).count(False) > 8


def test_without_an_autoencoder_the_pictures_are_those_that_were_drawn() -> None:
    model = TinyNetworkModel()
    model.has_autoencoder = False
    x0 = torch.rand(5, 3, 4, 4)
    found = Pictures(model, x0).encoded([4, 0], random.Random(0), torch.Generator(), resize=True)
    assert torch.equal(found[0], x0[[4, 0]])
    assert found[1] == ["", ""]


@pytest.mark.parametrize("leak", [False, True], ids=["as in the paper", "as released"])
@pytest.mark.parametrize("projection", ["orthogonal", "as_released"])
def test_an_iteration_of_the_paper_by_plain_pytorch(
    leak: bool, projection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The denoiser's step comes first; what it should keep is of other pictures, noise and
    timesteps; as released, the discriminator also takes the gradient of deceiving it."""
    judges: list[Discriminator] = []

    class Kept(Discriminator):
        def __init__(self, *sizes: int) -> None:
            super().__init__(*sizes)
            judges.append(self)

    monkeypatch.setattr("unlearn.methods.domain_correction.Discriminator", Kept)
    own = {"kind": "style", "iterations": 1, "alone": 0, "as_released": leak, "prompts": 6}
    rates = {"learning_rate": 1e-2, "discriminator_rate": 1e-3, "projection": projection}
    model = TinyNetworkModel()
    model.has_autoencoder = False
    erasure = domain_correction(model, ["ink"], replace(PAPER, **own, **rates))

    plain = TinyNetworkModel()
    known = anchors(plain, ["ink"], **own, **rates)
    rng, noise = random.Random(0), torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = Discriminator(3, 4, 1)
    bce = nn.functional.binary_cross_entropy_with_logits

    def drawn() -> tuple:
        chosen = [rng.randrange(6) for _ in range(3)]
        fresh = torch.randn(3, 3, 4, 4, generator=noise)
        t = torch.randint(0, 1000, (3,), generator=noise).float()
        prompts = zip(*(known.pair(i, 0) for i in chosen))
        return plain.add_noise(known.x0[chosen], fresh, t), t, fresh, *map(list, prompts)

    def said(score: torch.Tensor, truth: float) -> torch.Tensor:
        return bce(score, torch.full_like(score, truth))

    with plain.edit("denoiser", "cross-attention-kv") as edit:
        x_t, t, _, wanted, asked = drawn()
        fake = plain.predict_x0(x_t, t, plain.predict(x_t, t, plain.encode(asked)))
        with edit.off():
            real = plain.predict_x0(x_t, t, plain.predict(x_t, t, plain.encode(wanted)))
        weights, own_weights = list(edit.parameters()), list(judge.parameters())
        erase = torch.autograd.grad(said(judge(fake), 1.0), weights, retain_graph=True)
        leaked = torch.autograd.grad(said(judge(fake), 1.0), own_weights)
        # In the authors' loader the second batch follows the first.
        x_t, t, fresh, wanted, _ = drawn()
        kept = (plain.predict(x_t, t, plain.encode(wanted)) - fresh).square().mean()
        keep = torch.autograd.grad(kept, weights)
    judged = said(judge(real), 1.0) + said(judge(fake.detach()), 0.0)
    judged = torch.autograd.grad(judged, own_weights)

    def clipped(gradients: tuple) -> list[torch.Tensor]:
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        return [g / max(1.0, norm) for g in gradients]

    for key, one, other in zip(edit.deltas, clipped(erase), clipped(keep), strict=True):
        cosine = (one * other).sum() / one.norm() / other.norm()
        if cosine < 0:
            length = one.norm() if projection == "orthogonal" else 1.0
            one = one - cosine * length * other / other.norm()
        moved = -1e-2 * 1e-2 * plain.original(key) - 1e-2 * one / (one.abs() + 1e-8)
        assert torch.allclose(erasure.delta(key), moved, rtol=1e-3, atol=2e-5), key
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = Discriminator(3, 4, 1)
    for was, now, gradient, more in zip(
        before.parameters(), judges[0].parameters(), judged, leaked, strict=True
    ):
        gradient = gradient + more if leak else gradient
        moved = -1e-3 * gradient / (gradient.abs() + 1e-8)
        assert torch.allclose(now - was, moved, rtol=1e-2, atol=2e-6)


def test_balanced_puts_a_neutral_style_in_the_styles_place() -> None:
    for anchor, concept in pairs(DomainCorrectionSettings(kind="style"), "Van Gogh"):
        assert anchor.replace("plain", "Van Gogh") == concept


def anchors(model: TinyNetworkModel, concepts: list[str], **changes) -> Anchors:
    settings = replace(PAPER, **changes)
    with model.edit("denoiser", "cross-attention-kv") as edit:
        return Anchors(model, edit, concepts, settings, Resume())


def test_each_picture_is_drawn_from_its_anchor_prompt() -> None:
    model = TinyNetworkModel()
    found = anchors(model, ["cat"], pictures=7, prompts=3)
    drawn = [prompt for prompts in model.drawn for prompt in prompts]
    assert drawn == [found.pair(i, 0)[0] for i in range(7)]
    assert [len(prompts) for prompts in model.drawn] == [3, 3, 1]
    assert found.x0.shape == (7, *model.SHAPE)
    assert len(set(drawn)) <= 3


def test_pictures_of_one_prompt_are_different_ones() -> None:
    found = anchors(TinyNetworkModel(), ["cat"], pictures=6, prompts=1)
    assert len({x0.sum().item() for x0 in found.x0}) == 6


def test_with_several_concepts_a_picture_keeps_the_anchor_prompt_it_was_drawn_from() -> None:
    model = TinyNetworkModel()
    found = anchors(model, ["cat", "dog"], pictures=6)
    drawn = [prompt for prompts in model.drawn for prompt in prompts]
    for concept, word in enumerate(("cat", "dog")):
        assert all(word in found.pair(i, concept)[1] for i in range(6))
        assert [found.pair(i, concept)[0] for i in range(6)] == drawn


def test_the_anchors_are_drawn_by_the_original_model() -> None:
    before = anchors(TinyNetworkModel(), ["cat"]).x0
    model = TinyNetworkModel()
    with model.edit("denoiser", "cross-attention-kv") as edit:
        for delta in edit.deltas.values():
            delta.full.data.fill_(1.0)
        assert torch.equal(Anchors(model, edit, ["cat"], PAPER, Resume()).x0, before)


# The settings


@pytest.mark.parametrize(
    ("mode", "pictures", "prompts", "batch", "iterations", "alone"),
    [("paper", 1000, 200, 8, 2000, 1000), ("balanced", 32, 200, 4, 240, 24)],
)
def test_each_mode_has_its_own_numbers(
    mode: str, pictures: int, prompts: int, batch: int, iterations: int, alone: int
) -> None:
    model, heard = Quick(), []

    def on_step(step: int, total: int, loss: float, edit: Edit) -> None:
        heard.append(total)
        raise Cancelled

    settings = DomainCorrectionSettings(mode=mode)
    with pytest.raises(Cancelled):
        domain_correction(model, ["cat"], settings, on_step)
    assert heard == [iterations]
    held = RetentionSet.COUNT // RetentionSet.AT_ONCE if mode == "balanced" else 0
    drawn = model.drawn[: len(model.drawn) - held]
    assert [len(some) for some in drawn] == [batch] * (pictures // batch)
    assert len({prompt for some in drawn for prompt in some}) <= prompts
    assert settings.of("alone", iterations // 2, iterations // 10) == alone
    assert settings.trainable == "cross-attention-kv"
    assert settings.projection == "orthogonal"


def test_the_papers_rates_and_sampling() -> None:
    model = Quick()
    anchors(model, ["cat"])
    assert model.how == (25, 6.0)
    settings = DomainCorrectionSettings(mode="paper")
    assert (settings.learning_rate, settings.judging_rate) == (4.8e-5, 1e-4)
    assert not settings.as_released


@pytest.mark.parametrize(
    ("mode", "kind", "rate"),
    [
        ("paper", "style", 5e-4),
        ("paper", "object", 1e-4),
        ("paper", "character", 1e-4),
        ("balanced", "style", 1e-4),
    ],
)
def test_the_discriminators_rate_is_the_released_recipes(
    mode: str, kind: str, rate: float, tmp_path: Path
) -> None:
    settings = DomainCorrectionSettings(mode, kind, pictures=2, batch=2, iterations=4, alone=3)
    assert settings.judging_rate == rate
    assert replace(settings, discriminator_rate=2e-4).judging_rate == 2e-4
    resume = Resume(tmp_path / "run", every=0)
    with pytest.raises(Cancelled):
        domain_correction(Quick(), ["cat"], settings, cancel_at(2), resume)
    assert resume.load()["judging"]["param_groups"][0]["lr"] == rate


@pytest.mark.parametrize("settings", MODES)
@pytest.mark.parametrize("batch", [None, 1])
def test_no_more_latents_are_kept_for_a_step_than_it_says(
    settings: DomainCorrectionSettings, batch: int | None
) -> None:
    model, kept = TinyNetworkModel(), []

    def on_step(*_) -> None:
        kept.append(sum(model.learnt_from))
        model.learnt_from.clear()

    settings = replace(settings, batch=batch, pictures=4, iterations=3, alone=1)
    domain_correction(model, ["cat"], settings, on_step)
    assert kept == [0, settings.rows, settings.rows]


# Training


@pytest.mark.parametrize("settings", MODES)
def test_while_the_discriminator_learns_alone_no_weight_changes(
    settings: DomainCorrectionSettings,
) -> None:
    sizes = []

    def on_step(step: int, total: int, loss: float, edit: Edit) -> None:
        sizes.append(sum(p.detach().abs().sum().item() for p in edit.parameters()))

    settings = replace(settings, iterations=8, alone=5)
    record = domain_correction(TinyNetworkModel(), ["cat"], settings, on_step).record
    # Balanced has a solution to begin with.
    assert sizes[:5] == [sizes[0]] * 5
    assert (sizes[0] > 0) == (settings.mode == "balanced")
    assert len(set(sizes[4:])) == 4
    assert record["steps"] == len(record["loss"]) == 3


@pytest.mark.parametrize(("settings", "alone"), [(PAPER, 6), (BALANCED, 1)], ids=["paper", "ours"])
def test_how_long_the_discriminator_learns_alone(
    settings: DomainCorrectionSettings, alone: int
) -> None:
    record = domain_correction(TinyNetworkModel(), ["cat"], settings).record
    assert record["steps"] == settings.iterations - alone


@pytest.mark.parametrize("settings", MODES)
def test_the_erasure_holds_the_edited_weights_and_no_discriminator(
    settings: DomainCorrectionSettings,
) -> None:
    erasure = domain_correction(TinyNetworkModel(), ["cat"], settings)
    assert set(erasure.deltas) == set(erasure.record["base"]) == KEYS_AND_VALUES
    assert all(erasure.delta(key).any() for key in KEYS_AND_VALUES)
    record = erasure.record
    assert (record["method"], record["concepts"]) == ("domain_correction", ["cat"])
    assert (record["kind"], record["settings"]["mode"]) == ("object", settings.mode)
    assert set(record["moved"]) == {"cat"}


def test_more_of_the_network_can_be_trained() -> None:
    settings = replace(BALANCED, trainable="cross-attention")
    erasure = domain_correction(TinyNetworkModel(), ["cat"], settings)
    expected = network_weights(TinyNetworkModel().network, "cross-attention")
    assert set(erasure.deltas) == {NETWORK + name for name in expected}


@pytest.mark.parametrize("parameterisation", ["eps", "v", "flow"])
def test_paper_deceives_the_discriminator(parameterisation: str) -> None:
    """Alone long enough to tell the two apart, then the generator's loss falls."""
    settings = replace(PAPER, iterations=70, alone=40, learning_rate=3e-3, projection="off")
    settings = replace(settings, discriminator_rate=1e-3, anchor="thing")
    erasure = domain_correction(TinyNetworkModel(parameterisation), ["cat"], settings)
    loss = erasure.record["loss"]
    assert sum(loss[-8:]) < 0.95 * sum(loss[:8])
    assert erasure.record["moved"]["cat"] > 0.05


def test_the_papers_two_optimisers(tmp_path: Path) -> None:
    resume = Resume(tmp_path / "run", every=0)
    settings = replace(PAPER, alone=1)
    with pytest.raises(Cancelled):
        domain_correction(TinyNetworkModel(), ["cat"], settings, cancel_at(4), resume)
    state = resume.load()
    network, judge = (state[name]["param_groups"][0] for name in ("optimiser", "judging"))
    assert (network["lr"], network["betas"], network["eps"]) == (4.8e-5, (0.9, 0.999), 1e-8)
    assert (judge["lr"], judge["betas"]) == (1e-4, (0.5, 0.999))
    steps = [state[name]["state"][0]["step"].item() for name in ("optimiser", "judging")]
    assert steps == [2, 3], "the discriminator learns in every step"


def test_the_papers_step_decays_the_weights_as_adamw_does() -> None:
    rate = 1e-2
    settings = replace(PAPER, iterations=1, alone=0, learning_rate=rate)
    erasure = domain_correction(TinyNetworkModel(), ["cat"], settings)
    key = f"{NETWORK}transformer_blocks.0.attn2.to_v.weight"
    weight = TinyNetworkModel().original(key)
    # Adam's first step is the rate itself in every element; the rest is the decay.
    step = (erasure.delta(key) + rate * 1e-2 * weight).abs() / rate
    assert (step - 1).abs().median() < 5e-4
    assert (erasure.delta(key).abs() / rate - 1).abs().median() > 1e-3


@pytest.mark.parametrize("projection", ["off", "orthogonal"])
def test_the_papers_gradient_is_clipped_to_one(
    projection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steep = "unlearn.methods.domain_correction.generator_loss"
    monkeypatch.setattr(steep, lambda fake: 1e4 * generator_loss(fake))
    norms = []

    def on_step(step: int, total: int, loss: float, edit: Edit) -> None:
        gradients = torch.cat([p.grad.flatten() for p in edit.parameters()])
        norms.append(gradients.norm().item())

    settings = replace(PAPER, iterations=4, alone=0, projection=projection)
    domain_correction(TinyNetworkModel(), ["cat"], settings, on_step)
    assert all(0 < norm <= 1 + 1e-5 for norm in norms)
    if projection == "off":
        assert norms == pytest.approx([1.0] * 4, rel=1e-4)


def test_the_concept_preserving_gradient_keeps_the_anchors_pictures() -> None:
    def denoising_loss(projection: str) -> float:
        model = TinyNetworkModel()
        settings = replace(PAPER, iterations=30, alone=0, learning_rate=3e-3, seed=2)
        settings = replace(settings, projection=projection)
        edited = model.erased(domain_correction(model, ["cat"], settings))
        kept = anchors(model, ["cat"], seed=2)
        prompts = model.encode([kept.pair(i, 0)[0] for i in range(6)])
        t = torch.linspace(100, 900, 6)
        noise = model.noise(6, torch.Generator().manual_seed(1))
        x_t = model.add_noise(kept.x0, noise, t)
        return (edited.predict(x_t, t, prompts) - noise).square().mean().item()

    assert denoising_loss("orthogonal") < denoising_loss("off")


@pytest.mark.parametrize("parameterisation", ["eps", "v", "flow"])
def test_balanced_draws_the_concept_to_the_anchor(parameterisation: str) -> None:
    model = TinyNetworkModel(parameterisation)
    settings = replace(BALANCED, iterations=80, retention=1.0, rate=0.06, anchor="thing")
    assert left(model, domain_correction(model, ["cat"], settings)) < 0.5


def test_balanced_stops_by_itself_when_little_is_left() -> None:
    settings = replace(BALANCED, iterations=400, alone=5, retention=1.0, rate=0.06, near=0.2)
    settings = replace(settings, anchor="thing")
    erasure = domain_correction(TinyNetworkModel(), ["cat"], settings)
    assert STOP_WINDOW < erasure.record["steps"] < 395
    assert left(TinyNetworkModel(), erasure) < 0.5


def test_what_is_drawn_before_the_first_step_is_told() -> None:
    class Heard(Progress):
        def __init__(self) -> None:
            self.drawn: list[tuple[str, int, int]] = []

        def step(self, step: int, total: int, loss: float, edit: Edit) -> None:
            raise Cancelled

        def stage(self, what: str, done: int, total: int, leader: str = "") -> None:
            self.drawn.append((what, done, total))

    heard = Heard()
    with pytest.raises(Cancelled):
        domain_correction(TinyNetworkModel(), ["cat"], replace(BALANCED, pictures=6), heard)
    anchors = [(done, total) for what, done, total in heard.drawn if "anchor" in what]
    held = [(done, total) for what, done, total in heard.drawn if "hold" in what]
    assert anchors == [(i, 6) for i in range(0, 6, BALANCED.batch)]
    assert held == [
        (i, RetentionSet.COUNT) for i in range(0, RetentionSet.COUNT, RetentionSet.AT_ONCE)
    ]


def test_balanced_holds_other_prompts_on_their_own_pictures() -> None:
    model = TinyNetworkModel()
    domain_correction(model, ["cat"], replace(BALANCED, protect=("tiger",)))
    others = [
        prompt
        for some in model.drawn[-RetentionSet.COUNT // RetentionSet.AT_ONCE :]
        for prompt in some
    ]
    assert len(others) == RetentionSet.COUNT
    assert any("tiger" in prompt for prompt in others)
    assert not any("cat" in prompt.split() for prompt in others)


def test_retention_keeps_other_prompts_nearer() -> None:
    def drift(retention: float) -> float:
        model = TinyNetworkModel()
        settings = replace(BALANCED, iterations=40, retention=retention, projection="off")
        erasure = domain_correction(model, ["cat"], settings)
        others = model.encode(["a photo of a dog", "a tree", "king", ""])
        x, t = model.noise(4, torch.Generator().manual_seed(3)), torch.full((4,), 300.0)
        was = model.predict(x, t, others)
        return (model.erased(erasure).predict(x, t, others) - was).square().mean().item()

    assert drift(4.0) < 0.5 * drift(0.0)


@pytest.mark.parametrize("settings", MODES)
def test_concepts_take_turns(settings: DomainCorrectionSettings) -> None:
    model, asked = TinyNetworkModel(), []

    def on_step(*_) -> None:
        words = {word for prompts in model.encoded for p in prompts for word in p.split()}
        asked.append({"cat", "dog"} & {word.strip(",") for word in words})
        model.encoded.clear()

    # The solution to begin with is for all of them at once.
    settings = replace(settings, iterations=4, alone=0, start_solved=False)
    record = domain_correction(model, ["cat", "dog"], settings, on_step).record
    assert asked[:2] == [{"cat"}, {"dog"}]
    assert set(record["moved"]) == {"cat", "dog"}


@pytest.mark.parametrize("settings", MODES)
@pytest.mark.costly
def test_same_seed_same_erasure(settings: DomainCorrectionSettings) -> None:
    settings = replace(settings, iterations=6, alone=2)
    first, again = (domain_correction(TinyNetworkModel(), ["cat"], settings) for _ in range(2))
    assert same(first, again)
    other = domain_correction(TinyNetworkModel(), ["cat"], replace(settings, seed=1))
    assert not same(first, other)


def test_a_run_leaves_torchs_own_random_numbers_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    domain_correction(TinyNetworkModel(), ["cat"], replace(PAPER, iterations=3))
    assert torch.equal(torch.rand(4), wanted)


@pytest.mark.parametrize(
    ("settings", "concepts", "at_step"),
    [
        pytest.param(PAPER, ["cat"], 1, id="paper at once"),
        pytest.param(PAPER, ["cat"], 4, id="paper, discriminator alone"),
        pytest.param(PAPER, ["cat"], 7, id="paper, alone done"),
        pytest.param(PAPER, ["cat"], 10, id="paper, both"),
        pytest.param(replace(PAPER, rank=2), ["cat"], 10, id="paper, low rank"),
        pytest.param(BALANCED, ["cat"], 2, id="balanced, alone done", marks=pytest.mark.slow),
        pytest.param(BALANCED, ["cat"], 8, id="balanced", marks=pytest.mark.slow),
        pytest.param(replace(BALANCED, rank=2), ["cat", "dog"], 9, id="balanced, two concepts"),
    ],
)
def test_a_run_that_was_cut_short_goes_on_to_the_very_same_result(
    tmp_path: Path, settings: DomainCorrectionSettings, concepts: list[str], at_step: int
) -> None:
    whole = domain_correction(TinyNetworkModel(), concepts, settings)
    file, model, heard = tmp_path / "run", TinyNetworkModel(), []
    with pytest.raises(Cancelled):
        domain_correction(
            TinyNetworkModel(), concepts, settings, cancel_at(at_step), Resume(file, every=0)
        )
    assert file.exists() is (at_step > 1)
    again = domain_correction(
        model, concepts, settings, lambda step, *_: heard.append(step), Resume(file, every=0)
    )
    assert heard == list(range(at_step, settings.iterations + 1)), "what was done is not redone"
    assert not model.drawn, "the anchor pictures are read"
    assert same(whole, again)
    assert again.record == whole.record
    assert file.exists(), "until the erasure is kept, so is the state"


@pytest.mark.costly
def test_a_run_that_stops_by_itself_stops_at_the_same_step_after_a_cut(tmp_path: Path) -> None:
    settings = replace(BALANCED, iterations=400, alone=2, retention=1.0, rate=0.06, near=0.2)
    whole = domain_correction(TinyNetworkModel(), ["cat"], settings)
    cut = Resume(tmp_path / "run")
    cancel = kept_and_cancelled(cut, 2 + whole.record["steps"] - 3)
    with pytest.raises(Cancelled):
        domain_correction(TinyNetworkModel(), ["cat"], settings, cancel, cut)
    assert (tmp_path / "run").exists()
    resume = Resume(tmp_path / "run")
    again = domain_correction(TinyNetworkModel(), ["cat"], settings, None, resume)
    assert again.record["steps"] == whole.record["steps"] < 398
    assert same(whole, again)


def test_a_run_cut_short_after_its_last_step_is_not_lost(tmp_path: Path) -> None:
    resume = Resume(tmp_path / "run", every=0)
    with pytest.raises(MemoryError):
        domain_correction(OutOfMemoryAtTheEnd(), ["cat"], PAPER, None, resume)
    again = domain_correction(TinyNetworkModel(), ["cat"], PAPER, None, resume)
    assert set(again.deltas) == KEYS_AND_VALUES


@pytest.mark.parametrize("settings", MODES)
def test_cancel_leaves_the_model_as_it_was(settings: DomainCorrectionSettings) -> None:
    model = TinyNetworkModel()
    before = {name: p.clone() for name, p in model.network.named_parameters()}
    with pytest.raises(Cancelled):
        domain_correction(model, ["cat"], replace(settings, alone=1), cancel_at(3))
    assert model.current is None
    assert all(torch.equal(p, before[name]) for name, p in model.network.named_parameters())
    assert not any(p.requires_grad for p in model.network.parameters())


def test_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_good() -> None:
    def on_step(step: int, total: int, loss: float, edit: Edit) -> None:
        if step == 5:
            next(edit.parameters()).data.fill_(torch.nan)

    with pytest.raises(Diverged, match=r"The loss became nan after step \d") as error:
        domain_correction(TinyNetworkModel(), ["cat"], replace(PAPER, alone=0), on_step)
    kept = error.value.erasure
    assert 0 < kept.record["steps"] == len(error.value.history) < 5
    assert set(kept.deltas) == KEYS_AND_VALUES
    assert all(kept.delta(key).isfinite().all() for key in kept.deltas)


@pytest.mark.parametrize("mode", ["paper", "balanced"])
@pytest.mark.parametrize(
    ("concepts", "anchor", "sentence"),
    [
        ([], "", "No concept is named: type the word or name to unlearn"),
        (["cat", " "], "", "No concept is named: type the word or name to unlearn"),
        (["Cat"], " cAT", "The anchor ' cAT' is the concept itself, so nothing would change"),
        (["cat", "Dog"], "dog", "The anchor 'dog' is the concept itself"),
        (["Picture"], " ", "'picture' is the default anchor, which takes"),
    ],
)
def test_bad_input_gets_a_sentence_before_any_work(
    mode: str, concepts: list[str], anchor: str, sentence: str, tmp_path: Path
) -> None:
    model = TinyNetworkModel()
    settings = replace(BALANCED, mode=mode, anchor=anchor)
    with pytest.raises(ValueError, match=sentence):
        domain_correction(model, concepts, settings, None, Resume(tmp_path / "run", every=0))
    assert not model.encoded
    assert not list(tmp_path.iterdir())


def test_balanced_stops_on_a_whole_window_of_steps_and_not_on_one() -> None:
    """However near the anchor it is: the loss of single steps is noisy."""
    few = DomainCorrectionSettings(near=1e6, iterations=60, alone=3, pictures=2, batch=2)
    record = domain_correction(TinyNetworkModel(), ["cat"], few).record
    assert record["steps"] == STOP_WINDOW
