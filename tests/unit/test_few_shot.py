"""Few-shot encoder unlearning: its losses and loops, against values computed by hand."""

from __future__ import annotations

import math
import random
from collections import Counter, deque

import pytest
import torch
from tiny import Cancelled, LinearModel, TinyModel, TinyNetworkModel

from unlearn.core.conditioning import Conditioning
from unlearn.core.denoising import ascent_loss, denoising_loss
from unlearn.core.edit import Diverged
from unlearn.core.progress import Progress
from unlearn.methods.few_shot import (
    FewShotSettings,
    bounded_loss,
    check_settings,
    few_shot,
)
from unlearn.methods.parts.concepts import STOP_WINDOW, concept_latents
from unlearn.methods.parts.few_shot_end import far_enough
from unlearn.methods.parts.few_shot_pictures import paper_latents
from unlearn.prompts.sampler import PromptSampler
from unlearn.prompts.templates import OBJECT_TEMPLATES, STYLE_TEMPLATES, paper_templates

PAPER = FewShotSettings(mode="paper")
IMAGES = torch.linspace(0, 1, 4).view(4, 1, 1, 1).expand(4, 2, 2, 3).contiguous()


# The losses


def test_denoising_loss_is_the_mean_square_error_of_each_item() -> None:
    x_t = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    target = torch.tensor([0.5, -1.0]).view(2, 1, 1, 1)
    conditioning = Conditioning(torch.tensor([0.25, 1.0]).view(2, 1, 1))
    loss = denoising_loss(TinyModel(1), x_t, torch.zeros(2), target, conditioning)
    # Predictions 1.25 and 3; errors 0.75 and 4.
    assert loss.tolist() == [0.5625, 16.0]


def test_ascent_loss_is_minus_the_mean_denoising_loss() -> None:
    d = torch.tensor([1.0, 3.0], requires_grad=True)
    loss = ascent_loss(d)
    loss.backward()
    assert loss.item() == -2.0
    assert d.grad.tolist() == [-0.5, -0.5]  # descending on it raises d


def test_bounded_loss_by_hand() -> None:
    d_ref = torch.tensor([0.5])
    at_reference = bounded_loss(torch.tensor([0.5]), d_ref, beta=1.0)
    at_three = bounded_loss(torch.tensor([1.5]), d_ref, beta=1.0)
    sharper = bounded_loss(torch.tensor([1.5]), d_ref, beta=2.0)
    assert at_reference.item() == pytest.approx(2 * math.log(2))
    assert at_three.item() == pytest.approx(2 * math.log(1 + math.exp(-2)))
    assert sharper.item() == pytest.approx(math.log(1 + math.exp(-4)))


def test_bounded_loss_starts_in_the_direction_of_ascent() -> None:
    d = torch.tensor([0.2, 4.0], requires_grad=True)
    bounded_loss(d, d.detach(), beta=1.0).backward()
    # -(1 / N) / d_ref: ascent, each item in proportion to its own loss.
    assert d.grad.tolist() == pytest.approx([-2.5, -0.125])


def test_bounded_loss_fades_where_the_model_merely_breaks() -> None:
    d = torch.tensor([1.0, 3.0, 30.0], requires_grad=True)
    bounded_loss(d, torch.ones(3), beta=1.0).backward()
    slopes = (-3 * d.grad).tolist()
    assert slopes == pytest.approx([1.0, 2 / (1 + math.exp(2)), 0.0], abs=1e-6)


# Mode "paper"


def test_paper_settings_are_the_papers() -> None:
    assert (PAPER.learning_rate, PAPER.batch, PAPER.epochs) == (1e-5, 2, 4)
    assert (PAPER.trainable, PAPER.rank, PAPER.shots) == ("mlp-final-attn", 0, 4)


def test_first_paper_step_by_hand() -> None:
    w, rate = 0.5, 1e-3
    model = LinearModel(w)
    settings = FewShotSettings(mode="paper", epochs=1, batch=1, learning_rate=rate)
    erasure = few_shot(model, ["cat"], IMAGES[:1], settings)
    noise = model.asked[0][1].item()
    slope = -2 * (w - noise) + 1e-8 * w  # of the ascent loss, with Adam's L2 weight decay
    moved = -rate * slope / (abs(slope) + 1e-6)
    assert erasure.delta("fc.weight").item() == pytest.approx(moved, rel=1e-6)
    assert erasure.record["loss"] == [pytest.approx(-((w - noise) ** 2), abs=1e-6)]
    assert moved * (w - noise) > 0, "it moved away from the noise, where the loss is larger"


def test_second_paper_step_by_hand() -> None:
    w, rate, first, second = 0.5, 1e-2, 0.9, 0.98
    model = LinearModel(w)
    settings = FewShotSettings(mode="paper", epochs=2, batch=1, learning_rate=rate)
    delta = few_shot(model, ["cat"], IMAGES[:1], settings).delta("fc.weight").item()
    mean = square = moved = 0.0
    for step, (_, noise, _) in enumerate(model.asked, 1):
        slope = -2 * (w + moved - noise.item()) + 1e-8 * (w + moved)
        mean = first * mean + (1 - first) * slope
        square = second * square + (1 - second) * slope**2
        size = mean / (1 - first**step) / ((square / (1 - second**step)) ** 0.5 + 1e-6)
        moved -= rate * size
    assert len(model.asked) == 2
    assert delta == pytest.approx(moved, rel=1e-5)


@pytest.mark.parametrize("w", [100.0, -100.0])
def test_the_papers_weight_decay_and_eps_by_hand(w: float) -> None:
    """Where the loss has no slope, the decay's is all: 1e-8 w, which Adam divides by itself and
    eps."""

    class Flat(LinearModel):
        def predict(self, x_t, t, conditioning) -> torch.Tensor:
            return 0 * super().predict(x_t, t, conditioning)

    settings = FewShotSettings(mode="paper", epochs=1, batch=1, learning_rate=0.1)
    delta = few_shot(Flat(w), ["cat"], IMAGES[:1], settings).delta("fc.weight").item()
    assert delta == pytest.approx(-0.1 * 1e-8 * w / (1e-6 + 1e-6), rel=1e-4)


class PairsOfPixels(TinyModel):
    """An autoencoder in which a mirrored latent is not the mirrored picture, as in real ones: it
    multiplies the pixels of a row by 1, 2, 3 and so on."""

    def _mean_latents(self, images: torch.Tensor) -> torch.Tensor:
        return (images[..., :1] * torch.arange(1.0, images.shape[2] + 1)[:, None]).movedim(-1, 1)

    def decode_latents(self, x0: torch.Tensor) -> torch.Tensor:
        pixels = x0.movedim(1, -1) / torch.arange(1.0, x0.shape[-1] + 1)[:, None]
        return pixels.expand(-1, -1, -1, 3).clamp(0, 1)

    def sample(self, prompts, seed, steps=20, guidance=7.5) -> torch.Tensor:
        return torch.rand(len(prompts), 1, 2, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("given", [True, False], ids=["given", "drawn"])
def test_a_picture_is_flipped_before_it_is_encoded_and_not_its_latent(given: bool) -> None:
    model = PairsOfPixels()
    images = torch.rand(8, 2, 4, 3, generator=torch.Generator().manual_seed(1))
    (x0,) = paper_latents(model, ["cat"], images if given else None, "object", 8, 0)
    if not given:
        images = torch.cat([model.decode_latents(model.sample([""] * 4, i)) for i in (0, 4)])
    ways = []
    for latent, picture in zip(x0, images, strict=True):
        # By hand: the first number is the first pixel once, the last the last pixel four times.
        row = picture[0, :, 0].tolist()
        plain, flipped = ([a * i for i, a in enumerate(one, 1)] for one in (row, row[::-1]))
        found = latent[0, 0].tolist()
        ways.append(found == pytest.approx(flipped))
        assert ways[-1] or found == pytest.approx(plain)
    assert 1 <= sum(ways) <= 7


def test_without_an_autoencoder_what_the_model_draws_stays_as_it_was_drawn() -> None:
    model = PairsOfPixels()
    model.has_autoencoder = False
    (x0,) = paper_latents(model, ["cat"], None, "object", 4, 0)
    assert torch.equal(x0, model.sample([""] * 4, 0))


def test_latents_are_drawn_from_what_the_autoencoder_says_once_for_all_epochs() -> None:
    model = TinyModel()
    model.deviation = 1.0
    settings = FewShotSettings(mode="paper", epochs=3, batch=64)
    few_shot(model, ["cat"], torch.full((64, 2, 2, 3), 0.5), settings)
    drawn = [x0.flatten().sort().values - 0.5 for x0, _, _ in model.asked]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert drawn[0].mean().item() == pytest.approx(0, abs=0.4)
    assert drawn[0].std().item() == pytest.approx(1, abs=0.3)


def test_half_of_the_pictures_are_flipped_from_left_to_right_once_for_all_epochs() -> None:
    images = torch.rand(8, 4, 4, 3, generator=torch.Generator().manual_seed(1))
    model = TinyNetworkModel()
    few_shot(model, ["cat"], images, FewShotSettings(mode="paper", epochs=3, batch=8))
    given, mirrored = (model.encode_images(some) for some in (images, images.flip(2)))
    flipped = []
    for x0, _, _ in model.asked:
        found = []
        for one, other in zip(given, mirrored):
            is_plain, is_flipped = (
                any(torch.allclose(taken, wanted) for taken in x0) for wanted in (one, other)
            )
            assert is_plain != is_flipped
            found.append(is_flipped)
        flipped.append(found)
    assert flipped[0] == flipped[1] == flipped[2]
    assert 1 <= sum(flipped[0]) <= 7


def test_paper_takes_every_picture_once_an_epoch_in_batches_of_two() -> None:
    model = TinyModel()
    erasure = few_shot(model, ["cat"], IMAGES, PAPER)
    assert erasure.record["steps"] == len(model.asked) == 8
    for epoch in range(4):
        taken = torch.cat([x0 for x0, _, _ in model.asked[2 * epoch : 2 * epoch + 2]]).flatten()
        assert sorted(taken.tolist()) == pytest.approx(sorted(IMAGES[:, 0, 0, 0].tolist()))


def test_noise_and_timestep_are_drawn_anew_for_each_item() -> None:
    model = TinyModel()
    few_shot(model, ["cat"], IMAGES, PAPER)
    noise = torch.cat([noise.flatten() for _, noise, _ in model.asked])
    t = torch.cat([t for _, _, t in model.asked])
    assert len(noise.unique()) == 16
    assert len(t.unique()) > 8
    assert 0 <= t.min() < 250
    assert 750 < t.max() <= 999
    assert (t == t.round()).all()


@pytest.mark.parametrize(
    ("kind", "templates"),
    [("object", OBJECT_TEMPLATES), ("style", STYLE_TEMPLATES), ("character", OBJECT_TEMPLATES)],
)
def test_prompts_come_from_the_kinds_templates(kind: str, templates: tuple[str, ...]) -> None:
    model = TinyModel()
    few_shot(model, ["cat"], IMAGES, FewShotSettings(mode="paper", kind=kind))
    prompts = {prompt for prompts in model.encoded for prompt in prompts}
    assert len(prompts) > 3
    assert prompts <= {template.format("cat") for template in templates}


def test_the_papers_template_sets_are_complete() -> None:
    assert len(set(OBJECT_TEMPLATES)) == 27
    assert len(set(STYLE_TEMPLATES)) == 19
    own = {"a close-up picture in the style of {}", "a cropped rendition in the style of {}"}
    counts = Counter(paper_templates("style"))
    assert counts.keys() == set(STYLE_TEMPLATES) - own
    twice = {template for template, count in counts.items() if count == 2}
    assert twice == {f"a {view} painting in the style of {{}}" for view in ("cropped", "close-up")}
    assert counts.total() == 19


def test_each_concept_keeps_its_own_pictures() -> None:
    model = TinyModel()
    few_shot(model, ["cat", "dog"], IMAGES, FewShotSettings(mode="paper", epochs=3))
    first = set(IMAGES[:2, 0, 0, 0].tolist())
    for (x0, _, _), prompts in zip(model.asked, model.encoded, strict=True):
        for value, prompt in zip(x0.flatten().tolist(), prompts, strict=True):
            assert ("cat" in prompt) == (value in first)


# Mode "balanced"


def concept_loss(model: TinyModel, concept: str) -> float:
    """The concept's denoising loss over many draws, always the same ones."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(64, 1, 1, 1, generator=generator)
    t = torch.rand(64, generator=generator) * 1000
    x_t = model.add_noise(torch.full((64, 1, 1, 1), 0.5), noise, t)
    conditioning = model.encode([f"a photo of a {concept}"] * 64)
    return denoising_loss(model, x_t, t, noise, conditioning).mean().item()


def test_balanced_stops_by_itself_once_the_loss_has_grown_enough() -> None:
    model = TinyModel()
    settings = FewShotSettings(max_steps=600, target=2.0, near=1e9, pull=1.0)
    erasure = few_shot(model, ["cat"], IMAGES, settings)
    assert 10 <= erasure.record["steps"] < 600
    assert concept_loss(model.erased(erasure), "cat") > 1.4 * concept_loss(model, "cat")


@pytest.mark.parametrize(
    ("ratio", "distance", "expected"),
    [(1.5, 0.05, True), (1.2, 0.05, False), (1.5, 0.5, False)],
)
def test_gone_means_a_grown_loss_and_neutral_prompts(
    ratio: float, distance: float, expected: bool
) -> None:
    recent = deque([(ratio, distance)] * STOP_WINDOW, maxlen=STOP_WINDOW)
    assert far_enough(recent, 1.4, 0.12) is expected
    recent.popleft()
    assert not far_enough(recent, 1.4, 0.12)


def test_balanced_ends_at_max_steps() -> None:
    settings = FewShotSettings(max_steps=7, target=1e9)
    assert few_shot(TinyModel(), ["cat"], IMAGES, settings).record["steps"] == 7


def test_retention_keeps_other_prompts_closer() -> None:
    def moved(retention: float) -> float:
        model = TinyModel()
        settings = FewShotSettings(max_steps=60, target=1e9, pull=0.0, retention=retention)
        erasure = few_shot(model, ["cat"], IMAGES, settings)
        others = ["a photo of a dog", "a castle", ""]
        after = model.erased(erasure).encode(others)
        return after.distance(model.encode(others)).mean().item()

    assert moved(4.0) < 0.5 * moved(0.0)


def test_other_prompts_hold_the_empty_one_and_the_protected_words() -> None:
    words = PromptSampler(["cat"], "object", random.Random(0), protect=["walrus"])
    for _ in range(10):
        others = words.others()
        assert "" in others
        assert any("walrus" in prompt for prompt in others)
        assert not any("cat" in prompt.split() for prompt in others)


def test_beside_a_style_a_protected_word_is_held_as_a_style_and_as_a_thing() -> None:
    def said(kind: str) -> list[str]:
        words = PromptSampler(["Van Gogh"], kind, random.Random(0), protect=["Claude Monet"])
        return [p for _ in range(40) for p in words.others() if "Monet" in p]

    styles = [f for f in STYLE_TEMPLATES if "{}" in f]
    as_styles = {template.format("Claude Monet") for template in styles}
    assert as_styles & set(said("style"))
    assert set(said("style")) - as_styles - {"Claude Monet"}
    assert not as_styles & set(said("object"))


def test_a_protected_word_may_hold_braces() -> None:
    words = PromptSampler(["cat"], "object", random.Random(0), protect=["a {red|blue} hat"] * 50)
    said = [sentence.format("cat") for _ in range(20) for sentence in words.sentences()]
    assert any("a {red|blue} hat" in one for one in said)


@pytest.mark.parametrize("shots", [1, 4, 11])
def test_pictures_are_drawn_a_few_at_a_time_each_with_its_own_seed(
    shots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = TinyModel(), []

    def sample(prompts: list[str], seed: int) -> torch.Tensor:
        asked.append(len(prompts))
        return torch.tensor([[float(seed + i)] for i in range(len(prompts))])

    monkeypatch.setattr(model, "sample", sample)
    (x0,) = concept_latents(model, ["cat"], None, "object", shots, 7)
    assert x0.flatten().tolist() == [7.0 + i for i in range(shots)]
    assert max(asked) <= 4


def test_what_is_drawn_before_the_first_step_is_told() -> None:
    class Heard(Progress):
        def __init__(self) -> None:
            self.drawn: list[tuple[str, int, int]] = []

        def step(self, *_: object) -> None:
            raise Cancelled

        def stage(self, *told: object) -> None:
            self.drawn.append(told)

    heard = Heard()
    with pytest.raises(Cancelled):
        few_shot(TinyModel(), ["cat", "owl"], None, FewShotSettings(shots=5), heard)
    whats = [f"drawing pictures of {concept}" for concept in ("cat", "owl")]
    assert heard.drawn == [(what, done, 5) for what in whats for done in (0, 4)]


def test_a_name_of_several_tokens_is_drawn_to_as_many_neutral_words() -> None:
    def neutral(concept: str, kind: str, anchor: str = "") -> str:
        return PromptSampler([concept], kind, random.Random(0), anchor).neutral(
            concept, TinyModel()
        )

    assert neutral("cat", "object") == "picture"
    assert neutral("mickey mouse", "character") == "person person"
    assert neutral("mickey mouse", "character", "a small animal") == "a small animal"
    assert neutral("oil painting", "style") == "plain"


def test_the_concepts_own_words_are_not_held() -> None:
    words = PromptSampler(["Cat", "comic book"], "object", random.Random(0), protect=["black cat"])
    assert not {"cat", "comic book", "book", "black cat"} & {*words.common, *words.contexts}
    assert "dog" in words.common


def test_each_step_encodes_the_concept_others_and_the_neutral_word() -> None:
    model = TinyModel()
    few_shot(model, ["cat"], IMAGES, FewShotSettings(max_steps=3, anchor="blank"))
    frozen, edited = model.encoded[-2:]
    assert sum("cat" in prompt.replace(",", "").split() for prompt in frozen) == 4
    assert sum("cat" in prompt.replace(",", "").split() for prompt in edited) == 4
    assert sum("blank" in prompt.replace(",", "").split() for prompt in frozen) == 2
    assert "" in frozen
    assert "" in edited


def test_concepts_take_turns() -> None:
    model = TinyModel()
    erasure = few_shot(model, ["cat", "dog"], IMAGES, FewShotSettings(max_steps=20, target=1e9))
    assert erasure.record["steps"] == 40
    for concept in ("cat", "dog"):
        assert concept_loss(model.erased(erasure), concept) > concept_loss(model, concept)


# What holds in both modes


@pytest.mark.parametrize("mode", ["paper", "balanced"])
def test_same_seed_same_erasure(mode: str) -> None:
    def run(seed: int) -> list[torch.Tensor]:
        settings = FewShotSettings(mode=mode, max_steps=12, seed=seed)
        erasure = few_shot(TinyModel(), ["cat"], None, settings)
        return [erasure.delta(key) for key in sorted(erasure.deltas)]

    first, again, other = run(3), run(3), run(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("mode", ["paper", "balanced"])
def test_low_rank_deltas_have_that_rank(mode: str) -> None:
    settings = FewShotSettings(mode=mode, rank=2, max_steps=6)
    erasure = few_shot(TinyModel(), ["cat"], IMAGES, settings)
    delta = erasure.deltas["layers.0.mlp.fc1.weight"]
    assert (delta["lora_up"].shape, delta["lora_down"].shape) == ((16, 2), (2, 8))
    assert torch.linalg.matrix_rank(erasure.delta("layers.0.mlp.fc1.weight")) == 2


@pytest.mark.parametrize("mode", ["paper", "balanced"])
def test_on_step_hears_of_every_step_and_may_cancel(mode: str) -> None:
    model, heard = TinyModel(), []
    before = {name: p.clone() for name, p in model.encoder.named_parameters()}

    def cancel_at_three(step: int, total: int, loss: float, edit) -> None:
        heard.append((step, total))
        if step == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        few_shot(model, ["cat"], IMAGES, FewShotSettings(mode=mode, max_steps=8), cancel_at_three)
    assert heard == [(1, 8), (2, 8), (3, 8)]
    assert model.current is None
    assert all(torch.equal(p, before[name]) for name, p in model.encoder.named_parameters())


def test_pictures_are_drawn_where_none_are_given() -> None:
    model = TinyModel()
    erasure = few_shot(model, ["cat", "dog"], None, FewShotSettings(mode="paper", shots=3))
    assert erasure.record["images"] == {"count": 6, "drawn_by_model": True, "hash": None}
    assert [len(prompts) for prompts in model.encoded[:2]] == [3, 3]
    assert all("cat" in prompt for prompt in model.encoded[0])
    assert all("dog" in prompt for prompt in model.encoded[1])


def test_record_says_how_it_was_made() -> None:
    record = few_shot(TinyModel(), ["cat"], IMAGES, PAPER).record
    assert record["method"] == "few_shot"
    assert record["concepts"] == ["cat"]
    assert record["settings"]["mode"] == "paper"
    assert record["settings"]["learning_rate"] == 1e-5
    assert len(record["loss"]) == record["steps"] == 8
    assert len(record["images"]["hash"]) == 16
    assert set(record["base"]) == set(few_shot(TinyModel(), ["cat"], IMAGES, PAPER).deltas)


@pytest.mark.parametrize(
    ("concepts", "images", "sentence"),
    [
        ([], None, "No concept is named"),
        ("fox", None, r"this is one text; give \['fox'\] for one concept"),
        (["cat", "  "], None, "No concept is named"),
        (["cat", "dog"], IMAGES[:3], "3 images cannot be shared .* 2 concepts"),
        (["cat"], torch.full((2, 4, 4, 3), torch.nan), "Image 1 holds NaN or infinite values"),
        (["cat"], torch.zeros(0, 4, 4, 3), "Images must be a batch of shape"),
        (["cat"], torch.zeros(4, 4, 3), r"this one has shape \(4, 4, 3\)"),
        (["cat"], torch.zeros(1, 3, 8, 8), "Images must be a batch of shape"),
        (["cat"], torch.full((1, 4, 4, 3), 255.0), "must lie between 0 and 1, .* by 255"),
    ],
    ids=[
        "no concept",
        "no list",
        "blank concept",
        "wrong count",
        "nan",
        "no image",
        "no batch",
        "channels",
        "8 bit",
    ],
)
def test_bad_input_gets_a_sentence_before_any_work(
    concepts: list[str], images: torch.Tensor | None, sentence: str
) -> None:
    model = TinyModel()
    with pytest.raises(ValueError, match=sentence):
        few_shot(model, concepts, images)
    assert not model.encoded


def test_anchor_that_is_the_concept_gets_a_sentence_before_any_work() -> None:
    model = TinyModel()
    with pytest.raises(ValueError, match="The anchor 'Cat' is the concept itself"):
        few_shot(model, ["cat"], IMAGES, FewShotSettings(anchor="Cat"))
    assert not model.encoded


@pytest.mark.parametrize(
    ("concept", "kind"), [("Picture", "object"), ("plain", "style"), ("person ", "character")]
)
def test_the_neutral_word_itself_needs_another_anchor(concept: str, kind: str) -> None:
    model = TinyModel()
    with pytest.raises(ValueError, match="the default anchor, which takes the concept's place, so"):
        few_shot(model, ["cat", concept], IMAGES, FewShotSettings(kind=kind))
    assert not model.encoded
    for settings in (FewShotSettings(kind=kind, anchor="owl"), FewShotSettings("paper", kind)):
        check_settings(["cat", concept], IMAGES, settings)


def test_the_image_at_fault_is_named() -> None:
    images = IMAGES.clone()
    images[2, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="Image 3 holds"):
        few_shot(TinyModel(), ["cat"], images)


def test_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_good() -> None:
    settings = FewShotSettings(mode="paper", learning_rate=1e30)
    heard: list[int] = []
    with pytest.raises(Diverged, match=r"The loss became -?(inf|nan) after step \d") as error:
        few_shot(TinyModel(), ["cat"], IMAGES, settings, lambda step, *_: heard.append(step))
    assert len(heard) < 8
    kept = error.value.erasure
    assert kept.concepts == ["cat"]
    assert kept.record["steps"] == len(error.value.history) <= len(heard)
    assert all(kept.delta(key).isfinite().all() for key in kept.deltas)
