"""Networks in which text and picture share one attention: is that of every block selected?"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from layouts import SIDE, build, where_present

pytestmark = pytest.mark.usefixtures("node_body")


def small(name: str) -> Callable[[dict], torch.nn.Module]:
    """A network of layouts.py."""
    return lambda _: build(name).model.model.diffusion_model


def cog_video(options: dict) -> torch.nn.Module:
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel(num_layers=2, **options)


def aura_flow(options: dict) -> torch.nn.Module:
    from comfy.ldm.aura.mmdit import MMDiT

    return MMDiT(n_layers=2, n_double_layers=1, **options)


FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 32,
    "context_in_dim": 32,
    "hidden_size": 64,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12],
    "theta": 256,
    "qkv_bias": True,
}


def hunyuan_video(options: dict) -> torch.nn.Module:
    from comfy.ldm.hunyuan_video.model import HunyuanVideo

    own = {"patch_size": [1, 2, 2], "guidance_embed": True, "byt5": False, "meanflow": False}
    more = dict.fromkeys(("use_cond_type_embedding", "meanflow_sum"), False)
    return HunyuanVideo(**FLUX, **own, **more, vision_in_dim=None, **options)


def chroma(options: dict) -> torch.nn.Module:
    from comfy.ldm.chroma.model import Chroma

    own = {"patch_size": 2, "in_dim": 64, "out_dim": 64, "hidden_dim": 64, "n_layers": 2}
    return Chroma(**FLUX, **own, txt_ids_dims=[], **options)


def qwen_image(options: dict) -> torch.nn.Module:
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(num_layers=2, **options)


def mochi(options: dict) -> torch.nn.Module:
    from comfy.ldm.genmo.joint_model.asymm_models_joint import AsymmDiTJoint

    return AsymmDiTJoint(
        depth=2,
        patch_size=2,
        num_heads=24,
        hidden_size_x=3072,  # the host takes no other
        hidden_size_y=1536,
        mlp_ratio_x=4.0,
        mlp_ratio_y=4.0,
        learn_sigma=False,
        qk_norm=True,
        in_channels=12,
        t5_feat_dim=4096,
        t5_token_length=256,
        **options,
    )


def lumina(options: dict) -> torch.nn.Module:
    from comfy.ldm.lumina.model import NextDiT

    return NextDiT(n_layers=2, n_refiner_layers=1, **options)


def all_of(path: str, names: str) -> set[str]:
    return {f"{path}.{name}" for name in names.split()}


SD3 = {
    f"joint_blocks.{one}_block.attn.{layer}"
    for one in ("x", "context")
    for layer in ("qkv", "proj")
}
SD3_REST = {
    *("context_embedder", "final_layer.adaLN_modulation", "final_layer.linear"),
    *("t_embedder.mlp", "y_embedder.mlp"),
    *all_of("joint_blocks.x_block", "adaLN_modulation mlp.fc1 mlp.fc2"),
    *all_of("joint_blocks.context_block", "adaLN_modulation mlp.fc1 mlp.fc2"),
}
DOUBLE = all_of("double_blocks", "img_attn.qkv img_attn.proj txt_attn.qkv txt_attn.proj")
FLUX_REST = {
    *all_of("double_blocks", "img_mlp txt_mlp img_mod.lin txt_mod.lin"),
    *all_of("single_blocks", "linear2 modulation.lin"),
    *all_of("final_layer", "linear adaLN_modulation"),
    *(f"{one}_in.{end}_layer" for one in ("guidance", "time", "vector") for end in ("in", "out")),
    *("img_in", "txt_in"),
}
SHARED_MODULATION = {
    *all_of("double_blocks", "img_mod.lin txt_mod.lin"),
    *("single_blocks.modulation.lin", "vector_in.in_layer", "vector_in.out_layer"),
}
FLUX2_REST = (FLUX_REST - SHARED_MODULATION) | {
    *("double_stream_modulation_img.lin", "double_stream_modulation_txt.lin"),
    "single_stream_modulation.lin",
}
REFINER = "txt_in.individual_token_refiner.blocks"
REFINED = all_of(REFINER, "self_attn.qkv self_attn.proj")
HUNYUAN_REST = (FLUX_REST - {"img_in", "txt_in"}) | {
    *all_of(REFINER, "adaLN_modulation mlp"),
    *(f"txt_in.{one}_embedder.{end}_layer" for one in "ct" for end in ("in", "out")),
    "txt_in.input_embedder",
}
CHROMA_REST = {
    *all_of("double_blocks", "img_mlp txt_mlp"),
    *("single_blocks.linear2", "final_layer.linear", "img_in", "txt_in"),
    *all_of("distilled_guidance_layer", "in_proj out_proj layers.in_layer layers.out_layer"),
}
LUMINA = ("layers", "noise_refiner", "context_refiner")

# Of each family its network, the layers of "cross-attention", and all others, without the numbers
# of blocks. "linear1" is selected in part. HunyuanVideo's and Lumina's refiners attend to the text
# or the picture alone, SD 3.5 medium's attn2 to the picture: they are selected as well.
FAMILIES: dict[str, tuple[Callable[[dict], torch.nn.Module], set[str], set[str]]] = {
    "SD 3": (small("sd3"), SD3, SD3_REST),
    "SD 3.5 medium": (
        small("sd3.5 medium"),
        SD3 | all_of("joint_blocks.x_block", "attn2.qkv attn2.proj"),
        SD3_REST,
    ),
    "Flux": (small("flux"), DOUBLE | {"single_blocks.linear1"}, FLUX_REST),
    "Flux 2": (small("flux2"), DOUBLE | {"single_blocks.linear1"}, FLUX2_REST),
    "Chroma": (chroma, DOUBLE | {"single_blocks.linear1"}, CHROMA_REST),
    "HunyuanVideo": (
        hunyuan_video,
        DOUBLE | REFINED | {"single_blocks.linear1"},
        HUNYUAN_REST,
    ),
    "CogVideoX": (
        cog_video,
        all_of("blocks", "q k v attn_out"),
        {
            *all_of("blocks", "ff_proj ff_out norm1.linear norm2.linear"),
            *("norm_out.linear", "patch_embed.text_proj", "proj_out"),
            *("time_embedding_linear_1", "time_embedding_linear_2"),
        },
    ),
    "AuraFlow": (
        aura_flow,
        all_of("double_layers.attn", "w1q w1k w1v w1o w2q w2k w2v w2o")
        | all_of("single_layers.attn", "w1q w1k w1v w1o"),
        {
            *all_of("double_layers", "modC modX"),
            *(f"double_layers.mlp{one}.c_{end}" for one in "CX" for end in ("fc1", "fc2", "proj")),
            *all_of("single_layers", "modCX mlp.c_fc1 mlp.c_fc2 mlp.c_proj"),
            *("cond_seq_linear", "final_linear", "init_x_linear", "modF", "t_embedder.mlp"),
        },
    ),
    "Qwen-Image": (
        qwen_image,
        all_of(
            "transformer_blocks.attn",
            "to_q to_k to_v to_out add_q_proj add_k_proj add_v_proj to_add_out",
        ),
        {
            *all_of("transformer_blocks", "img_mod txt_mod img_mlp.net txt_mlp.net"),
            *all_of("transformer_blocks", "img_mlp.net.proj txt_mlp.net.proj"),
            *("img_in", "txt_in", "norm_out.linear", "proj_out"),
            *all_of("time_text_embed.timestep_embedder", "linear_1 linear_2"),
        },
    ),
    "Mochi": (
        mochi,
        all_of("blocks.attn", "qkv_x qkv_y proj_x proj_y"),
        {
            *all_of("blocks", "mlp_x.w1 mlp_x.w2 mlp_y.w1 mlp_y.w2 mod_x mod_y"),
            *("final_layer.linear", "final_layer.mod", "t_embedder.mlp"),
        },
    ),
    "Lumina": (
        lumina,
        {f"{part}.attention.{layer}" for part in LUMINA for layer in ("qkv", "out")},
        {
            *(f"{part}.feed_forward.w{i}" for part in LUMINA for i in (1, 2, 3)),
            *("layers.adaLN_modulation", "noise_refiner.adaLN_modulation"),
            *("cap_embedder", "t_embedder.mlp", "x_embedder"),
            *("final_layer.adaLN_modulation", "final_layer.linear"),
        },
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, host: ModuleType) -> tuple[Any, set[str], set[str]]:
    import comfy.ops

    make, selected, others = FAMILIES[request.param]
    options = {"dtype": torch.float32, "device": "meta"}
    with where_present(request.param), torch.inference_mode():
        root = make({**options, "operations": comfy.ops.disable_weight_init})
    return root, selected, others


def without_numbers(names: set[str]) -> set[str]:
    return {re.sub(r"\.\d+", "", name) for name in names}


def test_the_attention_of_every_block_is_selected_and_nothing_else(
    pack: ModuleType, family: tuple[Any, set[str], set[str]]
) -> None:
    root, selected, others = family
    found = pack.unlearn.core.trainable.network_weights(root, "cross-attention")
    layers = {key.rpartition(".")[0] for key in found}
    every = {name for name, module in root.named_modules() if hasattr(module, "in_features")}
    assert without_numbers(layers) == selected
    assert without_numbers(every - layers) == others
    # None of the blocks of a kind is left out.
    assert layers == {name for name in every if without_numbers({name}) <= selected}


def test_of_a_fused_layer_the_rows_of_the_attention_are_selected(
    pack: ModuleType, family: tuple[Any, set[str], set[str]]
) -> None:
    root, selected, _ = family
    trainable = pack.unlearn.core.trainable
    rows = trainable.network_rows(root, "cross-attention")
    rest = trainable.network_rows(root, "outside-cross-attention")
    fused = {name for name, _ in root.named_modules() if name.endswith(".linear1")}
    assert {key.rpartition(".")[0] for key in rows} == fused
    assert bool(fused) == ("single_blocks.linear1" in selected)
    for name in fused:
        layer, block = root.get_submodule(name), root.get_submodule(name.rpartition(".")[0])
        # The host itself splits what the layer gives there.
        assert rows[f"{name}.weight"] == slice(0, 3 * block.hidden_size)
        assert rest[f"{name}.weight"] == slice(3 * block.hidden_size, layer.out_features)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("layout", ["flux", "flux2"])
def test_a_trained_fused_layer_changes_its_attention_and_not_its_feed_forward(
    pack: ModuleType, layout: str, rank: int
) -> None:
    with torch.inference_mode():
        loaded = build(layout)
    host_model = pack.nodes.backend.model.ComfyModel(loaded.model, loaded.clip, None, (SIDE, SIDE))
    layer = loaded.model.model.diffusion_model.single_blocks[0].linear1
    key, said = "diffusion_model.single_blocks.0.linear1.weight", []
    with host_model.training() as model, model.edit("denoiser", "cross-attention", rank) as edit:
        hook = layer.register_forward_hook(
            lambda module, given, output: said.append((given, output))
        )
        generator = torch.Generator().manual_seed(1)
        x_t, t = model.noise(1, generator), torch.tensor([500.0])
        with torch.no_grad():
            model.predict(x_t, t, model.encode(["a cat"]))
            for parameter in edit.deltas[key].parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            model.predict(x_t, t, model.encode(["a cat"]))
        hook.remove()
        change = edit.deltas[key].value()
        stored = edit.deltas[key].tensors()
    end = 3 * loaded.model.model.diffusion_model.hidden_size
    assert change.shape == layer.weight.shape
    assert change[:end].any(dim=1).all()
    assert not change[end:].any()
    assert stored["lora_up" if rank else "diff"].shape[0] == layer.weight.shape[0]
    # The layers before it are not edited here, so it is given the same both times.
    (given, before), (_, after) = said
    assert torch.equal(after[..., end:], before[..., end:])
    moved = torch.nn.functional.linear(given[0], change[:end])
    assert torch.allclose((after - before)[..., :end], moved, atol=1e-3, rtol=1e-3)
