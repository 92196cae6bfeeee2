"""The text encoders that encoder_layouts.py leaves out, each small and with a small denoiser.

test_other_encoders.py looks up the host's classes, so that none is forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from encoder_layouts import (
    LLAMA,
    SMALL_LUMINA,
    WIDTH,
    network,
    sentencepiece_model,
    with_small_eye,
)
from layouts import LAYOUTS, SMALL_FLUX, SMALL_T5, SMALL_UNET, Loaded, assemble, where_present

WORDS = ["a", "photo", "painting", "in", "style", "of", "and", "old", "red", "cat", "dog", "fox"]
SMALL_EYE = {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "depth": 2}


def byte_level(special: list[str], words: list[str]) -> Any:
    """A tokenizer of the kind that Mistral and GPT-OSS have: single bytes, and whole words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # This letter stands for the byte of a space.
    whole = [form for word in words for form in (word, f"\u0120{word}")]
    names = dict.fromkeys([*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *whole])
    numbers = {name: i for i, name in enumerate(names)}
    found = Tokenizer(models.BPE(numbers, [], ignore_merges=True))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens(special)
    return found


def mistral_tokenizer() -> dict:
    """Token 1 starts a prompt, and token 11 is padding."""
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    special += [f"<SPECIAL_{i}>" for i in range(len(special), 20)]
    return {"tokenizer_object": byte_level(special, WORDS), "legacy": False}


def with_small_mistral_tokenizer(tokenizer: Callable) -> Callable:
    """Mistral's tokenizer comes with its file. The host passes it to transformers in a way that
    newer versions (5.23) do not accept."""
    import comfy.text_encoders.flux as flux_encoders

    def build(**options: Any) -> Any:
        full = flux_encoders.load_mistral_tokenizer
        flux_encoders.load_mistral_tokenizer = lambda data: mistral_tokenizer()
        try:
            return tokenizer(**options)
        finally:
            flux_encoders.load_mistral_tokenizer = full

    return build


@contextmanager
def replaced(table: dict, **values: Any) -> Iterator[None]:
    """Give one of the host's tables other values for a while."""
    before = {**table}
    table.update(values)
    try:
        yield
    finally:
        table.clear()
        table.update(before)


def with_small_qwen3_eye(encoder: Callable) -> Callable:
    """Make Qwen 3 VL's picture encoders small. The host fixes them at 1024 x 24 layers and up."""
    import comfy.text_encoders.qwen3vl as qwen3vl

    def build(**options: Any) -> torch.nn.Module:
        small = {**SMALL_EYE, "deepstack_visual_indexes": [0, 1]}
        with (
            replaced(qwen3vl.QWEN3VL_VISION, **dict.fromkeys(qwen3vl.QWEN3VL_VISION, small)),
            replaced(qwen3vl.QWEN3VL_VISION_COMMON, num_heads=2),
        ):
            return encoder(**options)

    return build


def tokenizer_json(*given: list[str]) -> torch.Tensor:
    """The tokenizer that Gemma 4 and GPT-OSS have in their files."""
    written = byte_level(*given).to_str().encode()
    return torch.frombuffer(bytearray(written), dtype=torch.uint8)


def mistral_flux2() -> dict:
    """Flux 2 reads the inputs of layers 10, 20 and 30."""
    import comfy.text_encoders.flux as flux_encoders

    config, _, _ = LAYOUTS["flux2"]()
    config.unet_config["context_in_dim"] = 3 * WIDTH
    return {
        "config": config,
        "tokenizer": with_small_mistral_tokenizer(flux_encoders.Flux2Tokenizer),
        "encoder": flux_encoders.flux2_te(),
        "encoders": {"mistral3_24b_model_config": {**LLAMA, "num_hidden_layers": 32}},
    }


def pruned_mistral_flux2() -> dict:
    """The file that is usually shared, without the layers that are not read."""
    import comfy.text_encoders.flux as flux_encoders

    few = {**LLAMA, "num_hidden_layers": 30}
    return {
        **mistral_flux2(),
        "encoder": flux_encoders.flux2_te(pruned=True),
        "encoders": {"mistral3_24b_model_config": few},
    }


def qwen3_8b_flux2() -> dict:
    """Flux 2 Klein's larger encoder."""
    import comfy.text_encoders.flux as flux_encoders

    config, _, _ = LAYOUTS["flux2"]()
    config.unet_config["context_in_dim"] = 3 * WIDTH
    return {
        "config": config,
        "tokenizer": flux_encoders.KleinTokenizer8B,
        "encoder": flux_encoders.klein_te(model_type="qwen3_8b"),
        "encoders": {"qwen3_8b_model_config": {**LLAMA, "num_hidden_layers": 29}},
    }


def ideogram() -> dict:
    config = network(
        "Ideogram4",
        image_model="ideogram4",
        in_channels=128,
        num_layers=2,
    )
    config.unet_config |= {
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "intermediate_size": 64,
        "adaln_dim": 32,
        "llm_features_dim": 13 * WIDTH,
        "mrope_section": [8, 4, 4],
    }
    sizes = {"qwen3vl_8b_model_config": {**LLAMA, "num_hidden_layers": 36}}
    return {"config": config, "encoders": sizes}


def qwen3vl_ideogram() -> dict:
    """Ideogram 4 reads thirteen of 36 layers; the last one read is the last of all."""
    import comfy.text_encoders.ideogram4 as ideogram4

    return {
        **ideogram(),
        "tokenizer": ideogram4.Ideogram4Qwen3VLTokenizer,
        "encoder": with_small_qwen3_eye(ideogram4.te_qwen3vl()),
    }


def qwen3_ideogram() -> dict:
    """Only Ideogram 4's language model."""
    import comfy.text_encoders.ideogram4 as ideogram4

    return {
        **ideogram(),
        "tokenizer": ideogram4.Ideogram4Tokenizer,
        "encoder": ideogram4.te(),
    }


def qwen3vl_krea() -> dict:
    """Krea 2 reads twelve layers; the last one is the input of layer 35."""
    import comfy.text_encoders.krea2 as krea2

    config = network(
        "Krea2",
        image_model="krea2",
        features=64,
        tdim=32,
        txtdim=WIDTH,
        heads=2,
        kvheads=1,
        multiplier=2,
        layers=2,
        channels=16,
        txtlayers=12,
        txtheads=2,
        txtkvheads=2,
    )
    return {
        "config": config,
        "tokenizer": krea2.Krea2Tokenizer,
        "encoder": with_small_qwen3_eye(krea2.te()),
        "encoders": {"qwen3vl_4b_model_config": {**LLAMA, "num_hidden_layers": 36}},
    }


def qwen3vl_boogu() -> dict:
    import comfy.text_encoders.boogu as boogu

    config = network(
        "Boogu",
        image_model="boogu",
        hidden_size=64,
        num_layers=2,
        num_double_stream_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=32,
        axes_dim_rope=(8, 12, 12),
        axes_lens=(2048, 64, 64),
        instruction_feat_dim=WIDTH,
    )
    return {
        "config": config,
        "tokenizer": boogu.BooguTokenizer,
        "encoder": with_small_qwen3_eye(boogu.te()),
        "encoders": {"qwen3vl_8b_model_config": LLAMA},
    }


def qwen3vl_mage_flow() -> dict:
    import comfy.text_encoders.mage_flow as mage_flow

    config = network(
        "MageFlow",
        image_model="mage_flow",
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 12, 12),
    )
    return {
        "config": config,
        "tokenizer": mage_flow.MageFlowTokenizer,
        "encoder": with_small_qwen3_eye(mage_flow.te()),
        "encoders": {"qwen3vl_4b_model_config": LLAMA},
    }


def qwen3vl_joyimage() -> dict:
    """The first 34 tokens are cut off, whatever they are."""
    import comfy.text_encoders.joyimage as joyimage

    config = network(
        "JoyImage",
        image_model="joyimage",
        hidden_size=64,
        num_attention_heads=2,
        text_dim=WIDTH,
        mlp_width_ratio=2.0,
        num_layers=2,
    )
    config.unet_config["rope_dim_list"] = [8, 12, 12]
    return {
        "config": config,
        "tokenizer": joyimage.JoyImageTokenizer,
        "encoder": with_small_qwen3_eye(joyimage.te()),
        "encoders": {"qwen3vl_8b_model_config": LLAMA},
    }


def t5_mochi() -> dict:
    """T5, with an attention mask."""
    import comfy.text_encoders.genmo as genmo

    config = network(
        "GenmoMochi",
        image_model="mochi_preview",
        depth=2,
        patch_size=2,
        num_heads=2,
        hidden_size_x=64,
        hidden_size_y=32,
        mlp_ratio_x=12288 / 64,  # the host needs the product with the width
        mlp_ratio_y=2.0,
        learn_sigma=False,
        in_channels=12,
        qk_norm=True,
        qkv_bias=False,
        out_bias=True,
        attn_drop=0.0,
        posenc_preserve_area=True,
        timestep_scale=1000.0,
        use_t5=True,
        t5_feat_dim=WIDTH,
        rope_theta=10000.0,
    )
    return {
        "config": config,
        "tokenizer": genmo.MochiT5Tokenizer,
        "encoder": genmo.mochi_te(),
    }


SMALL_COSMOS = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 64,
    "num_blocks": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "crossattn_emb_channels": WIDTH,
    "pos_emb_cls": "rope3d",
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
}


def t5_cosmos() -> dict:
    """The first version of T5, whose layers differ from those of today's T5."""
    import comfy.text_encoders.cosmos as cosmos

    config = network(
        "CosmosT2V",
        **SMALL_COSMOS,
        image_model="cosmos",
        block_x_format="THWBD",
        affline_emb_norm=True,
        extra_per_block_abs_pos_emb=True,
        extra_per_block_abs_pos_emb_type="learnable",
    )
    return {"config": config, "tokenizer": cosmos.CosmosT5Tokenizer, "encoder": cosmos.te()}


def t5_cosmos_predict2() -> dict:
    return {
        **t5_cosmos(),
        "config": network("CosmosT2IPredict2", **SMALL_COSMOS, image_model="cosmos_predict2"),
    }


def qwen_hunyuan_image() -> dict:
    """Qwen 2.5 VL, read two layers early. ByT5 is used only for quoted text in a prompt."""
    import comfy.text_encoders.hunyuan_image as hunyuan_image

    config = network(
        "HunyuanImage21",
        **{**SMALL_FLUX, "guidance_embed": False},
        image_model="hunyuan_video",
        in_channels=64,
        out_channels=64,
        patch_size=[1, 1],
        vec_in_dim=None,
        axes_dim=[16, 16],
        theta=256,
        qkv_bias=True,
        byt5=True,
        meanflow=False,
        use_cond_type_embedding=False,
        vision_in_dim=None,
        meanflow_sum=False,
    )
    return {
        "config": config,
        "tokenizer": hunyuan_image.HunyuanImageTokenizer,
        "encoder": with_small_eye(hunyuan_image.te()),
        # The host has no name of its own for ByT5.
        "encoders": {"qwen25_7b_model_config": LLAMA, "_model_config": SMALL_T5},
    }


def t5_aura_flow() -> dict:
    import comfy.text_encoders.aura_t5 as aura_t5

    config = network(
        "AuraFlow",
        dim=64,
        n_layers=2,
        n_double_layers=1,
        n_heads=2,
        global_conddim=64,
        cond_seq_dim=WIDTH,
        max_seq=64,
    )
    return {
        "config": config,
        "tokenizer": aura_t5.AuraT5Tokenizer,
        "encoder": aura_t5.AuraT5Model,
        "encoders": {"pile_t5xl_model_config": SMALL_T5},
    }


def t5_pixart() -> dict:
    """T5 without padding."""
    import comfy.text_encoders.pixart_t5 as pixart_t5

    config = network(
        "PixArtSigma",
        image_model="pixart_sigma",
        input_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=64,
        depth=2,
        num_heads=2,
        mlp_ratio=2.0,
        caption_channels=WIDTH,
        model_max_length=300,
        micro_condition=False,
        pe_interpolation=1,
    )
    return {
        "config": config,
        "tokenizer": pixart_t5.PixArtTokenizer,
        "encoder": pixart_t5.pixart_te(),
    }


def qwen3_ovis() -> dict:
    """The output for its template is cut off."""
    import comfy.text_encoders.ovis as ovis

    config, _, _ = LAYOUTS["flux"]()
    config.unet_config |= {"vec_in_dim": None, "guidance_embed": False, "yak_mlp": True}
    return {
        "config": config,
        "tokenizer": ovis.OvisTokenizer,
        "encoder": ovis.te(),
        "encoders": {"qwen3_2b_model_config": LLAMA},
    }


def qwen_longcat() -> dict:
    """Qwen 2.5 VL. The output for its template is cut off on both sides."""
    import comfy.text_encoders.longcat_image as longcat_image

    flux, _, _ = LAYOUTS["flux"]()
    sizes = {**flux.unet_config, "vec_in_dim": None, "guidance_embed": False}
    return {
        "config": network("LongCatImage", **{**sizes, "txt_ids_dims": [1, 2]}),
        "tokenizer": longcat_image.LongCatImageTokenizer,
        "encoder": with_small_eye(longcat_image.te()),
        "encoders": {"qwen25_7b_model_config": LLAMA},
    }


def gemma2_pixeldit() -> dict:
    """Of a long template with the prompt, the first token and the last 299; no autoencoder."""
    import comfy.text_encoders.pixeldit as pixeldit

    config = network(
        "PixelDiTT2I",
        image_model="pixeldit_t2i",
        num_groups=2,
        hidden_size=64,
        pixel_hidden_size=4,
        pixel_attn_hidden_size=32,
        pixel_num_groups=2,
        patch_depth=2,
        pixel_depth=1,
        patch_size=16,
        txt_embed_dim=WIDTH,
    )
    return {
        "config": config,
        "tokenizer": pixeldit.PixelDiTGemma2Tokenizer,
        "encoder": pixeldit.pixeldit_te(),
        "tokenizer_data": {"spiece_model": sentencepiece_model()},
        "encoders": {
            "gemma2_2b_model_config": {**LLAMA, "num_hidden_layers": 2, "vocab_size": 300}
        },
    }


def ministral_ernie() -> dict:
    import comfy.text_encoders.ernie as ernie

    config = network(
        "ErnieImage",
        image_model="ernie",
        hidden_size=64,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=64,
        text_in_dim=WIDTH,
        rope_axes_dim=(8, 12, 12),
    )
    return {
        "config": config,
        "tokenizer": with_small_mistral_tokenizer(ernie.ErnieTokenizer),
        "encoder": ernie.te(),
        "encoders": {"ministral3_3b_model_config": LLAMA},
    }


def jina_tokenizer() -> torch.Tensor:
    return sentencepiece_model(pads=1, ends=2, begins=0)


def gemma3_newbie() -> dict:
    """Gemma 3 for the token vectors, and Jina CLIP for the pooled vector."""
    import comfy.text_encoders.newbie as newbie

    # The host has no name of its own for either, so they share their sizes.
    both = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 300,
    }
    return {
        "config": network("Lumina2", **SMALL_LUMINA, clip_text_dim=WIDTH),
        "tokenizer": newbie.NewBieTokenizer,
        "encoder": newbie.te(),
        "tokenizer_data": {
            "gemma_spiece_model": sentencepiece_model(),
            "jina_spiece_model": jina_tokenizer(),
        },
        "encoders": {"_model_config": both},
    }


def gpt_oss_lens() -> dict:
    """Experts instead of feed-forward layers. Four layers are read, and the output for the template
    before the prompt is cut off."""
    import comfy.text_encoders.gpt_oss as gpt_oss

    config = network(
        "Lens",
        image_model="lens",
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        enc_hidden_dim=WIDTH,
        axes_dims_rope=(8, 12, 12),
        selected_layer_index=(0, 1, 2, 3),
    )
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
    }
    template = gpt_oss._lens_render_chat("")
    before, _, _ = template.partition("<|end|><|start|>assistant")
    special = sorted(set(re.findall(r"<\|\w+\|>", template)))
    words = [*WORDS, *re.findall(r"\w+", template)]
    encoder = gpt_oss.lens_te()

    def with_weights(**options: Any) -> torch.nn.Module:
        """Give the layers weights; they have none before a file is loaded."""
        built = encoder(**options)
        for layer in built.modules():
            if hasattr(layer, "out_features") and getattr(layer, "weight", None) is None:
                shape = getattr(layer, "_orig_shape", (layer.out_features, layer.in_features))
                layer.weight = torch.nn.Parameter(torch.empty(shape), requires_grad=False)
        return built.requires_grad_(False)

    return {
        "config": config,
        "tokenizer": gpt_oss.LensTokenizer,
        "encoder": with_weights,
        "tokenizer_data": {"tokenizer_json": tokenizer_json(special, words)},
        "encoders": {
            "gpt_oss_config": sizes,
            "selected_layers": (0, 1, 2, 3),
            "txt_offset": len(byte_level(special, words).encode(before)),
        },
    }


def clip_g_cascade() -> dict:
    """CLIP-G, read at its last layer without the final norm, and its pooled vector."""
    config = network(
        "Stable_Cascade_C",
        stable_cascade_stage="c",
        c_r=8,
        c_cond=32,
        c_hidden=[32, 32],
        nhead=[2, 2],
        blocks=[[1, 1], [1, 1]],
        c_clip_text=32,
        c_clip_text_pooled=32,
    )
    target = config.clip_target()
    return {"config": config, "tokenizer": target.tokenizer, "encoder": target.clip}


def clip_g_refiner() -> dict:
    """CLIP-G, read one layer early, and its pooled vector, which goes through all layers."""
    config = network(
        "SDXLRefiner",
        **SMALL_UNET,
        model_channels=64,
        transformer_depth=[0, 1],
        transformer_depth_middle=1,
        transformer_depth_output=[0, 0, 1, 1],
        use_linear_in_transformer=True,
        context_dim=32,
        num_classes="sequential",
        adm_in_channels=32 + 5 * 256,
    )
    target = config.clip_target()
    return {"config": config, "tokenizer": target.tokenizer, "encoder": target.clip}


# Encoders that the host uses to write text, or as a part of other encoders. They get a denoiser of
# their width too.


def read_by_wan(tokenizer: Any, encoder: Any, encoders: dict, **tokenizer_data: Any) -> dict:
    config, _, _ = LAYOUTS["wan"]()
    return {
        "config": config,
        "tokenizer": tokenizer,
        "encoder": encoder,
        "encoders": encoders,
        "tokenizer_data": tokenizer_data,
    }


def qwen35() -> dict:
    """Most of its layers have linear attention, computed as a recurrence."""
    import comfy.text_encoders.qwen35 as qwen35

    sizes = {
        **LLAMA,
        "num_hidden_layers": 5,
        "layer_types": qwen35._qwen35_layer_types(5),
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    }

    def build(**options: Any) -> torch.nn.Module:
        with replaced(qwen35.QWEN35_VISION_DEFAULTS, **SMALL_EYE):
            return qwen35.te()(**options)

    return read_by_wan(qwen35.tokenizer(), build, {"qwen35_2b_model_config": sizes})


def qwen3vl() -> dict:
    import comfy.text_encoders.qwen3vl as qwen3vl

    encoder = with_small_qwen3_eye(qwen3vl.te())
    return read_by_wan(qwen3vl.tokenizer(), encoder, {"qwen3vl_8b_model_config": LLAMA})


def jina_clip() -> dict:
    import comfy.text_encoders.jina_clip_2 as jina

    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "vocab_size": 300,
    }
    return read_by_wan(
        jina.JinaClip2TokenizerWrapper,
        jina.JinaClip2TextModelWrapper,
        {"jina_clip_2_model_config": sizes},
        spiece_model=jina_tokenizer(),
    )


OTHERS: dict[str, Callable[[], dict]] = {
    "Mistral, Flux 2": mistral_flux2,
    "Mistral pruned, Flux 2": pruned_mistral_flux2,
    "Qwen 3 8B, Flux 2 Klein": qwen3_8b_flux2,
    "Qwen 3 VL, Ideogram 4": qwen3vl_ideogram,
    "Qwen 3 VL without eye, Ideogram 4": qwen3_ideogram,
    "Qwen 3 VL, Krea 2": qwen3vl_krea,
    "Qwen 3 VL, Boogu": qwen3vl_boogu,
    "Qwen 3 VL, Mage-Flow": qwen3vl_mage_flow,
    "Qwen 3 VL, JoyImage": qwen3vl_joyimage,
    "T5, Mochi": t5_mochi,
    "T5 1.0, Cosmos": t5_cosmos,
    "T5 1.0, Cosmos Predict 2": t5_cosmos_predict2,
    "Qwen 2.5 VL and ByT5, HunyuanImage": qwen_hunyuan_image,
    "Pile T5, AuraFlow": t5_aura_flow,
    "T5, PixArt": t5_pixart,
    "Qwen 3 2B, Ovis": qwen3_ovis,
    "Qwen 2.5 VL, LongCat": qwen_longcat,
    "Gemma 2, PixelDiT": gemma2_pixeldit,
    "Ministral, Ernie": ministral_ernie,
    "Gemma 3 and Jina CLIP, NewBie": gemma3_newbie,
    "GPT-OSS, Lens": gpt_oss_lens,
    "CLIP-G, Stable Cascade": clip_g_cascade,
    "CLIP-G, SDXL refiner": clip_g_refiner,
    "Qwen 3 VL": qwen3vl,
    "Qwen 3.5": qwen35,
    "Jina CLIP": jina_clip,
}


# What is refused


def mt5_bert_hunyuan_dit() -> dict:
    import comfy.text_encoders.hydit as hydit

    bert = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    sizes = {
        "hydit_clip_model_config": bert,
        "mt5xl_model_config": {**SMALL_T5, "vocab_size": 300},
    }
    data = {"mt5xl.spiece_model": sentencepiece_model()}
    return read_by_wan(hydit.HyditTokenizer, hydit.HyditModel, sizes, **data)


def qwen3vl_minimax() -> dict:
    import comfy.text_encoders.minimax as minimax

    encoder = with_small_qwen3_eye(minimax.te())
    sizes = {"qwen3vl_32b_model_config": LLAMA}
    return read_by_wan(minimax.MiniMaxH3Tokenizer, encoder, sizes)


def gemma4() -> dict:
    import comfy.text_encoders.gemma4 as gemma4

    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 300,
    }
    kind = gemma4.Gemma4_31B
    eye = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "head_dim": 16,
    }

    def build(**options: Any) -> torch.nn.Module:
        with replaced(gemma4.GEMMA4_VISION_31B_CONFIG, **eye):
            return gemma4.gemma4_te(model_class=kind)(**options)

    sizes = {"gemma4_model_config": sizes}
    return read_by_wan(
        kind.tokenizer,
        build,
        sizes,
        tokenizer_json=tokenizer_json(["<pad>", "<eos>", "<bos>"], WORDS),
    )


def with_small_gemma3_eye(encoder: Callable) -> Callable:
    """Make Gemma 3's picture encoder small. The host fixes it at a width of 1152 and 27 layers."""
    import comfy.text_encoders.llama as llama

    def build(**options: Any) -> torch.nn.Module:
        small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
        with replaced(llama.GEMMA3_VISION_CONFIG, **small, num_hidden_layers=2):
            return encoder(**options)

    return build


def gemma3_with_eye() -> dict:
    import comfy.text_encoders.lumina2 as lumina2

    encoder = with_small_gemma3_eye(lumina2.te(model_type="gemma3_4b_vision"))
    sizes = {"gemma3_4b_vision_model_config": {**LLAMA, "vocab_size": 300}}
    return read_by_wan(lumina2.NTokenizer, encoder, sizes, spiece_model=sentencepiece_model())


def gemma3_alone() -> dict:
    """The parts of LTX 2's encoder."""
    import comfy.text_encoders.lt as lt

    encoder = with_small_gemma3_eye(lt.gemma3_te())
    sizes = {"_model_config": {**LLAMA, "vocab_size": 300}}
    return read_by_wan(lt.Gemma3_12BTokenizer, encoder, sizes, spiece_model=sentencepiece_model())


MORE = r"gives more than one vector .* \({}\), as those of HiDream and Anima do"
WRITES = "makes no conditioning that a MODEL could read: ComfyUI uses it to write text"
REFUSED: dict[str, tuple[Callable[[], dict], str]] = {
    "mT5 and BERT, HunyuanDiT": (
        mt5_bert_hunyuan_dit,
        MORE.format("conditioning_mt5xl, attention_mask_mt5xl"),
    ),
    "Qwen 3 VL, MiniMax H3": (qwen3vl_minimax, MORE.format("minimax_token_tags")),
    "Gemma 4": (gemma4, WRITES),
    "Gemma 3 with eye": (gemma3_with_eye, WRITES),
    "Gemma 3 alone, LTX-2": (gemma3_alone, WRITES),
}


def build(name: str) -> Loaded:
    layout = OTHERS[name] if name in OTHERS else REFUSED[name][0]
    with where_present(name):
        loaded = assemble(name, **layout())
    # By default they pad a prompt to up to 512 tokens.
    for encoder in ("t5xxl", "pile_t5xl", "qwen3_8b", "qwen3_2b"):
        loaded.clip.set_tokenizer_option(f"{encoder}_min_length", 32)
    return loaded
