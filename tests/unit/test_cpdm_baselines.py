"""CPDM's baselines, gradient ascent and weight pruning: by hand, and on a tiny network."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny import Cancelled, LinearModel, TinyNetworkModel, cancel_at, same

import testbed.model.pack
from unlearn.core.conditioning import Conditioning
from unlearn.core.denoising import NoiseSampler, denoising_loss
from unlearn.core.edit import Diverged
from unlearn.core.erasure import NETWORK
from unlearn.core.trainable import network_weights
from unlearn.diffusers_backend.load import load_pipeline
from unlearn.diffusers_backend.model import DiffusersModel
from unlearn.methods.baselines.gradient_ascent import GradientAscentSettings, gradient_ascent
from unlearn.methods.baselines.weight_pruning import (
    WeightPruningSettings,
    largest,
    record_activations,
    top_channels,
    weight_pruning,
)
from unlearn.methods.parts.retention import EncodeCache
from unlearn.prompts.templates import named

IMAGES = torch.rand(4, 8, 8, 3, generator=torch.Generator().manual_seed(0))
METHODS = {"gradient_ascent": gradient_ascent, "weight_pruning": weight_pruning}
QUICK = {
    "gradient_ascent": GradientAscentSettings(iterations=3),
    "weight_pruning": WeightPruningSettings(draws=2, channels=0.5, weights=0.25),
}
each_method = pytest.mark.parametrize("method", METHODS)


def run(model: TinyNetworkModel, method: str, *more, **given):
    return METHODS[method](model, ["fox"], IMAGES, QUICK[method], *more, **given)


# Gradient ascent


class Predicting(LinearModel):
    """The network itself is the one weight w: the denoising loss is (w - noise)^2."""

    def encode(self, prompts) -> Conditioning:
        return Conditioning(torch.zeros(len(prompts), 1, 1))

    def predict(self, x_t, t, conditioning) -> torch.Tensor:
        return self._weight("fc.weight").expand(len(x_t), 1).view(-1, 1, 1, 1)


@pytest.mark.parametrize("w", [-3.0, 3.0])
def test_the_first_step_by_hand(w: float) -> None:
    """AdamW's: 1 % of the rate off the weight, then a rate's length up the loss."""
    settings = GradientAscentSettings(iterations=1, learning_rate=0.1)
    model = Predicting(w)
    erasure = gradient_ascent(model, ["fox"], IMAGES, settings)
    (noise,) = (noise for _, noise, _ in model.asked)
    slope = 2 * (w - noise).mean().item()
    assert slope * w > 0, "the noise lies between -3 and 3"
    up = 0.1 if slope > 0 else -0.1
    assert erasure.delta("fc.weight").item() == pytest.approx(up - 0.1 * 0.01 * w, rel=1e-4)
    assert erasure.record["loss"][0] == pytest.approx(-((w - noise) ** 2).mean().item(), rel=1e-4)


def test_the_loss_grows_and_every_layer_is_trained() -> None:
    model = TinyNetworkModel()
    settings = GradientAscentSettings(iterations=20, learning_rate=1e-3, batch=4)
    erasure = gradient_ascent(model, ["fox"], IMAGES, settings)
    losses = [-value for value in erasure.record["loss"]]
    assert sum(losses[-5:]) > 1.5 * sum(losses[:5])
    every = {NETWORK + name for name in network_weights(model.network, "all")}
    assert set(erasure.deltas) == every
    assert all(erasure.delta(key).any() for key in every)


def test_concepts_take_turns_each_with_its_own_pictures() -> None:
    model = Predicting(3.0)
    model.prompts = []
    model.encode = lambda prompts: (
        model.prompts.append(prompts[0]) or Conditioning(torch.zeros(len(prompts), 1, 1))
    )
    images = torch.cat([torch.zeros(2, 8, 8, 3), torch.ones(2, 8, 8, 3)])
    gradient_ascent(model, ["fox", "owl"], images, GradientAscentSettings(iterations=4))
    assert [set(x0.flatten().tolist()) for x0, _, _ in model.asked] == [{0.0}, {1.0}] * 2
    named = {word for prompt in model.prompts for word in prompt.split()} & {"fox", "owl"}
    assert named == {"fox", "owl"}


def test_an_unbounded_loss_stops_the_run() -> None:
    settings = GradientAscentSettings(iterations=200, learning_rate=1e30)
    with pytest.raises(Diverged) as error:
        gradient_ascent(TinyNetworkModel(), ["fox"], IMAGES, settings)
    assert error.value.erasure.record["method"] == "gradient_ascent"


# Weight pruning


def test_the_loudest_channels_of_a_stage() -> None:
    """A quarter of eight answers: the two largest, whosever they are."""
    stage = {
        "a": torch.tensor([[1.0, 9.0], [0.0, 2.0]]),
        "b": torch.tensor([[3.0, 0.0], [8.0, 1.0]]),
        "c": torch.tensor([[0.0, 0.0], [0.0, 0.0]]),
    }
    found = top_channels(stage, 0.25)
    assert {key: channels.tolist() for key, channels in found.items()} == {"a": [1], "b": [0]}
    assert {key: c.tolist() for key, c in top_channels(stage, 1e-6).items()} == {"a": [1]}


def test_the_largest_of_each_row() -> None:
    rows = torch.tensor([[1.0, 4.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    assert largest(rows, 0.5).sum(1).tolist() == [2, 2]
    assert largest(rows, 0.5)[0].tolist() == [False, True, False, True]
    assert largest(rows, 0.01).sum(1).tolist() == [1, 1]


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_answers_are_pooled_sizes_by_stage(pooling: str) -> None:
    layers = torch.nn.ModuleDict(
        {
            "one": torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Conv2d(2, 1, 2, 2)),
            "two": torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)),
        }
    )
    keys = [f"{NETWORK}one.0.weight", f"{NETWORK}one.1.weight", f"{NETWORK}two.0.weight"]
    x = torch.tensor([[[[1.0, -5.0], [2.0, 0.0]]]])
    with torch.no_grad(), record_activations(layers, keys, pooling) as stages:
        first = layers["one"][0](x)
        second = layers["two"](layers["one"][1](first))
    assert set(stages) == {("one", (2, 2)), ("one", (1, 1)), ("two", (1, 1))}
    flat = first.abs().flatten(2)
    wanted = flat.mean(2) if pooling == "avg" else flat.amax(2)
    assert torch.equal(stages["one", (2, 2)][keys[0]], wanted)
    assert torch.equal(stages["two", (1, 1)][keys[2]], second.abs().flatten(1))
    assert not any(module._forward_hooks for module in layers.modules())


def test_what_is_cut_is_what_the_gradient_names() -> None:
    """With one draw and all channels: of each filter the quarter with the largest gradients."""
    model = TinyNetworkModel()
    settings = WeightPruningSettings(draws=1, channels=1.0, weights=0.25)
    erasure = weight_pruning(model, ["fox"], IMAGES, settings)
    assert set(erasure.deltas) == {f"{NETWORK}conv_{end}.weight" for end in ("in", "out")}

    x_t, t, target, prompts = first_draw(model, settings)
    network = model.network.requires_grad_(True)
    denoising_loss(model, x_t, t, target, prompts).mean().backward()
    for end in ("in", "out"):
        weight = network.get_parameter(f"conv_{end}.weight")
        left = weight.detach() + erasure.delta(f"{NETWORK}conv_{end}.weight")
        cut = left == 0
        count = int(0.25 * weight[0].numel())
        for filter_cut, slope in zip(cut, weight.grad.abs()):
            assert filter_cut.sum() == count
            assert slope[filter_cut].min() >= slope[~filter_cut].max() - 1e-9
        assert torch.equal(left[~cut], weight.detach()[~cut]), "all others stay"


@pytest.mark.parametrize("concepts", [["fox"], ["fox", "owl"]])
def test_each_draw_prunes_the_network_that_is_pruned_already(concepts: list[str]) -> None:
    """Three draws by plain PyTorch, with all channels: a weight that was set to zero is zero in the
    next pass, and counts among the largest gradients there as any other."""
    settings = WeightPruningSettings(draws=3, channels=1.0, weights=0.25)
    erasure = weight_pruning(TinyNetworkModel(), concepts, IMAGES, settings)
    wanted, losses = pruned_by_hand(concepts, settings, stepwise=True)
    for key, left in wanted.items():
        change = erasure.delta(NETWORK + key)
        assert torch.equal(TinyNetworkModel().network.get_parameter(key) + change, left), key
    assert erasure.record["loss"] == pytest.approx(losses, abs=1e-5)
    # All in all that is not what gradients of the unpruned network name.
    other, _ = pruned_by_hand(concepts, settings, stepwise=False)
    assert not all(torch.equal(wanted[key], other[key]) for key in wanted)


def pruned_by_hand(
    concepts: list[str], settings: WeightPruningSettings, stepwise: bool
) -> tuple[dict[str, torch.Tensor], list[float]]:
    model = TinyNetworkModel()
    network = model.network.requires_grad_(True)
    rng, words = random.Random(settings.seed), random.Random(settings.seed)
    draw, losses = NoiseSampler(model, settings.seed), []
    pictures = model.encode_images(IMAGES).chunk(len(concepts))
    masks = {key: torch.zeros_like(network.get_parameter(key)) for key in PRUNED}
    for i in range(settings.draws):
        one = i % len(concepts)
        latents = pictures[one][[rng.randrange(len(pictures[one])) for _ in range(settings.batch)]]
        x_t, t, target = draw.add_noise(latents)
        prompts = model.encode(named(words, "object", concepts[one], settings.batch))
        network.zero_grad()
        loss = denoising_loss(model, x_t, t, target, prompts).mean()
        loss.backward()
        losses.append(loss.item())
        for key, mask in masks.items():
            slope = network.get_parameter(key).grad.abs().flatten(1)
            best = slope.topk(int(0.25 * slope.shape[1]), 1).indices
            mask.view_as(slope).scatter_(1, best, 1.0)
            if stepwise:
                network.get_parameter(key).data[mask.bool()] = 0
    left = {key: network.get_parameter(key).detach().clone() for key in PRUNED}
    return {key: torch.where(masks[key].bool(), 0.0, left[key]) for key in PRUNED}, losses


PRUNED = ("conv_in.weight", "conv_out.weight")


def first_draw(model: TinyNetworkModel, settings: WeightPruningSettings) -> tuple:
    """As the method draws it."""
    latents = model.encode_images(IMAGES)
    rng, draw = random.Random(settings.seed), NoiseSampler(model, settings.seed)
    chosen = [rng.randrange(len(latents)) for _ in range(settings.batch)]
    x_t, t, target = draw.add_noise(latents[chosen])
    return (
        x_t,
        t,
        target,
        EncodeCache(model)(*named(random.Random(settings.seed), settings.kind, "fox", len(chosen))),
    )


def test_only_loud_channels_are_cut() -> None:
    model = TinyNetworkModel()
    settings = WeightPruningSettings(draws=1, channels=0.2, weights=1.0, batch=1)
    erasure = weight_pruning(model, ["fox"], IMAGES, settings)
    x_t, t, _, prompts = first_draw(model, settings)
    heard = {}
    model.network.conv_in.register_forward_hook(lambda m, g, out: heard.update(out=out))
    with torch.no_grad():
        model.predict(x_t, t, prompts)
    loud = heard["out"][0].abs().mean((1, 2))
    key = f"{NETWORK}conv_in.weight"
    cut = (model.original(key) + erasure.delta(key) == 0).flatten(1)
    assert set(cut.all(1).nonzero().flatten().tolist()) == {int(loud.argmax())}
    assert not cut[~cut.all(1)].any()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"channels": 0.0}, "The share of channels is 0.0; choose one above 0 and at most 1"),
        ({"weights": 1.5}, "The share of weights is 1.5; choose one above 0 and at most 1"),
        ({"draws": 0}, "Nothing is looked up without a draw"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        weight_pruning(TinyNetworkModel(), ["fox"], IMAGES, WeightPruningSettings(**settings))


def test_a_network_without_convolutions_gets_a_sentence() -> None:
    model = TinyNetworkModel()
    del model.network.conv_in, model.network.conv_out
    with pytest.raises(ValueError, match="This model has no convolutions"):
        weight_pruning(model, ["fox"], IMAGES, QUICK["weight_pruning"])


# Both


@each_method
def test_the_same_seed_gives_the_same_erasure(method: str) -> None:
    one, two = (run(TinyNetworkModel(), method) for _ in range(2))
    assert same(one, two)
    assert one.deltas
    assert all(one.delta(key).any() for key in one.deltas)
    record = one.record
    assert (record["method"], record["concepts"], record["kind"]) == (method, ["fox"], "object")
    assert record["images"]["count"] == 4
    assert record["steps"] == len(record["loss"])


@each_method
def test_the_model_stays_what_it_was_and_can_be_cancelled(method: str) -> None:
    model = TinyNetworkModel()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    with pytest.raises(Cancelled):
        run(model, method, cancel_at(2))
    run(model, method)
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(module._forward_hooks for module in model.network.modules())


@each_method
def test_the_model_draws_where_no_pictures_are_given(method: str) -> None:
    model = TinyNetworkModel()
    erasure = METHODS[method](model, ["fox", "owl"], None, QUICK[method])
    assert [len(prompts) for prompts in model.drawn] == [4, 4]
    assert erasure.record["images"] == {"count": 8, "drawn_by_model": True, "hash": None}


@each_method
def test_no_concept_gets_a_sentence(method: str) -> None:
    with pytest.raises(ValueError, match="No concept is named"):
        METHODS[method](TinyNetworkModel(), [" "], IMAGES)
    with pytest.raises(ValueError, match="cannot be shared evenly among 3 concepts"):
        METHODS[method](TinyNetworkModel(), ["a", "b", "c"], IMAGES)


@pytest.fixture(scope="module")
def backends(pack: ModuleType, iconcanvas_folder: Path) -> tuple:
    """IconCanvas in the host and as a diffusers pipeline."""
    host = pack.nodes.backend.model.ComfyModel(*testbed.model.pack.checkpoint(), size=(64, 64))
    return host, DiffusersModel(load_pipeline(iconcanvas_folder), (64, 64))


@pytest.mark.parametrize(
    "method",
    [
        name if name == "weight_pruning" else pytest.param(name, marks=pytest.mark.slow)
        for name in METHODS
    ],
)
def test_both_backends_learn_the_same(backends: tuple, method: str) -> None:
    host, pipeline = backends
    with torch.inference_mode(), host.training():
        one = run(host, method)
    two = run(pipeline, method)
    assert list(one.deltas) == list(two.deltas)
    assert one.norm() > 0
    apart = sum((one.delta(key) - two.delta(key)).square().sum() for key in one.deltas) ** 0.5
    # Adam divides each gradient by its own size: the smallest, which rounding decides, weigh as
    # much as the others. And rounding decides which of two like weights is cut, so that the second
    # draw finds two networks that are not quite the same.
    assert apart < {"gradient_ascent": 0.15, "weight_pruning": 0.2}[method] * one.norm()
    # Each draw prunes what the last one left, so rounding differs more with every draw, and more on
    # some processors.
    rel = {"gradient_ascent": 0.02, "weight_pruning": 0.1}[method]
    assert one.record["loss"] == pytest.approx(two.record["loss"], rel=rel)
    if method == "weight_pruning":
        for key in two.deltas:
            weight = pipeline.weights[key].detach()
            change = two.delta(key).view(weight.shape)
            cut = change != 0
            assert torch.equal(change[cut], -weight[cut]), key
            assert 0 < cut.float().mean() <= 0.5  # two draws of a quarter
