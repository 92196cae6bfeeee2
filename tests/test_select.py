"""Which weights are trained, by the paper's rule."""

from __future__ import annotations

import json
from types import ModuleType

import pytest
import torch
from tiny import Encoder

import testbed.host
from unlearn.select import encoder_weights

FEED_FORWARD = {
    f"layers.{i}.mlp.{name}.{kind}"
    for i in range(3)
    for name in ("fc1", "fc2")
    for kind in ("weight", "bias")
}
ATTENTION = {
    f"layers.{i}.self_attn.{name}.{kind}"
    for i in range(3)
    for name in ("q_proj", "out_proj")
    for kind in ("weight", "bias")
}


def in_layer(names: set[str], layer: int) -> set[str]:
    return {name for name in names if name.startswith(f"layers.{layer}.")}


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("mlp-final-attn", FEED_FORWARD | in_layer(ATTENTION, 2)),
        ("mlp", FEED_FORWARD),
        ("attention", ATTENTION),
    ],
)
def test_exactly_these_weights(trainable: str, expected: set[str]) -> None:
    assert set(encoder_weights(Encoder(depth=3), trainable)) == expected


def test_all_takes_norms_and_embeddings_too() -> None:
    encoder = Encoder(depth=3)
    assert set(encoder_weights(encoder, "all")) == {name for name, _ in encoder.named_parameters()}


def test_the_weights_are_the_models_own() -> None:
    encoder = Encoder()
    for name, weight in encoder_weights(encoder, "mlp-final-attn").items():
        assert weight is encoder.get_parameter(name)


def test_final_attention_is_that_of_the_last_layer_read() -> None:
    names = set(encoder_weights(Encoder(depth=3), "mlp-final-attn", unread=1))
    read = in_layer(FEED_FORWARD, 0) | in_layer(FEED_FORWARD, 1)
    assert names == read | in_layer(ATTENTION, 1)


@pytest.mark.parametrize("trainable", ["mlp-final-attn", "mlp", "attention", "all"])
def test_unread_layers_are_left_out(trainable: str) -> None:
    names = encoder_weights(Encoder(depth=3), trainable, unread=2)
    assert not [name for name in names if name.startswith(("layers.1.", "layers.2."))]


def test_unknown_choice_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"trainable must be one of mlp-final-attn, .* not 'bias'"):
        encoder_weights(Encoder(), "bias")


def test_encoder_without_layers_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="has no weights of the kind 'mlp'"):
        encoder_weights(torch.nn.Linear(2, 2), "mlp")


@pytest.fixture(scope="module")
def clip_l(host: ModuleType) -> torch.nn.Module:
    """The host's CLIP-L at its full size, without the memory."""
    import comfy.clip_model
    import comfy.ops

    config = json.loads((testbed.host.path() / "comfy" / "sd1_clip_config.json").read_text())
    return comfy.clip_model.CLIPTextModel(
        config, torch.float32, "meta", comfy.ops.disable_weight_init
    )


def test_clip_l_has_the_papers_count_of_trained_parameters(clip_l: torch.nn.Module) -> None:
    weights = encoder_weights(clip_l, "mlp-final-attn")
    assert sum(weight.numel() for weight in weights.values()) == 59_031_552
    assert len(weights) == 12 * 4 + 8


def test_clip_l_has_the_papers_count_of_parameters_in_all(clip_l: torch.nn.Module) -> None:
    weights = encoder_weights(clip_l.text_model, "all")
    assert sum(weight.numel() for weight in weights.values()) == 123_060_480
