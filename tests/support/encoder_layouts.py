"""Each kind of the host's text encoders, in a small size, with a small denoiser that reads it.

Widths are small and layers few. The host's own code decides which layers are read, which tokens are
cut off, what else the denoiser gets and how prompts are tokenized. If a tokenizer comes with the
encoder's file and not with the host, one is trained here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from layouts import (
    LAYOUTS,
    SMALL_CLIP,
    SMALL_ENCODERS,
    SMALL_FLUX,
    SMALL_T5,
    SMALL_UNET,
    Loaded,
    assemble,
    fill,
    sd3,
    where_present,
)

WIDTH = 32
LLAMA = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@cache
def sentencepiece_model(pads: int = 0, ends: int = 1, begins: int = 2) -> torch.Tensor:
    """A tokenizer of the kind that T5 and Gemma have."""
    import sentencepiece

    words = "a photo picture painting drawing in the style of cat dog fox red ink old new house"
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([words, *words.split()]),
        model_writer=model,
        vocab_size=200,
        hard_vocab_limit=False,
        model_type="bpe",
        pad_id=pads,
        eos_id=ends,
        bos_id=begins,
        unk_id=3,
        minloglevel=2,
    )
    return torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)


def network(kind: str, **unet_config: Any) -> Any:
    import comfy.supported_models

    return getattr(comfy.supported_models, kind)(unet_config)


def open_clip_h() -> dict:
    """SD 2: the last layer but one, with the final norm."""
    config = network(
        "SD20",
        **SMALL_UNET,
        model_channels=64,
        transformer_depth=[1, 1],
        transformer_depth_middle=1,
        transformer_depth_output=[1, 1, 1, 1],
        use_linear_in_transformer=True,
        context_dim=32,
        adm_in_channels=None,
    )
    target = config.clip_target()
    return {
        "config": config,
        "tokenizer": target.tokenizer,
        "encoder": target.clip,
        "encoders": {"clip_h_model_config": SMALL_CLIP},
    }


def t5_sd3() -> dict:
    """T5 alone. Together with CLIP's encoders the host needs its full width."""
    import comfy.text_encoders.sd3_clip as sd3_clip

    config, tokenizer, _ = sd3()
    config.unet_config["adm_in_channels"] = 768 + 1280
    config.unet_config["context_embedder_config"]["params"]["in_features"] = WIDTH
    encoder = sd3_clip.sd3_clip(clip_l=False, clip_g=False)
    return {"config": config, "tokenizer": tokenizer, "encoder": encoder}


def t5_cogvideo() -> dict:
    import comfy.text_encoders.cogvideo as cogvideo

    config = network(
        "CogVideoX_T2V",
        image_model="cogvideox",
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        time_embed_dim=32,
        text_embed_dim=WIDTH,
        use_rotary_positional_embeddings=True,
    )
    encoder = cogvideo.cogvideo_te()
    return {"config": config, "tokenizer": cogvideo.CogVideoXTokenizer, "encoder": encoder}


def umt5_wan() -> dict:
    import comfy.text_encoders.wan as wan

    config, _, encoder = LAYOUTS["wan"]()
    return {
        "config": config,
        "tokenizer": wan.WanT5Tokenizer,
        "encoder": encoder,
        "tokenizer_data": {"spiece_model": sentencepiece_model()},
    }


def llama_hunyuan_video() -> dict:
    """Llama, read two layers early, with its template cut off; only the pooled vector of CLIP-L."""
    import comfy.text_encoders.hunyuan_video as hunyuan

    config = network(
        "HunyuanVideo",
        **SMALL_FLUX,
        image_model="hunyuan_video",
        in_channels=16,
        out_channels=16,
        patch_size=[1, 2, 2],
        vec_in_dim=32,
        axes_dim=[8, 12, 12],
        theta=256,
        qkv_bias=True,
        byt5=False,
        meanflow=False,
        use_cond_type_embedding=False,
        vision_in_dim=None,
        meanflow_sum=False,
    )
    return {
        "config": config,
        "tokenizer": hunyuan.HunyuanVideoTokenizer,
        "encoder": hunyuan.hunyuan_video_clip(),
        "encoders": {"llama_model_config": LLAMA},
    }


def qwen_image() -> dict:
    """Qwen 2.5 VL, which has a picture encoder too. The output for its template is cut off."""
    import comfy.text_encoders.qwen_image as qwen

    config = network(
        "QwenImage",
        image_model="qwen_image",
        in_channels=64,
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 12, 12),
    )
    return {
        "config": config,
        "tokenizer": qwen.QwenImageTokenizer,
        "encoder": with_small_eye(qwen.te()),
        "encoders": {"qwen25_7b_model_config": LLAMA},
    }


def with_small_eye(encoder: Callable) -> Callable:
    """Make Qwen 2.5 VL's picture encoder small. The host fixes its size at 1280 by 32 layers."""
    import comfy.text_encoders.qwen_vl as qwen_vl

    def build(**options: Any) -> torch.nn.Module:
        full = qwen_vl.Qwen2VLVisionTransformer

        def small(**sizes: Any) -> torch.nn.Module:
            small = {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "num_layers": 2}
            return full(**{**sizes, **small})

        qwen_vl.Qwen2VLVisionTransformer = small
        try:
            return encoder(**options)
        finally:
            qwen_vl.Qwen2VLVisionTransformer = full

    return build


def qwen_hunyuan_video_15() -> dict:
    """Qwen 2.5 VL, read two layers early. ByT5 is used only for quoted text in a prompt."""
    import comfy.text_encoders.hunyuan_image as hunyuan_image
    import comfy.text_encoders.hunyuan_video as hunyuan_video

    config = network(
        "HunyuanVideo15",
        **SMALL_FLUX,
        image_model="hunyuan_video",
        in_channels=65,
        out_channels=32,
        patch_size=[1, 1, 1],
        vec_in_dim=None,
        axes_dim=[8, 12, 12],
        theta=256,
        qkv_bias=True,
        byt5=False,
        meanflow=False,
        use_cond_type_embedding=False,
        vision_in_dim=None,
        meanflow_sum=False,
    )
    return {
        "config": config,
        "tokenizer": hunyuan_video.HunyuanVideo15Tokenizer,
        "encoder": with_small_eye(hunyuan_image.te()),
        # The host has no name of its own for ByT5.
        "encoders": {"qwen25_7b_model_config": LLAMA, "_model_config": SMALL_T5},
    }


def qwen_kandinsky() -> dict:
    """Qwen 2.5 VL, read to its last layer, and only the pooled vector of CLIP-L."""
    import comfy.text_encoders.kandinsky5 as kandinsky5

    config = network(
        "Kandinsky5",
        image_model="kandinsky5",
        model_dim=64,
        ff_dim=64,
        time_dim=32,
        in_text_dim=WIDTH,
        in_text_dim2=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(8, 12, 12),
    )
    return {
        "config": config,
        "tokenizer": kandinsky5.Kandinsky5Tokenizer,
        "encoder": with_small_eye(kandinsky5.te()),
        "encoders": {"qwen25_7b_model_config": LLAMA},
    }


def qwen25_omnigen2() -> dict:
    import comfy.text_encoders.omnigen2 as omnigen2

    config = network(
        "Omnigen2",
        image_model="omnigen2",
        axes_dim_rope=[8, 12, 12],
        axes_lens=[300, 64, 64],
        hidden_size=64,
        num_attention_heads=2,
        num_kv_heads=1,
        num_layers=2,
        num_refiner_layers=1,
        multiple_of=32,
        text_feat_dim=WIDTH,
        timestep_scale=1000.0,
    )
    return {
        "config": config,
        "tokenizer": omnigen2.Omnigen2Tokenizer,
        "encoder": omnigen2.te(),
        "encoders": {"qwen25_3b_model_config": LLAMA},
    }


SMALL_LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "cap_feat_dim": WIDTH,
    "dim": 64,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 1,
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.0,
    "qk_norm": True,
    "axes_dims": [8, 12, 12],
    "axes_lens": [300, 64, 64],
}


def qwen3_z_image() -> dict:
    import comfy.text_encoders.z_image as z_image

    config = network(
        "ZImage",
        **{**SMALL_LUMINA, "dim": 256, "axes_dims": [32, 48, 48]},
        z_image_modulation=True,
        time_scale=1000.0,
        pad_tokens_multiple=32,
    )
    return {
        "config": config,
        "tokenizer": z_image.ZImageTokenizer,
        "encoder": z_image.te(),
        "encoders": {"qwen3_4b_model_config": LLAMA},
    }


def qwen3_flux2() -> dict:
    """Flux 2 Klein reads three inner layers; the last one is the input of layer 27."""
    import comfy.text_encoders.flux as flux_encoders

    config, _, _ = LAYOUTS["flux2"]()
    config.unet_config["context_in_dim"] = 3 * WIDTH
    return {
        "config": config,
        "tokenizer": flux_encoders.KleinTokenizer,
        "encoder": flux_encoders.klein_te(),
        "encoders": {"qwen3_4b_model_config": {**LLAMA, "num_hidden_layers": 29}},
    }


def gemma2_lumina() -> dict:
    import comfy.text_encoders.lumina2 as lumina2

    return {
        "config": network("Lumina2", **SMALL_LUMINA),
        "tokenizer": lumina2.LuminaTokenizer,
        "encoder": lumina2.te(),
        "tokenizer_data": {"spiece_model": sentencepiece_model()},
        "encoders": {"gemma2_2b_model_config": {**LLAMA, "vocab_size": 300}},
    }


def gemma3_lumina() -> dict:
    import comfy.text_encoders.lumina2 as lumina2

    return {
        "config": network("Lumina2", **SMALL_LUMINA),
        "tokenizer": lumina2.NTokenizer,
        "encoder": lumina2.te(model_type="gemma3_4b"),
        "tokenizer_data": {"spiece_model": sentencepiece_model()},
        "encoders": {"gemma3_4b_model_config": {**LLAMA, "vocab_size": 300}},
    }


def gemma3_ltx2() -> dict:
    """Gemma 3, of which every layer is read, and a denoiser for pictures and sound."""
    import comfy.text_encoders.llama as llama
    import comfy.text_encoders.lt as lt

    class SmallProjection(lt.LTXAVTEModel):
        """The host's class has fixed sizes: 49 layers of width 3840."""

        def __init__(self, device="cpu", dtype=None, model_options={}) -> None:  # noqa: B006
            torch.nn.Module.__init__(self)
            self.dtypes, self.compat_mode = {dtype}, False
            self.text_projection_type = "single_linear"
            sizes, full = llama.Gemma3_12B_Config, llama.GEMMA3_VISION_CONFIG
            small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
            sizes.vision_config = {**full, **small, "num_attention_heads": 2}
            try:
                self.gemma3_12b = lt.Gemma3_12BModel(
                    device=device, dtype=dtype, model_options=model_options
                )
            finally:
                sizes.vision_config = full
            layers = LLAMA["num_hidden_layers"] + 1
            linear = self.gemma3_12b.operations.Linear
            self.text_embedding_projection = linear(
                WIDTH * layers, WIDTH, bias=False, dtype=dtype, device=device
            )

    config = network(
        "LTXAV",
        image_model="ltxav",
        in_channels=128,
        cross_attention_dim=WIDTH,
        audio_cross_attention_dim=WIDTH,
        attention_head_dim=16,
        audio_attention_head_dim=16,
        num_attention_heads=2,
        audio_num_attention_heads=2,
        caption_channels=WIDTH,
        connector_attention_head_dim=16,
        connector_num_attention_heads=2,
        num_layers=2,
    )
    return {
        "config": config,
        "tokenizer": lt.LTXAVGemmaTokenizer,
        "encoder": SmallProjection,
        "tokenizer_data": {"spiece_model": sentencepiece_model()},
        "encoders": {"_model_config": {**LLAMA, "vocab_size": 300}},
    }


def of_layout(name: str) -> Callable[[], dict]:
    return lambda: dict(zip(("config", "tokenizer", "encoder"), LAYOUTS[name]()))


ENCODERS: dict[str, Callable[[], dict]] = {
    "CLIP-L, SD 1.5": of_layout("sd15"),
    "CLIP-L and CLIP-G, SDXL": of_layout("sdxl"),
    "CLIP-L and CLIP-G, SD 3": of_layout("sd3"),
    "OpenCLIP-H, SD 2": open_clip_h,
    "T5, SD 3": t5_sd3,
    "CLIP-L and T5, Flux": of_layout("flux"),
    "T5, LTX": of_layout("ltxv"),
    "T5, CogVideoX": t5_cogvideo,
    "UMT5, Wan": umt5_wan,
    "Llama and CLIP-L, HunyuanVideo": llama_hunyuan_video,
    "Qwen 2.5 VL, Qwen-Image": qwen_image,
    "Qwen 2.5 VL and ByT5, HunyuanVideo 1.5": qwen_hunyuan_video_15,
    "Qwen 2.5 VL and CLIP-L, Kandinsky 5": qwen_kandinsky,
    "Qwen 2.5, OmniGen 2": qwen25_omnigen2,
    "Qwen 3, Z-Image": qwen3_z_image,
    "Qwen 3, Flux 2 Klein": qwen3_flux2,
    "Gemma 2, Lumina 2": gemma2_lumina,
    "Gemma 3, Lumina 2": gemma3_lumina,
    "Gemma 3, LTX-2": gemma3_ltx2,
}


def build(name: str) -> Loaded:
    with where_present(name):
        loaded = assemble(name, **ENCODERS[name]())
    # By default they pad a prompt to up to 512 tokens.
    for encoder in ("t5xxl", "umt5xxl", "qwen3_4b"):
        loaded.clip.set_tokenizer_option(f"{encoder}_min_length", 32)
    return loaded


def quantised(form: str) -> Loaded:
    """LTX with its T5 stored in `form`: plain fp8, or one of the host's formats with scales."""
    import comfy.quant_ops
    import comfy.sd
    import comfy.text_encoders.lt as lt
    from comfy.supported_models_base import ClipTarget

    full = build("T5, LTX")
    weights = full.clip.cond_stage_model.t5xxl.transformer.state_dict()
    if form == "fp8":
        stored = {key: weight.to(torch.float8_e4m3fn) for key, weight in weights.items()}
        encoder = lt.ltxv_te(dtype_t5=torch.float8_e4m3fn)
    else:
        layout = comfy.quant_ops.QUANT_ALGOS[form]["comfy_tensor_layout"]
        how = torch.frombuffer(bytearray(json.dumps({"format": form}).encode()), dtype=torch.uint8)
        stored = {}
        for key, weight in weights.items():
            stored[key] = weight
            if weight.ndim == 2 and "block" in key and "bias" not in key:
                few = comfy.quant_ops.QuantizedTensor.from_float(weight, layout)
                stored |= few.state_dict(key)
                stored[key.removesuffix("weight") + "comfy_quant"] = how
        encoder = lt.ltxv_te(t5_quantization_metadata={"mixed_ops": True})
    clip = comfy.sd.CLIP(
        ClipTarget(lt.LTXVT5Tokenizer, encoder), model_options=SMALL_ENCODERS, state_dict=[stored]
    )
    return Loaded(form, full.model, clip)


def text_encoder(tokenizer: Any, encoder: Any, encoders: dict, **tokenizer_data: Any) -> Any:
    """Only a CLIP, with random weights."""
    import comfy.sd
    from comfy.supported_models_base import ClipTarget

    clip = comfy.sd.CLIP(
        ClipTarget(tokenizer, encoder),
        tokenizer_data=tokenizer_data,
        model_options={**SMALL_ENCODERS, **encoders},
    )
    generator = torch.Generator().manual_seed(0)
    for weight in clip.cond_stage_model.parameters():
        fill(weight, generator)
    return clip
