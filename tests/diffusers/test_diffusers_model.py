"""The diffusers backend: alone, and against ComfyUI's on the same weights.

IconCanvas, the trained model, is loaded in both. Small pipelines with random weights stand for the
layouts that it does not have: XL with its two encoders, and AnimateDiff.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from testbed.model import samples
from testbed.motion import pipeline as diffusers_pipeline
from unlearn.cli.pictures import batch, read_pictures
from unlearn.core.conditioning import Conditioning
from unlearn.core.denoising import denoising_loss
from unlearn.core.edit import Edit
from unlearn.core.erasure import NETWORK, Erasure, ErasureError
from unlearn.diffusers_backend.apply import applied, base_warning
from unlearn.diffusers_backend.comfy_names import encoder_modules, network_modules, view
from unlearn.diffusers_backend.lora import loras, save_lora, save_peft
from unlearn.diffusers_backend.model import DiffusersModel
from unlearn.methods.domain_correction import DomainCorrectionSettings, domain_correction
from unlearn.methods.few_shot import FewShotSettings, few_shot
from unlearn.methods.key_step import key_step
from unlearn.methods.parts.key_step_settings import KeyStepSettings

pytestmark = pytest.mark.costly

PROMPTS = ["a photo of a cat", "", "two red mushrooms, ink style"]
SELECTIONS = {
    "encoder": ("mlp-final-attn", "mlp", "attention", "all"),
    "denoiser": ("cross-attention", "cross-attention-kv", "outside-cross-attention"),
}
FC1 = "clip_l.transformer.text_model.encoder.layers.2.mlp.fc1.weight"


class Broken(Exception):
    """Something that goes wrong in the middle of a training."""


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return diffusers_pipeline.pipeline()


@pytest.fixture(scope="module")
def model(pipeline: StableDiffusionPipeline) -> DiffusersModel:
    return DiffusersModel(pipeline)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    files = sorted(samples.FOLDER.glob("mushroom_*.png"))
    return batch(read_pictures(files), (128, 128))


@pytest.fixture(scope="module")
def erasure(model: DiffusersModel, pictures: torch.Tensor) -> Erasure:
    return few_shot(model, ["mushroom"], pictures, FewShotSettings(max_steps=3))


@pytest.fixture(scope="module")
def low_rank(model: DiffusersModel, pictures: torch.Tensor) -> Erasure:
    return few_shot(model, ["mushroom"], pictures, FewShotSettings(max_steps=3, rank=4))


def noisy(
    model: Any, count: int, seed: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x0, noise, t, x_t), the timesteps spread over the schedule, some between two of it."""
    generator = torch.Generator().manual_seed(seed)
    x0, noise = model.noise(count, generator), model.noise(count, generator)
    t = torch.linspace(1.0, 990.25, count)
    return x0, noise, t, model.add_noise(x0, noise, t)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def random_erasure(model: DiffusersModel, part: str, select: str, rank: int = 0) -> Erasure:
    """Of all weights of a selection, a tenth of their size."""
    generator = torch.Generator().manual_seed(2)
    edit = Edit(model.selected(part, select), rank)
    for delta in edit.deltas.values():
        for parameter in delta.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(0.1 * noise * (delta.scale if delta.full is not None else 0.3))
    deltas = {key: delta.tensors() for key, delta in edit.deltas.items()}
    return Erasure(deltas, {"concepts": ["cat"], "base": model.fingerprints(deltas)})


def of_several_ranks(erasure: Erasure) -> Erasure:
    """Its changes cut down to ranks 1, 2 and 3, one after the other."""
    deltas = dict(erasure.deltas)
    low = [key for key, delta in deltas.items() if "lora_up" in delta]
    for i, key in enumerate(low):
        delta, rank = deltas[key], 1 + i % 3
        deltas[key] = {
            "lora_up": delta["lora_up"][:, :rank],
            "lora_down": delta["lora_down"][:rank],
        }
    return Erasure(deltas, erasure.record)


def conditioning(model: DiffusersModel, prompt: str = "a photo of a cat") -> torch.Tensor:
    with torch.no_grad():
        return model.encode([prompt]).cross


# Names


class Layout:
    """One network's plan as ComfyUI and as diffusers write it."""

    def __init__(self, host: dict, theirs: dict) -> None:
        self.host = {
            **{"image_size": 32, "in_channels": 4, "out_channels": 4, "legacy": False},
            **{"use_spatial_transformer": True, "num_head_channels": 32, "num_heads": -1},
            **host,
        }
        self.theirs = theirs


def blocks(*reads: bool) -> dict:
    """diffusers' names of the levels, by whether the prompt is read there."""
    kinds = ["CrossAttn" if read else "" for read in reads]
    return {
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
    }


LAYOUTS = {
    "sd15": Layout(
        {
            **{"model_channels": 320, "num_res_blocks": [2, 2, 2, 2], "context_dim": 768},
            **{"channel_mult": (1, 2, 4, 4), "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0]},
            **{"transformer_depth_middle": 1, "use_linear_in_transformer": False},
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        },
        {
            "cross_attention_dim": 768,
            "block_out_channels": (320, 640, 1280, 1280),
            **blocks(True, True, True, False),
        },
    ),
    "sdxl": Layout(
        {
            **{"model_channels": 320, "num_res_blocks": [2, 2, 2], "context_dim": 2048},
            **{"channel_mult": (1, 2, 4), "transformer_depth": [0, 0, 2, 2, 10, 10]},
            **{"transformer_depth_middle": 10, "use_linear_in_transformer": True},
            **{"num_classes": "sequential", "adm_in_channels": 2816},
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        },
        {
            "cross_attention_dim": 2048,
            "block_out_channels": (320, 640, 1280),
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
            **{"addition_embed_type": "text_time", "addition_time_embed_dim": 256},
            "projection_class_embeddings_input_dim": 2816,
            **blocks(False, True, True),
        },
    ),
    "iconcanvas": Layout(
        {
            **{"model_channels": 64, "num_res_blocks": [2, 2, 2, 2], "context_dim": 192},
            **{"channel_mult": (1, 2, 2, 1), "transformer_depth": [0, 0, 1, 1, 1, 1, 0, 0]},
            **{"transformer_depth_middle": 1, "use_linear_in_transformer": False},
            "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        },
        {
            "cross_attention_dim": 192,
            "block_out_channels": (64, 128, 128, 64),
            **blocks(False, True, True, False),
        },
    ),
    "two levels of three": Layout(
        {
            **{"model_channels": 32, "num_res_blocks": [3, 3], "context_dim": 32},
            **{"channel_mult": (1, 3), "transformer_depth": [1, 1, 1, 0, 0, 0]},
            **{"transformer_depth_middle": 1, "use_linear_in_transformer": False},
            "transformer_depth_output": [1, 1, 1, 1, 0, 0, 0, 0],
        },
        {
            "cross_attention_dim": 32,
            "block_out_channels": (32, 96),
            "layers_per_block": 3,
            **blocks(True, False),
        },
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_networks_weights_have_the_hosts_names_order_and_shapes(
    host: ModuleType, layout: Layout
) -> None:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    theirs = UNetModel(
        **layout.host,
        device="meta",
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    with torch.device("meta"):
        ours = view(network_modules(UNet2DConditionModel(**layout.theirs)))
    found = [(name, weight.shape) for name, weight in ours.named_parameters()]
    assert found == [(name, weight.shape) for name, weight in theirs.named_parameters()]


@pytest.mark.parametrize("with_projection", [False, True])
def test_encoders_weights_have_the_hosts_names_order_and_shapes(
    host: ModuleType, with_projection: bool
) -> None:
    import comfy.clip_model
    import comfy.ops

    config = clip_config(24, 3)
    theirs = comfy.clip_model.CLIPTextModel(
        config.to_dict(), torch.float32, "meta", comfy.ops.disable_weight_init
    )
    kind = CLIPTextModelWithProjection if with_projection else CLIPTextModel
    with torch.device("meta"):
        ours = view(encoder_modules(kind(config)))
    found = [(name, weight.shape) for name, weight in ours.named_parameters()]
    wanted = [(name, weight.shape) for name, weight in theirs.named_parameters()]
    # CLIP-L's projection is in no pipeline: nothing reads it.
    assert found == (wanted if with_projection else wanted[:-1])


def test_view_holds_the_pipelines_own_modules(model: DiffusersModel) -> None:
    middle = model.views["denoiser"].get_submodule("middle_block.1.transformer_blocks.0.attn2.to_k")
    assert middle is model.network.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    ids = {id(weight) for weight in model.weights.values()}
    assert ids == {
        id(weight)
        for module in (model.network, model.pipeline.text_encoder)
        for weight in module.parameters()
    }


def test_a_network_with_other_parts_is_refused(pipeline: StableDiffusionPipeline) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            **{**LAYOUTS["two levels of three"].theirs, "time_cond_proj_dim": 8}
        )
    with pytest.raises(ValueError, match=r"does not have, time_embedding\.cond_proj\.weight first"):
        network_modules(unet)


# The pipeline stays what it is


@pytest.mark.parametrize(
    ("part", "select"), [(part, one) for part, some in SELECTIONS.items() for one in some]
)
def test_off_and_over_is_the_original_bit_for_bit(
    model: DiffusersModel, part: str, select: str
) -> None:
    roots = (model.network, *(encoder for encoder, _ in model.encoders.values()))
    tables = [module._parameters for root in roots for module in root.modules()]
    before = [dict(table) for table in tables]
    kinds = [type(module) for root in roots for module in root.modules()]
    values = {key: weight.clone() for key, weight in model.weights.items()}
    _, _, t, x = noisy(model, 2)

    def outcome() -> torch.Tensor:
        with torch.no_grad():
            return model.predict(x, t, model.encode(PROMPTS[:2]))

    original = outcome()
    with pytest.raises(Broken), model.edit(part, select) as edit:  # noqa: PT012
        for delta in edit.deltas.values():
            delta.full.data.fill_(0.01)
        assert not torch.allclose(outcome(), original, atol=1e-4)
        with edit.off():
            assert torch.equal(outcome(), original)
        raise Broken
    assert torch.equal(outcome(), original)
    for table, was in zip(tables, before, strict=True):
        assert list(table) == list(was)
        assert all(table[name] is was[name] for name in was)
    assert kinds == [type(module) for root in roots for module in root.modules()]
    assert all(torch.equal(model.weights[key], value) for key, value in values.items())


@pytest.mark.parametrize("part", SELECTIONS)
def test_gradient_reaches_every_selected_weight(model: DiffusersModel, part: str) -> None:
    for select in SELECTIONS[part]:
        with model.edit(part, select) as edit:
            assert unreached(model, edit) == []


def unreached(model: DiffusersModel, edit: Edit) -> list[str]:
    """Weights of the edit that the denoising loss has no gradient for."""
    x0, noise, t, x = noisy(model, 2)
    target = model.target(x0, noise, t)
    denoising_loss(model, x, t, target, model.encode(PROMPTS[:2])).sum().backward()
    return [
        key
        for key, delta in edit.deltas.items()
        if delta.full.grad is None or not delta.full.grad.any()
    ]


def test_recomputing_activations_changes_no_gradient(pipeline: StableDiffusionPipeline) -> None:
    found = []
    for checkpointing in (False, True):
        model = DiffusersModel(pipeline, checkpointing=checkpointing)
        try:
            with model.edit("denoiser", "cross-attention") as edit:
                unreached(model, edit)
                found.append({key: delta.full.grad for key, delta in edit.deltas.items()})
        finally:
            model.network.disable_gradient_checkpointing()
    plain, again = found
    for key, gradient in plain.items():
        assert torch.allclose(again[key], gradient, rtol=1e-4, atol=1e-7), key


def test_first_token_takes_no_gradient_in_keys_and_values(model: DiffusersModel) -> None:
    _, _, t, x = noisy(model, 1)
    with model.edit("denoiser", "cross-attention-kv") as edit:
        first = Conditioning(model.encode(PROMPTS[:1]).cross[:, :1])
        model.predict(x, t, first).square().mean().backward()
        assert all(not delta.full.grad.any() for delta in edit.deltas.values())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_clean_undoes_noised_and_target(pipeline: StableDiffusionPipeline, prediction: str) -> None:
    model = DiffusersModel(rescheduled(pipeline, prediction_type=prediction))
    x0, noise, t, x = noisy(model, 5)
    assert torch.allclose(model.predict_x0(x, t, model.target(x0, noise, t)), x0, atol=1e-4)


def rescheduled(pipeline: StableDiffusionPipeline, **options: Any) -> StableDiffusionPipeline:
    """The same modules with another noise schedule."""
    parts = {**pipeline.components, "scheduler": diffusers_pipeline.scheduler(**options)}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def test_schedule_that_ends_in_pure_noise_stays_finite(pipeline: StableDiffusionPipeline) -> None:
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    model = DiffusersModel(rescheduled(pipeline, **options))
    assert model.sigmas.isfinite().all()
    assert model.sigmas[-1] > 4000
    x0, noise, _, _ = noisy(model, 1)
    t = torch.tensor([999.0])
    assert model.add_noise(x0, noise, t).isfinite().all()
    assert model.target(x0, noise, t).isfinite().all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"text_encoder": None}, "has no text_encoder; use Stable Diffusion"),
        ({"scheduler": FlowMatchEulerDiscreteScheduler()}, "is for flow or EDM models"),
    ],
    ids=["no encoder", "flow"],
)
def test_other_pipelines_get_a_sentence(
    pipeline: StableDiffusionPipeline, change: dict, sentence: str
) -> None:
    other = StableDiffusionPipeline(
        **{**pipeline.components, **change}, requires_safety_checker=False
    )
    with pytest.raises(ValueError, match=sentence):
        DiffusersModel(other)


def test_an_inpainting_network_gets_a_sentence(pipeline: StableDiffusionPipeline) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**LAYOUTS["two levels of three"].theirs, in_channels=9)
    other = StableDiffusionPipeline(
        **{**pipeline.components, "unet": unet}, requires_safety_checker=False
    )
    with pytest.raises(ValueError, match="has 9 input and 4 output channels"):
        DiffusersModel(other)


# Applying and exporting


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_applied_is_the_edit_and_leaves_nothing(
    model: DiffusersModel, erasure: Erasure, strength: float
) -> None:
    before = {key: weight.clone() for key, weight in model.weights.items()}
    original = conditioning(model)
    with model.edit("encoder", "mlp-final-attn") as edit:
        for key, delta in edit.deltas.items():
            delta.full.data.copy_(strength * erasure.delta(key))
        wanted = conditioning(model)
    with applied(model, erasure, strength):
        assert torch.allclose(conditioning(model), wanted, atol=1e-6)
        assert not torch.allclose(conditioning(model), original, atol=1e-3)
    assert torch.equal(conditioning(model), original)
    assert all(torch.equal(model.weights[key], value) for key, value in before.items())


def test_an_erasure_of_another_model_gets_a_sentence(model: DiffusersModel) -> None:
    unknown = Erasure({"clip_g.x.weight": {"diff": torch.zeros(2, 2)}}, {"concepts": ["cat"]})
    with pytest.raises(
        ErasureError, match=r'"cat" is for another model: this one has no clip_g\.x'
    ):
        applied(model, unknown).__enter__()
    small = Erasure({FC1: {"diff": torch.zeros(2, 2)}}, {"concepts": ["cat"]})
    with pytest.raises(ErasureError, match=r"of another size: .*fc1\.weight is \(768, 192\) here"):
        applied(model, small).__enter__()


def test_another_base_is_warned_of(model: DiffusersModel, erasure: Erasure) -> None:
    assert base_warning(model, erasure) == ""
    with applied(model, erasure):
        assert base_warning(model, erasure).startswith("Warning: 24 of 24 weights differ")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_same_base(
    pipeline: StableDiffusionPipeline, dtype: torch.dtype
) -> None:
    model = DiffusersModel(copy.deepcopy(pipeline), size=(64, 64))
    before = model.fingerprints(model.weights)
    model.halve(dtype)
    assert next(model.network.parameters()).dtype == dtype
    assert model.fingerprints(model.weights) == before


@pytest.mark.parametrize("rank", [0, 4])
def test_lora_loads_through_diffusers_and_is_the_delta(
    pipeline: StableDiffusionPipeline, model: DiffusersModel, rank: int, tmp_path: Path
) -> None:
    found = random_erasure(model, "encoder", "mlp-final-attn", rank)
    with applied(model, found):
        wanted = conditioning(model)
    parts = loras(model, found, rank=0 if rank else 192)
    assert [lora.kept for lora in parts] == [pytest.approx(1.0)]
    save_lora(parts, tmp_path / "a.safetensors", found.record)
    other = StableDiffusionPipeline(
        **{**pipeline.components, "text_encoder": copy.deepcopy(pipeline.text_encoder)},
        requires_safety_checker=False,
    )
    other.load_lora_weights(tmp_path, weight_name="a.safetensors")
    got = other.encode_prompt("a photo of a cat", "cpu", 1, False)[0]
    assert torch.allclose(got, wanted, atol=2e-5)
    assert not torch.allclose(wanted, conditioning(model), atol=1e-2)
    other.unload_lora_weights()
    assert torch.equal(
        other.encode_prompt("a photo of a cat", "cpu", 1, False)[0], conditioning(model)
    )


@pytest.mark.filterwarnings("ignore:.*lora_bias")
@pytest.mark.parametrize("select", ["cross-attention", "outside-cross-attention"])
def test_lora_of_the_network_loads_through_diffusers(
    pipeline: StableDiffusionPipeline, model: DiffusersModel, select: str, tmp_path: Path
) -> None:
    """Convolutions, too, layers that have no bias beside ones that do, and of several ranks."""
    found = of_several_ranks(random_erasure(model, "denoiser", select, rank=3))
    _, _, t, x = noisy(model, 2)
    prompts = model.encode(PROMPTS[:2])
    with torch.no_grad(), applied(model, found):
        wanted = model.predict(x, t, prompts)
    save_lora(loras(model, found), tmp_path / "a.safetensors", found.record)
    other = StableDiffusionPipeline(
        **{**pipeline.components, "unet": copy.deepcopy(pipeline.unet)},
        requires_safety_checker=False,
    )
    other.load_lora_weights(tmp_path, weight_name="a.safetensors")
    inputs = x / (1 + model._like(model._sigma(t), x) ** 2).sqrt()
    with torch.no_grad():
        got = other.unet(inputs, t.round().long(), prompts.cross).sample
    assert relative(got, wanted) < 1e-5


def test_a_lora_says_how_each_of_its_ranks_is_scaled(model: DiffusersModel, tmp_path: Path) -> None:
    """diffusers before 0.40, which guesses by the first, reads it here, too."""
    found = of_several_ranks(random_erasure(model, "denoiser", "cross-attention", rank=3))
    (lora,) = loras(model, found)
    save_lora([lora], tmp_path / "a.safetensors", found.record)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        told = json.loads(file.metadata()["lora_adapter_metadata"])
    assert {name.partition(".")[0] for name in told} == {"unet"}
    for name, (down, _, _) in lora.layers.items():
        rank, alpha = (
            told[f"unet.{pattern}"].get(name, told[f"unet.{usual}"])
            for pattern, usual in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
        )
        assert rank == alpha == len(down), name
    assert set(told["unet.target_modules"]) == set(lora.layers)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_adapter_loads_through_peft(
    pipeline: StableDiffusionPipeline, model: DiffusersModel, low_rank: Erasure, tmp_path: Path
) -> None:
    from peft import PeftModel

    save_peft(loras(model, low_rank), tmp_path)
    encoder = copy.deepcopy(pipeline.text_encoder)
    adapted = PeftModel.from_pretrained(encoder, str(tmp_path / "text_encoder"))
    tokens = pipeline.tokenizer(
        "a photo of a cat", padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    with torch.no_grad(), applied(model, low_rank):
        wanted = model.encode(["a photo of a cat"]).cross
    with torch.no_grad():
        assert torch.allclose(adapted(tokens).last_hidden_state, wanted, atol=1e-5)


def test_lora_of_a_full_erasure_says_what_it_keeps(model: DiffusersModel, erasure: Erasure) -> None:
    (cut,) = loras(model, erasure, rank=2)
    (most,) = loras(model, erasure)
    assert all(len(down) == 2 for down, _, _ in cut.layers.values())
    missing = whole = 0.0
    for key in erasure.deltas:
        if key.endswith(".weight"):
            name = key.removeprefix("clip_l.transformer.").removesuffix(".weight")
            own = name if name in cut.layers else name.removeprefix("text_model.")
            down, up, _ = cut.layers[own]
            missing += (erasure.delta(key) - up @ down).square().sum().item()
            whole += erasure.delta(key).square().sum().item()
    assert cut.kept == pytest.approx((1 - missing / whole) ** 0.5, abs=1e-4)
    assert cut.kept < most.kept
    assert 0.9999 <= most.kept <= 1


def test_a_lora_cannot_hold_norms_and_embeddings(model: DiffusersModel) -> None:
    found = random_erasure(model, "encoder", "all")
    with pytest.raises(ErasureError, match="a weight of a Embedding; export the text encoder"):
        loras(model, found)


# XL: two encoders and a pooled vector


def clip_config(width: int, layers: int, **options: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        vocab_size=49408,
        projection_dim=width,
        bos_token_id=49406,
        eos_token_id=49407,
        **options,
    )


@pytest.fixture(scope="module")
def xl_pipeline() -> StableDiffusionXLPipeline:
    """Random weights: whether a gradient arrives does not depend on what they mean."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        second = diffusers_pipeline.tokenizer()
        second.pad_token = "!"
        return StableDiffusionXLPipeline(
            vae=AutoencoderKL(
                down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4,
                block_out_channels=[32] * 4,
                scaling_factor=0.13025,
            ),
            text_encoder=CLIPTextModel(clip_config(32, 3)),
            text_encoder_2=CLIPTextModelWithProjection(clip_config(32, 3, hidden_act="gelu")),
            tokenizer=diffusers_pipeline.tokenizer(),
            tokenizer_2=second,
            unet=UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(64, 128),
                layers_per_block=1,
                cross_attention_dim=64,
                attention_head_dim=(1, 2),
                transformer_layers_per_block=(1, 1),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=32 + 6 * 256,
                **blocks(False, True),
            ),
            scheduler=diffusers_pipeline.scheduler(),
        )


@pytest.fixture(scope="module")
def xl(xl_pipeline: StableDiffusionXLPipeline) -> DiffusersModel:
    return DiffusersModel(xl_pipeline)


def test_a_drawn_latent_is_the_mean_and_the_deviation_times_noise(xl: DiffusersModel) -> None:
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        said = xl.vae.encode(picture.movedim(-1, 1) * 2 - 1).latent_dist
    by_hand = 0.13025 * (said.mean + (said.logvar / 2).exp() * noise)
    drawn = xl.encode_images(picture, torch.Generator().manual_seed(3))
    assert torch.allclose(drawn, by_hand, atol=1e-6)
    assert torch.allclose(xl.encode_images(picture), 0.13025 * said.mean, atol=1e-6)
    assert not torch.allclose(drawn, xl.encode_images(picture), atol=1e-2)


def test_xl_conditioning_is_the_pipelines_own(
    xl_pipeline: StableDiffusionXLPipeline, xl: DiffusersModel
) -> None:
    own = xl_pipeline.encode_prompt(PROMPTS[0], None, "cpu", 1, False)
    found = xl.encode(PROMPTS[:1])
    assert torch.equal(found.cross, own[0])
    assert torch.equal(found.pooled, own[2])


@pytest.mark.parametrize("part", SELECTIONS)
def test_xl_gradient_reaches_every_selected_weight_of_both_encoders(
    xl: DiffusersModel, part: str
) -> None:
    before = {key: weight.clone() for key, weight in xl.weights.items()}
    # CLIP-L is left one layer early, so the norm behind its last layer is not read.
    unread = "clip_l.transformer.text_model.final_layer_norm"
    for select in SELECTIONS[part]:
        with xl.edit(part, select) as edit:
            missing = unreached(xl, edit)
            names = {key.partition(".")[0] for key in edit.deltas}
        assert [key for key in missing if not key.startswith(unread)] == []
        assert part == "denoiser" or names == {"clip_l", "clip_g"}
    assert all(torch.equal(xl.weights[key], value) for key, value in before.items())


def test_xl_selection_ends_where_each_encoder_is_read(xl: DiffusersModel) -> None:
    keys = xl.selected("encoder", "mlp-final-attn")
    layers = {
        name: {int(key.split(".layers.")[1][0]) for key in keys if key.startswith(name)}
        for name in ("clip_l", "clip_g")
    }
    assert layers == {"clip_l": {0, 1}, "clip_g": {0, 1, 2}}
    assert any("clip_l" in key and "layers.1.self_attn" in key for key in keys)
    assert any("clip_g" in key and "layers.2.self_attn" in key for key in keys)


def test_xl_learns_applies_and_exports(
    xl_pipeline: StableDiffusionXLPipeline, xl: DiffusersModel, tmp_path: Path
) -> None:
    settings = FewShotSettings(max_steps=2, shots=1, rank=2)
    found = few_shot(xl, ["cat"], None, settings)
    assert {key.partition(".")[0] for key in found.deltas} == {"clip_l", "clip_g"}
    with torch.no_grad(), applied(xl, found):
        wanted = xl.encode(PROMPTS[:1])
    original = xl.encode(PROMPTS[:1])
    assert (wanted.pooled - original.pooled).norm() > 0
    save_lora(loras(xl, found), tmp_path / "a.safetensors", found.record)
    names = {name.partition(".")[0] for name in load_file(tmp_path / "a.safetensors")}
    assert names == {"text_encoder", "text_encoder_2"}
    parts = {
        name: copy.deepcopy(part) if name.startswith("text_encoder") else part
        for name, part in xl_pipeline.components.items()
    }
    other = StableDiffusionXLPipeline(**parts)
    other.load_lora_weights(tmp_path, weight_name="a.safetensors")
    own = other.encode_prompt(PROMPTS[0], None, "cpu", 1, False)
    assert torch.allclose(own[0], wanted.cross, atol=1e-5)
    assert torch.allclose(own[2], wanted.pooled, atol=1e-5)


# AnimateDiff: an image is a video of one frame


@pytest.fixture(scope="module")
def motion(pipeline: StableDiffusionPipeline) -> AnimateDiffPipeline:
    """IconCanvas with motion modules that add nothing, in copies of its modules."""
    adapter = MotionAdapter(
        block_out_channels=(64, 128, 128, 64),
        motion_layers_per_block=2,
        motion_num_attention_heads=4,
        use_motion_mid_block=False,
    )
    unet = UNetMotionModel.from_unet2d(copy.deepcopy(pipeline.unet), adapter)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "motion_modules" in name and ".proj_out." in name:
                weight.zero_()
    parts = {name: pipeline.components[name] for name in ("vae", "text_encoder", "tokenizer")}
    return AnimateDiffPipeline(
        **parts, unet=unet, motion_adapter=adapter, scheduler=diffusers_pipeline.scheduler()
    )


def test_animatediff_predicts_images_as_its_image_model_does(
    model: DiffusersModel, motion: AnimateDiffPipeline
) -> None:
    video = DiffusersModel(motion)
    _, _, t, x = noisy(model, 2)
    prompts = model.encode(PROMPTS[:2])
    with torch.no_grad():
        assert relative(video.predict(x, t, prompts), model.predict(x, t, prompts)) < 1e-5
    assert list(video.weights) == list(model.weights)
    with video.edit("encoder", "mlp-final-attn") as edit:
        assert unreached(video, edit) == []


def test_erasure_of_the_image_model_reaches_the_clips(
    model: DiffusersModel, motion: AnimateDiffPipeline, erasure: Erasure
) -> None:
    def frames() -> torch.Tensor:
        return motion(
            "a photo of a mushroom",
            num_frames=2,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            height=64,
            width=64,
            output_type="pt",
        ).frames

    motion.set_progress_bar_config(disable=True)
    original = frames()
    with applied(DiffusersModel(motion), erasure):
        assert not torch.allclose(frames(), original, atol=1e-3)
    assert torch.equal(frames(), original)


# Against ComfyUI


@dataclass(frozen=True)
class Pair:
    """The same model in both backends; `pack` is the package that ComfyUI loaded."""

    pack: ModuleType
    comfy: Any
    ours: DiffusersModel


@pytest.fixture
def pair(pack: ModuleType, parts: tuple, model: DiffusersModel) -> Iterator[Pair]:
    host_model = pack.nodes.backend.model.ComfyModel(*parts, size=(128, 128))
    with torch.inference_mode(), host_model.training():  # as in the body of a node
        yield Pair(pack, host_model, model)


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_both_encode_alike(
    pack: ModuleType, parts: tuple, model: DiffusersModel, clip_skip: int
) -> None:
    ours = DiffusersModel(model.pipeline, clip_skip=clip_skip)
    clip = parts[1].clone()
    clip.clip_layer(-1 - clip_skip)
    theirs = pack.nodes.backend.model.ComfyModel(parts[0], clip, parts[2])
    with torch.inference_mode(), theirs.training(), torch.no_grad():
        wanted, found = theirs.encode(PROMPTS).cross, ours.encode(PROMPTS).cross
        assert list(theirs.selected("encoder", "mlp-final-attn")) == list(
            ours.selected("encoder", "mlp-final-attn")
        )
    assert relative(found, wanted) < 1e-5


def test_both_predict_and_draw_alike(pair: Pair, pictures: torch.Tensor) -> None:
    comfy, ours = pair.comfy, pair.ours
    x0, noise, t, x = noisy(comfy, 5)
    with torch.no_grad():
        prompts = ours.encode([*PROMPTS, "a dog", "ink"])
        theirs = pair.pack.unlearn.core.conditioning.Conditioning(prompts.cross)
        wanted = comfy.predict(x, t, theirs)
        assert relative(ours.add_noise(x0, noise, t), x) < 1e-5
        assert relative(ours.predict(x, t, prompts), wanted) < 1e-6
        assert relative(ours.target(x0, noise, t), comfy.target(x0, noise, t)) < 1e-6
        assert relative(ours.predict_x0(x, t, wanted), comfy.predict_x0(x, t, wanted)) < 1e-6
        latents = comfy.encode_images(pictures)
        assert relative(ours.encode_images(pictures), latents) < 1e-7
        # IconCanvas's autoencoder says no variance, so there is nothing to draw.
        seeded = torch.Generator().manual_seed(5)
        assert torch.equal(ours.encode_images(pictures, seeded), ours.encode_images(pictures))
        assert relative(ours.decode_latents(latents), comfy.decode_latents(latents)) < 1e-4
        drawn = comfy.sample(PROMPTS, seed=3, steps=6)
        assert relative(ours.sample(PROMPTS, seed=3, steps=6), drawn) < 1e-4


def test_both_mean_the_same_by_v_prediction(
    pack: ModuleType, parts: tuple, model: DiffusersModel
) -> None:
    import comfy_extras.nodes_model_advanced as sampling

    (patched,) = sampling.ModelSamplingDiscrete().patch(parts[0], "v_prediction", zsnr=False)
    ours = DiffusersModel(rescheduled(model.pipeline, prediction_type="v_prediction"))
    comfy = pack.nodes.backend.model.ComfyModel(patched, *parts[1:], size=(128, 128))
    with torch.inference_mode(), comfy.training(), torch.no_grad():
        x0, noise, t, x = noisy(comfy, 5)
        prompts = ours.encode([*PROMPTS, "a dog", "ink"])
        wanted = comfy.predict(x, t, pack.unlearn.core.conditioning.Conditioning(prompts.cross))
        assert relative(ours.predict(x, t, prompts), wanted) < 1e-4
        assert relative(ours.target(x0, noise, t), comfy.target(x0, noise, t)) < 1e-4
        assert relative(ours.predict_x0(x, t, wanted), comfy.predict_x0(x, t, wanted)) < 1e-4


@pytest.mark.parametrize("part", SELECTIONS)
def test_both_select_the_same_weights_in_the_same_order(pair: Pair, part: str) -> None:
    for select in SELECTIONS[part]:
        theirs, ours = pair.comfy.selected(part, select), pair.ours.selected(part, select)
        # CLIP-L's projection takes no gradient: no pipeline has it.
        wanted = [key for key in theirs if "text_projection" not in key]
        assert list(ours) == wanted
        assert pair.ours.fingerprints(wanted) == pair.comfy.fingerprints(wanted)


@pytest.fixture
def alike(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Both with one attention kernel, as on NVIDIA's cards, and with the same latents of pictures,
    which the two autoencoders give to the last bit but one."""
    # What the host's --use-pytorch-cross-attention sets. Its text encoders ask for it; its networks
    # train with that kernel in any case.
    monkeypatch.setattr("comfy.model_management.ENABLE_PYTORCH_ATTENTION", True)
    monkeypatch.setattr(pair.ours, "encode_images", pair.comfy.encode_images)
    return pair


LEARN = {"max_steps": 2, "epochs": 1, "seed": 5}


@pytest.mark.parametrize(
    ("mode", "rank"),
    [
        ("paper", 4),
        pytest.param("balanced", 0, marks=pytest.mark.slow),
        pytest.param("balanced", 4, marks=pytest.mark.slow),
        pytest.param("paper", 0, marks=pytest.mark.slow),
    ],
)
def test_both_learn_the_same_erasure(
    alike: Pair, pictures: torch.Tensor, mode: str, rank: int
) -> None:
    ours, theirs = both_learn(alike, pictures, mode=mode, rank=rank, **LEARN)
    assert_same_erasure(alike, ours, theirs, 1e-4)


@pytest.mark.parametrize("mode", ["balanced", pytest.param("paper", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_both_learn_the_same_erasure_each_in_its_own_arithmetic(
    pair: Pair, pictures: torch.Tensor, mode: str
) -> None:
    ours, theirs = both_learn(pair, pictures, mode=mode, **LEARN)
    assert_same_erasure(pair, ours, theirs)


def both_learn(pair: Pair, pictures: torch.Tensor, **options: Any) -> tuple[Erasure, Any]:
    """Few-shot erasures of the mushroom: by diffusers and by ComfyUI."""
    methods = pair.pack.unlearn.methods.few_shot
    ours = few_shot(pair.ours, ["mushroom"], pictures, FewShotSettings(**options))
    settings = methods.FewShotSettings(**options)
    return ours, methods.few_shot(pair.comfy, ["mushroom"], pictures, settings)


def assert_same_erasure(pair: Pair, ours: Erasure, theirs: Any, tolerance: float = 1e-3) -> None:
    """Alike in the numbers, and more so in what they do.

    In the same arithmetic gradients agree to the last bit. In another they agree to a millionth,
    and Adam divides each by its own size, so the smallest of them, which rounding decides, weigh as
    much as the others. The biases of keys are all of that kind: what is the same for every key
    makes no difference to attention, so their gradient is nothing but rounding, and so is their
    change.
    """
    assert list(ours.deltas) == list(theirs.deltas)
    for name in ("method", "concepts", "settings", "steps", "base"):
        assert ours.record[name] == theirs.record[name], name
    assert ours.record["loss"] == pytest.approx(theirs.record["loss"], rel=1e-4)
    keys = [key for key in ours.deltas if not key.endswith("k_proj.bias")]
    one, other = (torch.cat([e.delta(key).flatten() for key in keys]) for e in (ours, theirs))
    assert relative(one, other) < tolerance
    original, by_ours, by_theirs = predictions(pair.ours, ours, theirs)
    # Beside the changes of a short training stands the rounding of the predictions themselves.
    least = 1e-6 * original.norm()
    assert (by_ours - by_theirs).norm() < 1e-4 * (by_theirs - original).norm() + least


@torch.no_grad()
def predictions(model: DiffusersModel, *erasures: Any) -> list[torch.Tensor]:
    """By the concept's prompts: of the original, then with each erasure."""
    _, _, t, x = noisy(model, 4)
    prompts = ["a photo of a mushroom", "a cat", "a mushroom, flat style", "cat"]
    found = [model.predict(x, t, model.encode(prompts))]
    for erasure in erasures:
        with applied(model, Erasure(erasure.deltas, erasure.record)):
            found.append(model.predict(x, t, model.encode(prompts)))
    return found


@pytest.mark.slow
@pytest.mark.full_runs  # in four steps the pictures of the backends differ too much
def test_both_learn_the_same_from_what_the_model_draws(pair: Pair) -> None:
    options = {"max_steps": 2, "shots": 1, "rank": 4}
    methods = pair.pack.unlearn.methods.few_shot
    theirs = methods.few_shot(pair.comfy, ["cat"], None, methods.FewShotSettings(**options))
    ours = few_shot(pair.ours, ["cat"], None, FewShotSettings(**options))
    assert_same_erasure(pair, ours, theirs)


def test_both_learn_the_same_key_steps(alike: Pair) -> None:
    options = {"mode": "paper", "steps": 3, "start": 1, "iterations": 2, "rank": 2}
    options["trainable"] = "cross-attention"
    methods = alike.pack.unlearn.methods.key_step
    theirs = methods.key_step(alike.comfy, ["cat"], methods.KeyStepSettings(**options))
    ours = key_step(alike.ours, ["cat"], KeyStepSettings(**options))
    assert_same_erasure(alike, ours, theirs, 1e-4)


@pytest.mark.slow
def test_both_learn_the_same_domain_correction(pair: Pair) -> None:
    options = {"mode": "paper", "pictures": 2, "iterations": 3, "alone": 1, "batch": 2}
    methods = pair.pack.unlearn.methods.domain_correction
    settings = methods.DomainCorrectionSettings(**options)
    theirs = methods.domain_correction(pair.comfy, ["cat"], settings)
    ours = domain_correction(pair.ours, ["cat"], DomainCorrectionSettings(**options))
    assert_same_erasure(pair, ours, theirs)


@pytest.mark.parametrize("select", ["mlp-final-attn", "cross-attention"])
@pytest.mark.parametrize("rank", [0, 4])
def test_one_file_serves_both(
    pack: ModuleType,
    parts: tuple,
    model: DiffusersModel,
    select: str,
    rank: int,
    tmp_path: Path,
) -> None:
    part = "encoder" if select == "mlp-final-attn" else "denoiser"
    found = random_erasure(model, part, select, rank)
    found.save(tmp_path / "a.safetensors", torch.float32)
    theirs = pack.unlearn.core.erasure.Erasure.load(tmp_path / "a.safetensors")
    with torch.inference_mode():
        patched_model, patched_clip = pack.nodes.backend.apply.erased(parts[0], parts[1], theirs)
        own = parts[0] if part == "denoiser" else parts[1].patcher
        assert pack.nodes.backend.apply.base_warning(own, theirs, list(theirs.deltas)) == ""
        comfy = pack.nodes.backend.model.ComfyModel(
            patched_model, patched_clip, parts[2], (128, 128)
        )
        with comfy.training(), torch.no_grad(), applied(model, found):
            _, _, t, x = noisy(model, 2)
            cross, wanted = model.encode(PROMPTS[:2]), comfy.encode(PROMPTS[:2])
            # The host adds the deltas to an encoder that it keeps in half precision.
            assert relative(cross.cross, wanted.cross) < 2e-3
            prediction = comfy.predict(
                x, t, pack.unlearn.core.conditioning.Conditioning(cross.cross)
            )
            assert relative(model.predict(x, t, cross), prediction) < 1e-4


def test_erasure_made_in_comfyui_applies_here(
    pair: Pair, parts: tuple, pictures: torch.Tensor, tmp_path: Path
) -> None:
    methods = pair.pack.unlearn.methods.few_shot
    made = methods.few_shot(
        pair.comfy, ["mushroom"], pictures, methods.FewShotSettings(max_steps=2)
    )
    made.save(tmp_path / "a.safetensors")
    found = Erasure.load(tmp_path / "a.safetensors")
    assert base_warning(pair.ours, found) == ""
    clip, _ = pair.pack.nodes.backend.apply.erased_clip(parts[1], made)
    wanted = clip.encode_from_tokens(clip.tokenize("a photo of a mushroom"))
    with applied(pair.ours, found):
        ours = conditioning(pair.ours, "a photo of a mushroom")
    original = conditioning(pair.ours, "a photo of a mushroom")
    assert relative(ours - original, wanted - original) < 0.05  # half precision in the host


def test_xl_is_alike_in_both(pack: ModuleType, host: ModuleType, xl: DiffusersModel) -> None:
    """ComfyUI's XL of the same size, given the pipeline's weights by name."""
    from layouts import SIDE, build

    with torch.inference_mode():
        built = build("sdxl")
        roots = {"": built.clip.cond_stage_model, NETWORK: built.model.model.diffusion_model}
        for key, weight in xl.weights.items():
            prefix = NETWORK if key.startswith(NETWORK) else ""
            roots[prefix].get_parameter(key.removeprefix(prefix)).copy_(weight)
        comfy = pack.nodes.backend.model.ComfyModel(built.model, built.clip, None, (SIDE, SIDE))
        with comfy.training(), torch.no_grad():
            wanted, found = comfy.encode(PROMPTS), xl.encode(PROMPTS)
            assert relative(found.cross, wanted.cross) < 1e-5
            assert relative(found.pooled, wanted.pooled) < 1e-5
            _, _, t, x = noisy(xl, len(PROMPTS))
            assert relative(xl.predict(x, t, found), comfy.predict(x, t, wanted)) < 1e-4
        for select in ("mlp-final-attn", "mlp", "attention"):
            assert list(xl.selected("encoder", select)) == list(comfy.selected("encoder", select))
