"""Which weights are trained: an encoder's by the paper's rule, a network's by their names."""

from __future__ import annotations

import json
from types import ModuleType

import pytest
import torch
from tiny import Encoder
from torch import nn

import testbed.host.process
from unlearn.core.trainable import encoder_weights, network_rows, network_weights

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


def test_stacks_are_cut_each_at_its_own_last_layer() -> None:
    root = nn.ModuleDict({"l": Encoder(depth=3), "g": Encoder(depth=3), "eye": Encoder(depth=3)})
    unread = {"l.layers": 1, "g.layers": 0, "eye.layers": 3}
    found = set(encoder_weights(root, "attention", unread))
    wanted = {f"l.{name}" for name in ATTENTION - in_layer(ATTENTION, 2)}
    assert found == wanted | {f"g.{name}" for name in ATTENTION}


def test_encoder_that_is_not_read_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="This model reads no layer of the text encoder"):
        encoder_weights(Encoder(depth=3), "mlp", {"layers": 3})


def test_encoder_of_whole_numbers_gets_a_sentence() -> None:
    encoder = Encoder(depth=3)
    for module in encoder.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            whole = torch.zeros(weight.shape, dtype=torch.uint8)
            setattr(module, name, nn.Parameter(whole, requires_grad=False))
    with pytest.raises(ValueError, match=r"packed integers, as from a GGUF file, .* safetensors"):
        encoder_weights(encoder, "mlp-final-attn")


@pytest.fixture(scope="module")
def clip_l(host: ModuleType) -> torch.nn.Module:
    """The host's CLIP-L at its full size, without the memory."""
    import comfy.clip_model
    import comfy.ops

    config = json.loads(
        (testbed.host.process.path() / "comfy" / "sd1_clip_config.json").read_text()
    )
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


# Networks


def network(*names: str, **modules: nn.Module) -> nn.Module:
    """A tree of modules with linear layers of these names, and others by theirs (`__` is a dot)."""
    root = nn.Module()
    layers = {name: nn.Linear(2, 2) for name in names}
    layers |= {name.replace("__", "."): module for name, module in modules.items()}
    for path, layer in layers.items():
        parent = root
        *folders, last = path.split(".")
        for folder in folders:
            if folder not in dict(parent.named_children()):
                parent.add_module(folder, nn.Module())
            parent = parent.get_submodule(folder)
        parent.add_module(last, layer)
    return root


def chosen(root: nn.Module, trainable: str) -> set[str]:
    """The layers whose weights are trained."""
    return {name.rpartition(".")[0] for name in network_weights(root, trainable)}


BLOCK = "input_blocks.1.1.transformer_blocks.0"
SELF = {f"{BLOCK}.attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}
CROSS = {f"{BLOCK}.attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}
OTHERS = {f"{BLOCK}.ff.net.0.proj", "time_embed.0", "input_blocks.1.0.emb_layers.1"}


def unet() -> nn.Module:
    return network(
        *SELF,
        *CROSS,
        *OTHERS,
        input_blocks__1__0__in_layers__2=nn.Conv2d(2, 2, 3),
        input_blocks__1__0__in_layers__0=nn.GroupNorm(1, 2),
        input_blocks__1__1__transformer_blocks__0__norm1=nn.LayerNorm(2),
        input_blocks__2__pool=nn.AvgPool2d(2),
    )


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("cross-attention", CROSS),
        ("cross-attention-kv", {f"{BLOCK}.attn2.to_k", f"{BLOCK}.attn2.to_v"}),
        ("outside-cross-attention", {*SELF, *OTHERS, "input_blocks.1.0.in_layers.2"}),
        ("all", {*SELF, *CROSS, *OTHERS, "input_blocks.1.0.in_layers.2"}),
        ("convolution", {"input_blocks.1.0.in_layers.2"}),
    ],
)
def test_exactly_these_layers_of_a_unet(trainable: str, expected: set[str]) -> None:
    assert chosen(unet(), trainable) == expected


def test_network_weights_are_the_models_own_with_their_biases() -> None:
    root = unet()
    weights = network_weights(root, "outside-cross-attention")
    assert {f"input_blocks.1.0.in_layers.2.{kind}" for kind in ("weight", "bias")} <= set(weights)
    for name, weight in weights.items():
        assert weight is root.get_parameter(name)


def test_layers_without_bias_give_their_weight_alone() -> None:
    root = network(blocks__0__attn2__to_k=nn.Linear(2, 2, bias=False))
    assert set(network_weights(root, "cross-attention")) == {"blocks.0.attn2.to_k.weight"}


WAN = [
    *(f"blocks.0.{kind}.{name}" for kind in ("self_attn", "cross_attn") for name in "qkvo"),
    *("blocks.0.ffn.0", "text_embedding.0", "head.head"),
]


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("cross-attention", {f"blocks.0.cross_attn.{name}" for name in "qkvo"}),
        ("cross-attention-kv", {"blocks.0.cross_attn.k", "blocks.0.cross_attn.v"}),
        (
            "outside-cross-attention",
            {name for name in WAN if "cross_attn" not in name},
        ),
    ],
)
def test_exactly_these_layers_of_wan(trainable: str, expected: set[str]) -> None:
    assert chosen(network(*WAN), trainable) == expected


JOINT = {
    f"double_blocks.0.{stream}_attn.{name}" for stream in ("img", "txt") for name in ("qkv", "proj")
}
FLUX = [
    *JOINT,
    *(
        f"double_blocks.0.{name}"
        for name in ("img_mlp.0", "txt_mlp.0", "img_mod.lin", "txt_mod.lin")
    ),
    *(
        "single_blocks.0.linear1",
        "single_blocks.0.linear2",
        "txt_in",
        "img_in",
        "final_layer.linear",
    ),
]


def test_in_joint_attention_all_of_it_is_cross_attention() -> None:
    assert chosen(network(*FLUX), "cross-attention") == JOINT
    assert chosen(network(*FLUX), "outside-cross-attention") == set(FLUX) - JOINT


def test_in_joint_attention_the_words_own_projections_make_keys_and_values() -> None:
    """Not what comes behind the attention."""
    assert chosen(network(*FLUX), "cross-attention-kv") == {"double_blocks.0.txt_attn.qkv"}


@pytest.mark.parametrize("gate", [1, 2], ids=["one half", "two halves"])
def test_of_a_layer_for_attention_and_feed_forward_the_attentions_rows_are_trained(
    gate: int,
) -> None:
    """Flux's single-stream blocks: 8 wide, with a feed-forward of 12, whose gate is 12 more."""
    single = {
        "single_blocks__1__linear1": nn.Linear(8, 3 * 8 + gate * 12),
        "single_blocks__1__linear2": nn.Linear(8 + 12, 8),
        "plain__linear1": nn.Linear(8, 32),
        "plain__linear2": nn.Linear(32, 8),
    }
    root = network(*FLUX, **single)
    fused = "single_blocks.1.linear1"
    assert chosen(root, "cross-attention") == JOINT | {fused}
    outside = {name.replace("__", ".") for name in single} | set(FLUX) - JOINT
    assert chosen(root, "outside-cross-attention") == outside
    for trainable, rows in (
        ("cross-attention", slice(0, 24)),
        ("outside-cross-attention", slice(24, 24 + gate * 12)),
    ):
        assert network_rows(root, trainable) == {
            f"{fused}.{kind}": rows for kind in ("weight", "bias")
        }
    for trainable in ("cross-attention-kv", "all"):
        assert not network_rows(root, trainable)
    # Beside a cross-attention it is none of the prompt's.
    root = network(*CROSS, **single)
    assert chosen(root, "cross-attention") == CROSS
    assert not network_rows(root, "outside-cross-attention")


def test_queries_keys_and_values_of_a_block_itself_are_its_attention() -> None:
    """CogVideoX's. A q elsewhere is no attention's."""
    block = {f"blocks.0.{name}" for name in ("q", "k", "v", "attn_out")}
    root = network(*block, "blocks.0.ff_out", "other.q")
    assert chosen(root, "cross-attention") == block


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        pytest.param(
            ["blocks.0.attn.qkv", "blocks.0.cross_attn.q_linear", "blocks.0.cross_attn.kv_linear"],
            {"blocks.0.cross_attn.kv_linear"},
            id="PixArt",
        ),
        pytest.param(
            ["blocks.0.attn1.Wqkv", "blocks.0.attn2.q_proj", "blocks.0.attn2.kv_proj"],
            {"blocks.0.attn2.kv_proj"},
            id="HunyuanDiT",
        ),
        pytest.param(
            [f"blocks.0.cross_attention.to_{name}" for name in ("query", "key", "value")],
            {"blocks.0.cross_attention.to_key", "blocks.0.cross_attention.to_value"},
            id="Kandinsky 5",
        ),
        pytest.param(
            [f"transformer_blocks.0.attn.{name}" for name in ("to_k", "add_k_proj", "add_v_proj")],
            {f"transformer_blocks.0.attn.{name}" for name in ("add_k_proj", "add_v_proj")},
            id="Qwen-Image",
        ),
        pytest.param(
            ["joint_blocks.0.x_block.attn.qkv", "joint_blocks.0.context_block.attn.qkv"],
            {"joint_blocks.0.context_block.attn.qkv"},
            id="SD 3",
        ),
        pytest.param(
            # attn2 is of the picture alone here.
            [
                "joint_blocks.0.x_block.attn.qkv",
                "joint_blocks.0.x_block.attn2.qkv",
                "joint_blocks.0.context_block.attn.qkv",
            ],
            {"joint_blocks.0.context_block.attn.qkv"},
            id="SD 3.5 medium",
        ),
        pytest.param(
            [f"blocks.0.attn.{name}_{stream}" for name in ("qkv", "proj") for stream in "xy"],
            {"blocks.0.attn.qkv_y"},
            id="Mochi",
        ),
    ],
)
def test_keys_and_values_of_the_prompt_by_the_hosts_other_names(
    layers: list[str], expected: set[str]
) -> None:
    assert chosen(network(*layers), "cross-attention-kv") == expected


@pytest.mark.parametrize(
    "trainable", ["cross-attention", "cross-attention-kv", "outside-cross-attention"]
)
def test_a_network_without_attention_gets_a_sentence(trainable: str) -> None:
    root = network("time_embed.0", in_layers=nn.Conv2d(2, 2, 3))
    with pytest.raises(ValueError, match="This model has no cross-attention, so no prompt reaches"):
        network_weights(root, trainable)


@pytest.mark.parametrize(
    ("layers", "attention"),
    [
        pytest.param(
            ["layers.0.attention.qkv", "layers.0.attention.out", "layers.0.feed_forward.w1"],
            {"layers.0.attention.qkv", "layers.0.attention.out"},
            id="Lumina",
        ),
        pytest.param(
            [
                *(f"down_blocks.0.2.attention.attn.{name}" for name in ("to_q", "to_k", "to_v")),
                "down_blocks.0.0.channelwise.0",
            ],
            {f"down_blocks.0.2.attention.attn.{name}" for name in ("to_q", "to_k", "to_v")},
            id="Stable Cascade",
        ),
        pytest.param(
            ["blocks.0.attn_out", "blocks.0.ff_proj"], {"blocks.0.attn_out"}, id="CogVideoX"
        ),
    ],
)
def test_attention_without_keys_and_values_of_the_words_says_what_to_train_instead(
    layers: list[str], attention: set[str]
) -> None:
    with pytest.raises(ValueError, match=r"no cross-attention-kv: .* Train its cross-attention"):
        network_weights(network(*layers), "cross-attention-kv")
    assert chosen(network(*layers), "cross-attention") == attention


def test_an_unknown_choice_of_network_weights_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"trainable must be one of cross-attention, .* not 'mlp'"):
        network_weights(unet(), "mlp")
