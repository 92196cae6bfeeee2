"""Few-Shot Encoder Unlearn on every kind of text encoder, each with a MODEL that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from encoder_layouts import ENCODERS, LLAMA, build, quantised, text_encoder
from families import family_first, only
from layouts import SMALL_CLIP, Loaded

pytestmark = pytest.mark.usefixtures("node_body", "small_runs")

SIDE = 64  # pixels
# Two of one length and one that is longer; the last is what guidance is measured against.
PROMPTS = ("a photo of a cat", "a photo of a dog", "a dog in ink style and a red fox", "")
CLIP_L = "clip_l.transformer.text_model.encoder.layers"
CLIP_G = "clip_g.transformer.text_model.encoder.layers"
CLIP_H = "clip_h.transformer.text_model.encoder.layers"
T5 = "t5xxl.transformer.encoder.block"
QWEN25 = "qwen25_7b.transformer.model.layers"
QWEN3 = "qwen3_4b.transformer.model.layers"

# How many of the last layers of each stack go unread, as the host's classes have it: SDXL reads of
# CLIP-L the last but one, of CLIP-G that and the pooled vector, which goes through all layers; SD 3
# and Flux read CLIP-L's pooled vector, too; language models are read one or two layers early, Flux
# 2 Klein at what enters layer 27 of 29 here; Qwen's eye sees nothing of a prompt, and T5 for bytes
# what is quoted in it, which the methods' prompts do not.
UNREAD = {
    "CLIP-L, SD 1.5": {CLIP_L: 0},
    "CLIP-L and CLIP-G, SDXL": {CLIP_L: 1, CLIP_G: 0},
    "CLIP-L and CLIP-G, SD 3": {CLIP_L: 0, CLIP_G: 0},
    "OpenCLIP-H, SD 2": {CLIP_H: 1},
    "T5, SD 3": {T5: 0},
    "CLIP-L and T5, Flux": {CLIP_L: 0, T5: 0},
    "T5, LTX": {T5: 0},
    "T5, CogVideoX": {T5: 0},
    "UMT5, Wan": {"umt5xxl.transformer.encoder.block": 0},
    "Llama and CLIP-L, HunyuanVideo": {CLIP_L: 0, "llama.transformer.model.layers": 2},
    "Qwen 2.5 VL, Qwen-Image": {
        QWEN25: 0,
        "qwen25_7b.transformer.visual.blocks": 2,
    },
    "Qwen 2.5 VL and ByT5, HunyuanVideo 1.5": {
        QWEN25: 2,
        "qwen25_7b.transformer.visual.blocks": 2,
        "byt5_small.transformer.encoder.block": 2,
    },
    "Qwen 2.5 VL and CLIP-L, Kandinsky 5": {
        QWEN25: 0,
        "qwen25_7b.transformer.visual.blocks": 2,
        CLIP_L: 0,
    },
    "Qwen 2.5, OmniGen 2": {"qwen25_3b.transformer.model.layers": 0},
    "Qwen 3, Z-Image": {QWEN3: 1},
    "Qwen 3, Flux 2 Klein": {QWEN3: 2},
    "Gemma 2, Lumina 2": {"gemma2_2b.transformer.model.layers": 1},
    "Gemma 3, Lumina 2": {"gemma3_4b.transformer.model.layers": 1},
    "Gemma 3, LTX-2": {
        "gemma3_12b.transformer.model.layers": 0,
        "gemma3_12b.transformer.vision_model.encoder.layers": 2,
    },
}


# What takes longer than a gradient: on two together, on those that pad and that do not.
TRAINED = ("CLIP-L and CLIP-G, SDXL",)
READ = (*TRAINED, "T5, LTX", "Llama and CLIP-L, HunyuanVideo", "Qwen 3, Z-Image")


@pytest.fixture(scope="module", params=family_first(ENCODERS))
def loaded(request: pytest.FixtureRequest, pack: ModuleType) -> Loaded:
    with torch.inference_mode():  # as the host's loader nodes run
        return build(request.param)


def comfy_model(pack: ModuleType, loaded: Loaded, **options: Any) -> Any:
    return pack.nodes.backend.model.ComfyModel(
        loaded.model, loaded.clip, None, (SIDE, SIDE), **options
    )


def selected(pack: ModuleType, loaded: Loaded, trainable: str) -> dict[str, torch.Tensor]:
    weights = pack.unlearn.core.trainable.encoder_weights
    return weights(loaded.clip.cond_stage_model, trainable, UNREAD[loaded.name])


def conditioning(clip: Any, prompt: str = PROMPTS[0]) -> dict[str, torch.Tensor]:
    """All that CLIP Text Encode would hand on, as tensors."""
    output = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True, return_dict=True)
    return {name: value.clone() for name, value in output.items() if torch.is_tensor(value)}


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


# What is read


@contextmanager
def other_weights(layers: Any) -> Iterator[None]:
    """Some layers' weights turned around by hand."""
    before = [(weight, weight.clone()) for layer in layers for weight in layer.parameters()]
    for weight, _ in before:
        weight.copy_(weight.flip(0))
    yield
    for weight, value in before:
        weight.copy_(value)


def given(pack: ModuleType, loaded: Loaded) -> list[torch.Tensor]:
    """What the network gets of a prompt."""
    model = comfy_model(pack, loaded)
    return [tensor.clone() for tensor in model._given(model.encode(PROMPTS[:1]))]


def test_layers_that_go_unread_change_nothing_and_the_last_one_read_does(
    pack: ModuleType, loaded: Loaded
) -> None:
    assert comfy_model(pack, loaded)._unread == UNREAD[loaded.name]
    original = given(pack, loaded)
    for path, unread in UNREAD[loaded.name].items():
        layers = list(loaded.clip.cond_stage_model.get_submodule(path))
        read = len(layers) - unread
        with other_weights(layers[read:]):
            found = given(pack, loaded)
        assert all(map(torch.equal, found, original)), path
        if read:
            with other_weights(layers[read - 1 : read]):
                found = given(pack, loaded)
            assert not all(map(torch.equal, found, original)), path


@pytest.mark.parametrize(
    ("name", "skip", "wanted"),
    [
        ("CLIP-L, SD 1.5", -2, {CLIP_L: 1}),
        ("CLIP-L and CLIP-G, SDXL", -2, {CLIP_L: 1, CLIP_G: 0}),
        ("CLIP-L and CLIP-G, SDXL", -1, {CLIP_L: 0, CLIP_G: 0}),
        ("CLIP-L and CLIP-G, SDXL", -3, {CLIP_L: 2, CLIP_G: 0}),
        ("OpenCLIP-H, SD 2", -1, {CLIP_H: 0}),
        ("T5, LTX", -2, {T5: 1}),
    ],
)
def test_clip_skip_counts_for_each_encoder_as_the_host_applies_it(
    pack: ModuleType, name: str, skip: int, wanted: dict
) -> None:
    loaded = build(name)
    loaded.clip.clip_layer(skip)
    assert comfy_model(pack, loaded)._unread == wanted


def test_selection_is_the_papers_in_what_is_read(pack: ModuleType, loaded: Loaded) -> None:
    """Feed-forward in every layer that is read, attention in the last of them."""
    model = comfy_model(pack, loaded)
    found: dict[tuple[str, int], set[bool]] = {}
    for key in model.selected("encoder", "mlp-final-attn"):
        path = next(path for path in UNREAD[loaded.name] if key.startswith(path + "."))
        layer, _, name = key.removeprefix(path + ".").partition(".")
        found.setdefault((path, int(layer)), set()).add("attn" in name or "Attention" in name)
    wanted = {}
    for path, unread in UNREAD[loaded.name].items():
        read = len(loaded.clip.cond_stage_model.get_submodule(path)) - unread
        wanted |= {(path, i): {False, True} if i == read - 1 else {False} for i in range(read)}
    assert found == wanted


# What trains


def gradients_of(
    pack: ModuleType, loaded: Loaded, checkpointing: bool
) -> dict[str, torch.Tensor | None]:
    """Of the denoising loss of two random latents under two prompts, by a delta of each weight."""
    with (
        comfy_model(pack, loaded, checkpointing=checkpointing).training() as model,
        model.edit("encoder", "all") as edit,
    ):
        generator = torch.Generator().manual_seed(1)
        x_t, noise = model.noise(2, generator), model.noise(2, generator)
        t = torch.tensor([300.0, 700.0], device=model.device)
        target = model.target(x_t, noise, t)
        (model.predict(x_t, t, model.encode(PROMPTS[1:3])) - target).square().mean().backward()
        return {key: delta.full.grad for key, delta in edit.deltas.items()}


@pytest.fixture(scope="module")
def gradients(pack: ModuleType, loaded: Loaded) -> dict[str, torch.Tensor | None]:
    """Of every weight, all activations kept."""
    with torch.inference_mode():
        return gradients_of(pack, loaded, checkpointing=False)


def test_gradient_reaches_every_selected_weight(
    pack: ModuleType, loaded: Loaded, gradients: dict[str, torch.Tensor | None]
) -> None:
    for trainable in ("mlp-final-attn", "mlp", "attention"):
        assert selected(pack, loaded, trainable).keys() <= gradients.keys()
    inside = tuple(path + "." for path in UNREAD[loaded.name])
    for key, gradient in gradients.items():
        # Beside the layers lies what no prompt passes: projections, an eye's first layer.
        if key.startswith(inside):
            assert gradient is not None, key
            assert gradient.isfinite().all(), key
            assert gradient.abs().max() > 0, key
    for root in (loaded.model.model, loaded.clip.cond_stage_model):
        assert all(parameter.grad is None for parameter in root.parameters())


def test_recomputed_gradients_are_the_same(
    pack: ModuleType, loaded: Loaded, gradients: dict[str, torch.Tensor | None]
) -> None:
    """Where memory is short the encoder's layers are computed again, norms that change included."""
    found = gradients_of(pack, loaded, checkpointing=True)
    largest = max(float(g.abs().max()) for g in gradients.values() if g is not None)
    for key, gradient in gradients.items():
        if gradient is None:
            assert found[key] is None or not found[key].any(), key
        else:
            apart = (found[key] - gradient).abs().max()
            assert apart <= 1e-3 * gradient.abs().max() + 1e-5 * largest, key


def test_what_a_prompt_quotes_is_a_sentence(pack: ModuleType) -> None:
    loaded = build("Qwen 2.5 VL and ByT5, HunyuanVideo 1.5")
    with comfy_model(pack, loaded).training() as model:
        assert len(model.encode(["a sign that says cat", "a dog"])) == 2
        with pytest.raises(ValueError, match="leave the quotation marks out") as error:
            model.encode(["a dog", 'a sign that says "cat"'])
    assert "\n" not in str(error.value)


def test_umt5_keeps_no_bias_that_goes_unread(pack: ModuleType) -> None:
    """Each of its blocks makes one for every head and pair of tokens."""
    with torch.inference_mode():
        loaded = build("UMT5, Wan")
    kept: list[torch.Size] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with (
        comfy_model(pack, loaded, checkpointing=True).training() as model,
        model.edit("encoder", "mlp-final-attn"),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        tokens = model.encode(PROMPTS[:1]).cross.shape[1]
    assert kept
    assert not [shape for shape in kept if shape[1:] == (4, tokens, tokens)]


def test_tokens_of_a_name_are_counted(pack: ModuleType, loaded: Loaded) -> None:
    with comfy_model(pack, loaded).training() as model:
        assert [model.token_count(words) for words in ("cat", "cat dog")] == [1, 2]


def test_parentheses_are_read_as_themselves(pack: ModuleType, loaded: Loaded) -> None:
    """And not as weights, nor with the backslashes that escape them for the host."""
    words, clip = pack.nodes.backend.words, loaded.clip
    tokens = words.tokenized(clip, "a photo of a cat (dog)")
    for name in words.encoder_names(clip, tokens):
        pieces = words.part_named(clip.tokenizer, name).inv_vocab
        for token, weight, *_ in (token for section in tokens[name] for token in section):
            assert weight == 1.0
            assert "\\" not in pieces.get(int(token), "")


@pytest.mark.parametrize("loaded", only(*READ, of=ENCODERS), indirect=True)
def test_words_are_sought_for_prompts_of_any_length(pack: ModuleType, loaded: Loaded) -> None:
    """By both attacks that write prompts; encoders that do not pad make unlike conditionings."""
    science, own = pack.unlearn, [PROMPTS[2], PROMPTS[0]]
    ring = science.attacks.ring_a_bell.RingABellSettings(tokens=3, steps=1, tries=1, pairs=2)
    prefix = science.attacks.unlearn_diff_atk.UnlearnDiffAtkSettings(
        tokens=2, steps=1, tries=1, draws=1, first_steps=1
    )
    with comfy_model(pack, loaded).training() as model:
        with torch.no_grad():
            wanted = model.encode(own)
        targets = model.noise(2, torch.Generator().manual_seed(1)).to(model.device)
        if loaded.name.startswith("Llama"):  # of which the host takes no vectors there
            with pytest.raises(ValueError, match="neither be attacked by words nor hardened"):
                science.attacks.ring_a_bell.ring_a_bell(model, "cat", own, "object", ring)
            settings = science.methods.few_shot.FewShotSettings(harden=1.0)
            with pytest.raises(ValueError, match="neither be attacked"):
                science.methods.few_shot.few_shot(model, ["cat"], None, settings, pytest.fail)
            return
        nameless = science.attacks.ring_a_bell.ring_a_bell(model, "cat", own, "object", ring)
        prefixed = science.attacks.unlearn_diff_atk.unlearn_diff_atk(
            model, own, wanted, targets, "object", prefix
        )
    assert [len(prompt.split()) for prompt in nameless] == [3, 3]
    assert not any("cat" in prompt for prompt in nameless)
    for prompt, before in zip(prefixed.prompts, own):
        assert prompt.endswith(f" {before}")
        assert len(prompt.split()) == len(before.split()) + 2


@pytest.mark.parametrize("loaded", only(*READ, of=ENCODERS), indirect=True)
def test_prompts_are_read_together_as_each_alone(pack: ModuleType, loaded: Loaded) -> None:
    """However many tokens they have, and whatever of a template is cut off."""
    with comfy_model(pack, loaded).training() as model, torch.no_grad():
        x_t = model.noise(1, torch.Generator().manual_seed(1))
        t = torch.tensor([500.0], device=model.device)
        each = [model.encode([prompt]) for prompt in PROMPTS]
        alone = torch.cat([model.predict(x_t, t, one) for one in each])
        together = model.encode(PROMPTS)
        found = model.predict(x_t.repeat_interleave(4, 0), t.repeat(4), together)
        drawn = model.sample(PROMPTS[:3], seed=5, steps=2)
        drawn_alone = torch.cat([model.sample([PROMPTS[i]], 5 + i, steps=2) for i in range(3)])
    assert torch.allclose(drawn, drawn_alone, rtol=1e-3, atol=1e-3)
    apart = (alone[0] - alone[1]).abs().max()
    assert apart > 1e-5, "a test on prompts that the network cannot tell apart"
    assert torch.allclose(found, alone, atol=0.01 * float(apart))
    for i, one in enumerate(each):
        assert torch.allclose(together.single(i).cross, one.cross, atol=1e-5)


# What an erasure changes


def random_erasure(pack: ModuleType, weights: dict[str, torch.Tensor]) -> Any:
    """Changes of a tenth of each weight."""
    generator = torch.Generator().manual_seed(2)
    deltas = {
        key: {"diff": 0.1 * weight.std() * torch.randn(weight.shape, generator=generator)}
        for key, weight in weights.items()
    }
    return pack.unlearn.core.erasure.Erasure(deltas, {"concepts": ["cat"]})


def test_conditioning_changes_by_exactly_the_delta(
    pack: ModuleType, loaded: Loaded, tmp_path: Path
) -> None:
    """An erasure from a file against weights replaced by hand."""
    weights = selected(pack, loaded, "mlp-final-attn")
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


# The node


def run_node(pack: ModuleType, loaded: Loaded, folder: Path, **inputs: Any) -> tuple:
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(folder))
    node = pack.nodes.few_shot.FewShotEncoderUnlearn.PREPARE_CLASS_CLONE(None)
    values = {
        "concept": "cat",
        "kind": "object",
        "shots": 1,
        "size": SIDE,
        "mode": "balanced",
        "trainable": "mlp-final-attn",
        "rank": 0,
        "max_steps": 2,
        "epochs": 2,
        "seed": 0,
        "verdict": False,
    }
    try:
        return node.execute(loaded.model, loaded.clip, None, **{**values, **inputs}).result
    finally:
        folder_paths.set_output_directory(before)


@pytest.mark.parametrize(("mode", "rank"), [("balanced", 2), ("paper", 0)])
@pytest.mark.parametrize("loaded", only(*TRAINED, of=ENCODERS), indirect=True)
def test_node_trains_every_selected_weight_and_leaves_the_model(
    pack: ModuleType, loaded: Loaded, mode: str, rank: int, tmp_path: Path
) -> None:
    roots = (loaded.clip.cond_stage_model, loaded.model.model)
    before = [{k: v.clone() for k, v in root.state_dict().items()} for root in roots]
    clip, erasure, _, losses, summary = run_node(pack, loaded, tmp_path, mode=mode, rank=rank)
    (file,) = tmp_path.rglob("*.safetensors")
    kept = pack.unlearn.core.erasure.Erasure.load(file)
    assert erasure.deltas.keys() == kept.deltas.keys()
    assert erasure.deltas.keys() == selected(pack, loaded, "mlp-final-attn").keys()
    assert all(kept.delta(key).any() for key in kept.deltas)
    assert len(losses["loss"]) == 2
    assert "2 steps" in summary
    original = conditioning(loaded.clip)
    assert not torch.equal(conditioning(clip)["cond"], original["cond"])
    reloaded, warning = pack.nodes.backend.apply.erased_clip(loaded.clip, kept)
    assert warning == ""
    for name, value in conditioning(reloaded).items():
        assert torch.allclose(value, conditioning(clip)[name], atol=1e-3), name
    conditioning(loaded.clip)  # the host puts its own weights back
    for root, values in zip(roots, before):
        now = root.state_dict()
        assert now.keys() == values.keys()
        assert all(torch.equal(now[key], value) for key, value in values.items())


# Encoders in few bits

FORMS = ("fp8", "float8_e4m3fn", "int8_tensorwise", "nvfp4")


@pytest.mark.parametrize("form", only("fp8", "int8_tensorwise", of=FORMS))
def test_encoder_in_few_bits_trains_and_its_file_fits(
    pack: ModuleType, form: str, tmp_path: Path
) -> None:
    """As UMT5-XXL and T5-XXL are mostly used: fp8, plain and scaled, and what came after it."""
    loaded = quantised(form)
    before = conditioning(loaded.clip)
    clip, erasure, *_ = run_node(pack, loaded, tmp_path)
    assert len(erasure.deltas) == 10
    assert all(erasure.delta(key).any() for key in erasure.deltas)
    assert_equal(conditioning(loaded.clip), before)
    (file,) = tmp_path.rglob("*.safetensors")
    kept = pack.unlearn.core.erasure.Erasure.load(file)
    again, warning = pack.nodes.backend.apply.erased_clip(loaded.clip, kept)
    assert warning == ""
    after, found = conditioning(clip)["cond"], conditioning(again)["cond"]
    moved = (after - before["cond"]).norm()
    assert moved > 0.02 * after.norm()
    # The file is in half precision, and a change of one unit in it may round a weight another way.
    assert (found - after).norm() < 0.2 * moved


# What it cannot do


def refused(pack: ModuleType, loaded: Loaded, folder: Path, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run_node(pack, loaded, folder)
    assert not list(folder.rglob("*.safetensors"))


def test_encoder_of_another_width_gets_a_sentence(
    pack: ModuleType, loaded: Loaded, tmp_path: Path
) -> None:
    """Before the host would stop at shapes of matrices."""
    import comfy.sd1_clip

    wider = {"clip_l_model_config": {**SMALL_CLIP, "hidden_size": 48}}
    other = text_encoder(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel, wider)
    sentence = (
        r"gives 48 numbers for each token and the model reads \d+: they do not belong together"
    )
    refused(pack, replace(loaded, clip=other), tmp_path, sentence)


def hidream() -> Any:
    import comfy.text_encoders.hidream as hidream

    sizes = {"llama_model_config": LLAMA}
    return text_encoder(hidream.HiDreamTokenizer, hidream.hidream_clip(), sizes)


def anima() -> Any:
    import comfy.text_encoders.anima as anima

    sizes = {"qwen3_06b_model_config": LLAMA}
    return text_encoder(anima.AnimaTokenizer, anima.te(), sizes)


def hidream_o1() -> Any:
    """It passes the tokens' numbers on; its network is the text encoder, too."""
    import comfy.text_encoders.hidream_o1 as hidream_o1

    return text_encoder(hidream_o1.HiDreamO1Tokenizer, hidream_o1.HiDreamO1TE, {})


@pytest.mark.parametrize(
    ("encoder", "what"),
    [
        (hidream, "conditioning_llama3"),
        (anima, "t5xxl_ids, t5xxl_weights"),
        (hidream_o1, "text_input_ids"),
    ],
)
def test_encoder_that_hands_on_more_than_vectors_gets_a_sentence(
    pack: ModuleType, encoder: Callable[[], Any], what: str, tmp_path: Path
) -> None:
    loaded = replace(build("UMT5, Wan"), clip=encoder())
    sentence = rf"gives more than one vector .* \({what}\), as those of HiDream and Anima do"
    refused(pack, loaded, tmp_path, sentence)


def test_model_that_makes_sound_gets_a_sentence(pack: ModuleType, tmp_path: Path) -> None:
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.ACEStep({"audio_model": "ace", "dtype": torch.float32})
    config.set_inference_dtype(torch.float32, None)
    network = config.get_model({}, "", device="meta")  # its full size, without the memory
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.CoreModelPatcher(network, cpu, cpu)
    loaded = replace(build("T5, LTX"), model=patcher)
    with pytest.raises(ValueError, match="This MODEL makes sound: there are no pictures"):
        comfy_model(pack, loaded).check_encoder()


def test_encoder_without_its_tokenizer_never_comes_to_be(pack: ModuleType) -> None:
    """The host says so while it loads the file."""
    import comfy.text_encoders.wan as wan

    with pytest.raises(ValueError, match="invalid tokenizer"):
        text_encoder(wan.WanT5Tokenizer, wan.te(), {})
