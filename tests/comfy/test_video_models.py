"""docs/video_models.md says of each video model what the host's own classes say."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import ROOT

PAGE = ROOT / "docs" / "video_models.md"
SMALL_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
}
# A row of the page, to the host's classes of such models and to what its loaders build of the files
# of their text encoder.
ROWS = {
    "AnimateDiff on SD 1.5": (("SD15",), "sd1_clip.SD1ClipModel"),
    "AnimateDiff on SDXL, HotshotXL": (("SDXL",), "sdxl_clip.SDXLClipModel"),
    "HunyuanVideo": (
        ("HunyuanVideo", "HunyuanVideoI2V"),
        "text_encoders.hunyuan_video.hunyuan_video_clip",
    ),
    "HunyuanVideo 1.5": (("HunyuanVideo15",), "text_encoders.hunyuan_image.te"),
    "Kandinsky 5": (("Kandinsky5",), "text_encoders.kandinsky5.te"),
    "Wan 2.1, Wan 2.2": (
        ("WAN21_T2V", "WAN21_I2V", "WAN21_Vace", "WAN22_T2V"),
        "text_encoders.wan.te",
    ),
    "LTX-Video": (("LTXV",), "text_encoders.lt.ltxv_te"),
    "LTX-2": (("LTXAV",), "text_encoders.lt.ltxav_te"),
    "Mochi": (("GenmoMochi",), "text_encoders.genmo.mochi_te"),
    "CogVideoX": (("CogVideoX_T2V", "CogVideoX_I2V"), "text_encoders.cogvideo.cogvideo_te"),
    "Cosmos 1, Cosmos Predict 2": (("CosmosT2V", "CosmosT2IPredict2"), "text_encoders.cosmos.te"),
    "MiniMax H3": (("MiniMaxH3",), "text_encoders.minimax.te"),
    "Stable Video Diffusion": (("SVD_img2vid",), ""),
    "SeedVR2": (("SeedVR2",), ""),
}
# Their latents have room for frames, and they make pictures.
PICTURES = ("Anima", "HunyuanImage21Refiner", "JoyImage", "Krea2", "QwenImage")
CLIP_L = "clip_l"


def rows() -> dict[str, list[str]]:
    """The page's table: the model's name, without what it is run by, to the other cells."""
    table = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    return {first.partition(" (")[0]: rest for first, *rest in cells}


def named(name: str) -> Callable:
    """comfy.<name>."""
    module, _, attribute = name.rpartition(".")
    return getattr(__import__(f"comfy.{module}", fromlist=[attribute]), attribute)


def encoder(name: str, **options: Any) -> torch.nn.Module:
    """What a loader builds, without room for its weights unless options name a device."""
    build = named(name)
    if inspect.isfunction(build):
        build = build()
    return build(**{"device": "meta", "dtype": torch.float16, **options})


def encoders(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The text encoders in it by their names."""
    from comfy.sd1_clip import SDClipModel

    return {
        name: child for name, child in module.named_children() if isinstance(child, SDClipModel)
    }


def test_page_has_just_these_rows() -> None:
    assert set(rows()) == set(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_host_has_the_model(host: ModuleType, row: str) -> None:
    import comfy.supported_models

    for name in ROWS[row][0]:
        assert getattr(comfy.supported_models, name) in comfy.supported_models.models


def test_page_misses_none_of_the_hosts_video_models(host: ModuleType) -> None:
    import comfy.supported_models as supported

    known = [getattr(supported, name) for classes, _ in ROWS.values() for name in classes]
    pictures = [getattr(supported, name) for name in PICTURES]
    missing = [
        model.__name__
        for model in supported.models
        if model.latent_format().latent_dimensions == 3
        and model not in pictures
        and not issubclass(model, tuple(known))
    ]
    assert not missing, f"Give {', '.join(missing)} a row in docs/video_models.md, or say it draws."


@pytest.mark.parametrize("row", [row for row, (_, built) in ROWS.items() if built])
def test_encoders_are_those_named(host: ModuleType, row: str) -> None:
    found = encoders(encoder(ROWS[row][1]))
    written, reached, _ = rows()[row]
    assert sorted(written.replace("`", "").split(", ")) == sorted(found)
    # Wholly, where CLIP-L is all there is; in part or hardly, where it is one of several.
    answer = "reaches" if set(found) == {CLIP_L} else "no" if CLIP_L not in found else None
    if answer:
        assert reached.split()[0].strip(":;") == answer
    else:
        assert reached.split()[0] in ("hardly:", "not")


@pytest.mark.parametrize("row", [row for row, (_, built) in ROWS.items() if not built])
def test_some_read_no_text(host: ModuleType, row: str) -> None:
    import comfy.supported_models

    for name in ROWS[row][0]:
        assert getattr(comfy.supported_models, name)({}).clip_target() is None
    assert rows()[row][0] == "none"


def test_sdxl_reads_another_layer_of_clip_l(host: ModuleType) -> None:
    one, several = (
        encoders(encoder(ROWS[row][1]))[CLIP_L]
        for row in ("AnimateDiff on SD 1.5", "AnimateDiff on SDXL, HotshotXL")
    )
    assert one.layer == "last"
    assert (several.layer, several.layer_idx) == ("hidden", -2)


def test_t5_has_the_same_weights_wherever_it_is(host: ModuleType) -> None:
    rows_of_t5 = [row for row, cells in rows().items() if cells[0] == "`t5xxl`"]
    assert len(rows_of_t5) == 4
    shapes = [
        {k: v.shape for k, v in encoder(ROWS[row][1]).t5xxl.state_dict().items()}
        for row in rows_of_t5
        if "Cosmos" not in row
    ]
    assert shapes[0]
    assert all(some == shapes[0] for some in shapes)
    cosmos = encoder(ROWS["Cosmos 1, Cosmos Predict 2"][1]).t5xxl.state_dict()
    assert {k: v.shape for k, v in cosmos.items()} != shapes[0]


def test_clip_l_gives_hunyuan_video_one_vector_alone(host: ModuleType) -> None:
    """With small random weights: a change of CLIP-L leaves the words as they were."""
    small_llama = {
        "vocab_size": 128320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    options = {"clip_l_model_config": SMALL_CLIP, "llama_model_config": small_llama}
    with torch.no_grad():
        made = encoder(
            ROWS["HunyuanVideo"][1], device="cpu", dtype=torch.float32, model_options=options
        )
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        tokens = named("text_encoders.hunyuan_video.HunyuanVideoTokenizer")().tokenize_with_weights(
            "a photo of a fox"
        )
        words, vector, _ = made.encode_token_weights(tokens)
        made.clip_l.transformer.text_model.encoder.layers[-1].mlp.fc1.weight.mul_(2)
        same, other, _ = made.encode_token_weights(tokens)
    assert words.ndim == 3
    assert vector.shape == (1, SMALL_CLIP["hidden_size"])
    assert torch.equal(words, same)
    assert not torch.allclose(vector, other, rtol=1e-3)
