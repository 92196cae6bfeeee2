"""Few-Shot Encoder Unlearn on the text encoders of the host that test_encoders.py leaves out: each
trains, or is refused with one sentence, and none is forgotten."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import encoder_layouts
import pytest
import torch
from families import ONE_OF_EACH, family_first, only
from layouts import LAYOUTS, SMALL_CLIP, SMALL_ENCODERS, Loaded, is_absent
from other_encoder_layouts import OTHERS, REFUSED, build
from test_encoders import (
    CLIP_G,
    PROMPTS,
    assert_equal,
    conditioning,
    other_weights,
    random_erasure,
    run_node,
)

pytestmark = pytest.mark.usefixtures("node_body")

QWEN3VL_8B = "qwen3vl_8b.transformer.model.layers"
QWEN3VL_4B = "qwen3vl_4b.transformer.model.layers"
MISTRAL = "mistral3_24b.transformer.model.layers"
T5 = "t5xxl.transformer.encoder.block"
QWEN25 = "qwen25_7b.transformer.model.layers"


def eye(encoder: str) -> dict[str, int]:
    """Qwen 3 VL's, which sees nothing of a prompt."""
    path = f"{encoder}.transformer.visual"
    return {f"{path}.blocks": 2, f"{path}.deepstack_merger_list": 2}


# How many of the last layers of each stack go unread, as the host's classes have it: Mistral is
# read at what enters layer 30 of 32 here, Krea 2's at layer 35 of 36, GPT-OSS behind the fourth of
# five; where a norm or the last layer is read, all are.
UNREAD = {
    "Mistral, Flux 2": {MISTRAL: 2},
    "Mistral pruned, Flux 2": {MISTRAL: 0},
    "Qwen 3 8B, Flux 2 Klein": {"qwen3_8b.transformer.model.layers": 2},
    "Qwen 3 VL, Ideogram 4": {QWEN3VL_8B: 0, **eye("qwen3vl_8b")},
    "Qwen 3 VL without eye, Ideogram 4": {QWEN3VL_8B: 0},
    "Qwen 3 VL, Krea 2": {QWEN3VL_4B: 1, **eye("qwen3vl_4b")},
    "Qwen 3 VL, Boogu": {QWEN3VL_8B: 0, **eye("qwen3vl_8b")},
    "Qwen 3 VL, Mage-Flow": {QWEN3VL_4B: 0, **eye("qwen3vl_4b")},
    "Qwen 3 VL, JoyImage": {QWEN3VL_8B: 0, **eye("qwen3vl_8b")},
    "T5, Mochi": {T5: 0},
    "T5 1.0, Cosmos": {T5: 0},
    "T5 1.0, Cosmos Predict 2": {T5: 0},
    "Qwen 2.5 VL and ByT5, HunyuanImage": {
        QWEN25: 2,
        "qwen25_7b.transformer.visual.blocks": 2,
        "byt5_small.transformer.encoder.block": 2,
    },
    "Pile T5, AuraFlow": {"pile_t5xl.transformer.encoder.block": 0},
    "T5, PixArt": {T5: 0},
    "Qwen 3 2B, Ovis": {"qwen3_2b.transformer.model.layers": 0},
    "Qwen 2.5 VL, LongCat": {QWEN25: 0, "qwen25_7b.transformer.visual.blocks": 2},
    "Gemma 2, PixelDiT": {"gemma2_2b.transformer.model.layers": 0},
    "Ministral, Ernie": {"ministral3_3b.transformer.model.layers": 1},
    "Gemma 3 and Jina CLIP, NewBie": {
        "gemma.transformer.model.layers": 1,
        "jina.transformer.model.encoder.layers": 0,
    },
    "GPT-OSS, Lens": {"gpt_oss.transformer.layers": 1},
    "CLIP-G, Stable Cascade": {CLIP_G: 0},
    "CLIP-G, SDXL refiner": {CLIP_G: 0},
    "Qwen 3 VL": {QWEN3VL_8B: 0, **eye("qwen3vl_8b")},
    "Qwen 3.5": {
        "qwen35_2b.transformer.model.layers": 1,
        "qwen35_2b.transformer.visual.blocks": 2,
    },
    "Jina CLIP": {"jina_clip_2.transformer.model.encoder.layers": 0},
}

# Classes of the host's text encoders that have no entry, and why.
ELSEWHERE, SOUND = "refused, in test_encoders.py", "its MODEL makes sound"
UNTESTED = {
    "ace.AceT5Model": SOUND,
    "ace.UMT5BaseModel": SOUND,
    "ace15.ACE15TEModel": SOUND,
    "ace15.Qwen3_06BModel": SOUND,
    "ace15.Qwen3_2B_ACE15": SOUND,
    "ace15.Qwen3_4B_ACE15": SOUND,
    "anima.AnimaTEModel": ELSEWHERE,
    "anima.Qwen3_06BModel": ELSEWHERE,
    "hidream.HiDreamTEModel": ELSEWHERE,
    "hidream_o1.HiDreamO1TE": ELSEWHERE,
    "sa3.SAT5GemmaModel": SOUND,
    "sa3.T5GemmaSDClipModel": SOUND,
    "sa_t5.SAT5Model": SOUND,
    "sa_t5.T5BaseModel": SOUND,
    "sam3_clip.SAM3ClipModel": "its MODEL finds things in pictures and makes none",
    "sam3_clip.SAM3ClipModelWrapper": "its MODEL finds things in pictures and makes none",
}


READ = ("Jina CLIP", "Qwen 3.5")  # what takes longer than a gradient, on one that pads and one not


@pytest.fixture(scope="module", params=family_first(OTHERS))
def loaded(request: pytest.FixtureRequest, pack: ModuleType) -> Loaded:
    with torch.inference_mode():  # as the host's loader nodes run
        return build(request.param)


def comfy_model(pack: ModuleType, loaded: Loaded, **options: Any) -> Any:
    # PixArt's network divides by its side in pieces of 512 pixels, rounded.
    side = 320 if "PixArt" in loaded.name else 64
    return pack.nodes.backend.model.ComfyModel(
        loaded.model, loaded.clip, None, (side, side), **options
    )


def given(model: Any) -> list[torch.Tensor]:
    """What the network gets of a prompt."""
    return [tensor.clone() for tensor in model._given(model.encode(PROMPTS[:1]))]


@pytest.mark.parametrize("loaded", only(*READ, of=OTHERS), indirect=True)
def test_layers_that_go_unread_change_nothing_and_the_last_one_read_does(
    pack: ModuleType, loaded: Loaded
) -> None:
    model = comfy_model(pack, loaded)
    assert model._unread == UNREAD[loaded.name]
    original = given(model)
    for path, unread in UNREAD[loaded.name].items():
        layers = list(loaded.clip.cond_stage_model.get_submodule(path))
        read = len(layers) - unread
        with other_weights(layers[read:]):
            assert all(map(torch.equal, given(model), original)), path
        if read:
            with other_weights(layers[read - 1 : read]):
                assert not all(map(torch.equal, given(model), original)), path


def gradients_of(
    pack: ModuleType, loaded: Loaded, checkpointing: bool
) -> dict[str, torch.Tensor | None]:
    """Of the denoising loss of two random latents under two prompts, by a delta of each weight."""
    with (
        comfy_model(pack, loaded, checkpointing=checkpointing).training() as model,
        model.edit("encoder", "mlp-final-attn") as edit,
    ):
        generator = torch.Generator().manual_seed(1)
        x_t, noise = model.noise(2, generator), model.noise(2, generator)
        t = torch.tensor([300.0, 700.0], device=model.device)
        target = model.target(x_t, noise, t)
        (model.predict(x_t, t, model.encode(PROMPTS[1:3])) - target).square().mean().backward()
        return {key: delta.full.grad for key, delta in edit.deltas.items()}


def test_gradient_reaches_every_selected_weight(pack: ModuleType, loaded: Loaded) -> None:
    """And is the same where memory is short and the encoder's layers are computed again."""
    root = loaded.clip.cond_stage_model
    weights = pack.unlearn.core.trainable.encoder_weights(
        root, "mlp-final-attn", UNREAD[loaded.name]
    )
    kept = gradients_of(pack, loaded, checkpointing=False)
    assert kept.keys() == weights.keys()
    for key, gradient in kept.items():
        assert gradient is not None, key
        assert gradient.isfinite().all(), key
        assert gradient.abs().max() > 0, key
    largest = max(float(gradient.abs().max()) for gradient in kept.values())
    recomputed = gradients_of(pack, loaded, checkpointing=True)
    for key, gradient in kept.items():
        apart = (recomputed[key] - gradient).abs().max()
        assert apart <= 1e-3 * gradient.abs().max() + 1e-5 * largest, key


@pytest.mark.parametrize("loaded", only(*READ, of=OTHERS), indirect=True)
def test_prompts_are_read_together_as_each_alone(pack: ModuleType, loaded: Loaded) -> None:
    """However many tokens they have, and whatever of a template is cut off."""
    with comfy_model(pack, loaded).training() as model, torch.no_grad():
        x_t = model.noise(1, torch.Generator().manual_seed(1))
        t = torch.tensor([500.0], device=model.device)
        each = [model.encode([prompt]) for prompt in PROMPTS]
        alone = torch.cat([model.predict(x_t, t, one) for one in each])
        together = model.encode(PROMPTS)
        found = model.predict(x_t.repeat_interleave(4, 0), t.repeat(4), together)
    apart = (alone[0] - alone[1]).abs().max()
    assert apart > 1e-5, "a test on prompts that the network cannot tell apart"
    assert torch.allclose(found, alone, atol=0.01 * float(apart))
    for i, one in enumerate(each):
        assert torch.allclose(together.single(i).cross, one.cross, atol=1e-5)


def test_vectors_of_words_are_read_as_the_words(pack: ModuleType, loaded: Loaded) -> None:
    """What attacks and hardening put into prompts."""
    with comfy_model(pack, loaded).training() as model, torch.no_grad():
        vocabulary = model.vocabulary()
        words, vectors = vocabulary.words[:2], vocabulary.vectors[None, :2]
        if "Lens" in loaded.name:  # of which the host takes no vectors
            with pytest.raises(ValueError, match="neither be attacked by words nor hardened"):
                model.encode_with_embeddings(["a photo of a {}"], vectors)
            return
        found = model.encode_with_embeddings(["a photo of a {}"], vectors)
        wanted = model.encode([f"a photo of a {' '.join(words)}"])
    assert torch.allclose(found.cross, wanted.cross, atol=1e-5)


def test_conditioning_changes_by_exactly_the_delta(
    pack: ModuleType, loaded: Loaded, tmp_path: Path
) -> None:
    """An erasure from a file against weights replaced by hand; the base stays what it is."""
    root = loaded.clip.cond_stage_model
    weights = pack.unlearn.core.trainable.encoder_weights(
        root, "mlp-final-attn", UNREAD[loaded.name]
    )
    random_erasure(pack, weights).save(tmp_path / "a.safetensors", torch.float32)
    erasure = pack.unlearn.core.erasure.Erasure.load(tmp_path / "a.safetensors")
    original = conditioning(loaded.clip)
    before = {key: weight.clone() for key, weight in weights.items()}
    for key, weight in weights.items():
        weight.add_(erasure.delta(key).view(weight.shape))
    by_hand = conditioning(loaded.clip)
    for key, weight in weights.items():
        weight.copy_(before[key])
    erased, warning = pack.nodes.backend.apply.erased_clip(loaded.clip, erasure)
    assert warning == ""
    assert_equal(conditioning(erased), by_hand)
    assert not torch.allclose(by_hand["cond"], original["cond"], atol=1e-3)
    assert_equal(conditioning(loaded.clip), original)


# What it cannot do


@pytest.fixture(scope="module")
def wider(pack: ModuleType) -> Any:
    """A text encoder that none of the networks reads."""
    import comfy.sd1_clip

    sizes = {"clip_l_model_config": {**SMALL_CLIP, "hidden_size": 48}}
    with torch.inference_mode():
        return encoder_layouts.text_encoder(
            comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel, sizes
        )


def test_encoder_of_another_width_gets_a_sentence(
    pack: ModuleType, loaded: Loaded, wider: Any
) -> None:
    sentence = (
        r"gives 48 numbers for each token and the model reads \d+: they do not belong together"
    )
    with pytest.raises(ValueError, match=sentence):
        comfy_model(pack, replace(loaded, clip=wider)).check_encoder()


@pytest.mark.parametrize("name", REFUSED)
def test_encoder_that_cannot_be_trained_gets_a_sentence(
    pack: ModuleType, name: str, tmp_path: Path
) -> None:
    _, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence) as error:
        run_node(pack, build(name), tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_empty_prompt_without_tokens_is_at_no_distance(pack: ModuleType) -> None:
    loaded = build("GPT-OSS, Lens")
    with comfy_model(pack, loaded).training() as model, torch.no_grad():
        empty, both = model.encode([""]), model.encode(["", "a dog"])
    assert empty.cross.shape[1] == 0
    assert empty.distance(empty).tolist() == [0.0]
    assert both.distance(both.moved(both.mean(), 1.0))[0] == 0.0


def test_biases_of_experts_are_trained_in_full(pack: ModuleType) -> None:
    """They are a matrix, of which the host would take no LoRA."""
    loaded = build("GPT-OSS, Lens")
    weights = comfy_model(pack, loaded).selected("encoder", "mlp-final-attn")
    edit = pack.unlearn.core.edit.Edit(weights, rank=2)
    full = {key for key, delta in edit.deltas.items() if delta.full is not None}
    assert full == {key for key in weights if key.endswith(".bias")}


def test_experts_in_few_bits_get_a_sentence(pack: ModuleType, tmp_path: Path) -> None:
    """In the form in which the host loads them."""
    import comfy.quant_ops

    loaded = build("GPT-OSS, Lens")
    bank = loaded.clip.cond_stage_model.gpt_oss.transformer.layers[0].mlp.experts.down_proj
    layout = comfy.quant_ops.QUANT_ALGOS["float8_e4m3fn"]["comfy_tensor_layout"]
    each = [comfy.quant_ops.QuantizedTensor.from_float(one, layout) for one in bank.weight]
    stored = [one.state_dict("weight") for one in each]
    stored = {name: torch.stack([one[name] for one in stored]) for name in stored[0]}
    how = {"format": "float8_e4m3fn", "num_experts": len(each)}
    stored["comfy_quant"] = torch.frombuffer(bytearray(json.dumps(how).encode()), dtype=torch.uint8)
    bank.load_state_dict({**stored, "bias": bank.bias})
    with pytest.raises(ValueError, match="experts of a layer in one quantised tensor"):
        run_node(pack, loaded, tmp_path)


# That none is forgotten


def classes_of_the_host() -> set[type]:
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.text_encoders

    package = comfy.text_encoders
    names = [found.name for found in pkgutil.iter_modules(package.__path__, package.__name__ + ".")]
    modules = [comfy.sd1_clip, comfy.sdxl_clip, *map(importlib.import_module, names)]
    return {
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type)
        and hasattr(kind, "encode_token_weights")
        and kind.__module__ == module.__name__
    }


def built(made: Callable[[], dict]) -> torch.nn.Module | None:
    """A layout's encoder, without memory; None of one that an older ComfyUI does not have."""
    try:
        layout = made()
    except (ImportError, AttributeError) as error:
        if not is_absent(error):
            raise
        return None
    sizes = {**SMALL_ENCODERS, **layout.get("encoders", {})}
    meta = torch.device("meta")
    return layout["encoder"](device=meta, dtype=torch.float32, model_options=sizes)


def test_every_text_encoder_of_the_host_is_tested_or_named(pack: ModuleType) -> None:
    layouts = [*encoder_layouts.ENCODERS.values(), *OTHERS.values()]
    layouts += [layout for layout, _ in REFUSED.values()]
    roots = [root for root in map(built, layouts) if root is not None]
    tested = {kind for root in roots for module in root.modules() for kind in type(module).__mro__}
    names = {
        f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"
        for kind in classes_of_the_host() - tested
    }
    unknown = sorted(names - UNTESTED.keys())
    assert not unknown, (
        f"This ComfyUI has text encoders that no test knows: {', '.join(unknown)}. Give each an "
        "entry in other_encoder_layouts.py, in OTHERS where it trains and in REFUSED, with its "
        "sentence, where it does not; or name it in UNTESTED with the reason."
    )


def test_the_families_that_are_tested_by_default_are_there() -> None:
    assert {*encoder_layouts.ENCODERS, *OTHERS, *LAYOUTS} >= ONE_OF_EACH
