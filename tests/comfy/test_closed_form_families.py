"""The closed form on every kind of text encoder that the pack trains, small, with random weights.

Random layers generalise from nothing, so what is looked at are prompts that the solve has seen. The
feed-forward layers are wide, as in real encoders: they have room for what moves beside what stays.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from encoder_layouts import ENCODERS, quantised
from families import only
from layouts import SMALL_ENCODERS, Loaded, assemble, where_present
from other_encoder_layouts import OTHERS
from test_encoders import assert_equal, conditioning

pytestmark = pytest.mark.usefixtures("node_body")

ALL = {**ENCODERS, **OTHERS}
FEW = {"sentences": 6, "others": 8, "directions": 0, "other_names": False, "hold": 25.0}
# The width within it; that of the hidden states is 32. PixelDiT pads to 838 tokens.
FEED_FORWARD, FOR_LONG = 768, 3072
PADDED = ("t5xxl", "umt5xxl", "pile_t5xl", "qwen3_4b", "qwen3_8b", "qwen3_2b")
# What is left of the way from the concept to the anchor, of mean squares. Where most tokens are
# padding, they are more different inputs than there is room for.
LEFT, LEFT_PADDED = 0.03, 0.3
LONG = ("CLIP", "LTX-2", "LongCat", "PixelDiT")
# One of each way in which layers end, and of several encoders in one CLIP.
SOLVED = (
    "CLIP-L and CLIP-G, SDXL",
    "T5, LTX",
    "Gemma 3, Lumina 2",
    "Qwen 3, Z-Image",
    "Jina CLIP",
    "GPT-OSS, Lens",
)
MOVED = 0.04  # how far other prompts go on the same scale


def built(name: str) -> Loaded:
    with where_present(name), torch.inference_mode():
        layout = ALL[name]()
        sizes = {**SMALL_ENCODERS, **layout.get("encoders", {})}
        width = FOR_LONG if "PixelDiT" in name else FEED_FORWARD
        layout["encoders"] = {key: wider(value, width) for key, value in sizes.items()}
        loaded = assemble(name, **layout)
    for encoder in PADDED:
        loaded.clip.set_tokenizer_option(f"{encoder}_min_length", 32)
    return loaded


def wider(sizes: Any, width: int) -> Any:
    if not isinstance(sizes, dict):
        return sizes
    if "num_local_experts" in sizes:  # of which the attention is changed: many heads
        return {**sizes, "num_attention_heads": width // 32, "head_dim": 32}
    return {k: width if k in ("intermediate_size", "d_ff") else v for k, v in sizes.items()}


@pytest.fixture(scope="module", params=only(*SOLVED, of=ALL))
def loaded(request: pytest.FixtureRequest, pack: ModuleType) -> Loaded:
    return built(request.param)


def comfy_model(pack: ModuleType, loaded: Loaded) -> Any:
    side = 320 if "PixArt" in loaded.name else 64
    return pack.nodes.backend.model.ComfyModel(loaded.model, loaded.clip, None, (side, side))


def unlearnt(pack: ModuleType, loaded: Loaded, concept: str, anchor: str, **more: Any) -> tuple:
    """(erasure, prompts of the concept, of the anchor, others), of those that the solve saw."""
    closed, model = pack.unlearn.methods.closed_form, comfy_model(pack, loaded)
    settings = closed.ClosedFormSettings(anchor=anchor, **{**FEW, **more})
    with model.training(gradients=False):
        erasure = closed.closed_form(model, [concept], settings)
        parts = pack.unlearn.methods.parts
        prompts = parts.solve_prompts.Prompts.of(model, [concept], settings.solve)
    by_part = []
    for part in ("named", "neutral", "others"):
        batches = zip(prompts.batches, prompts.numbers, prompts.parts)
        found = {i: p for batch, own, of in batches if of == part for i, p in zip(own, batch)}
        by_part.append([found[i] for i in sorted(found)][:3])
    return erasure, *by_part


def erased(pack: ModuleType, loaded: Loaded, erasure: Any) -> Any:
    clip, warning = pack.nodes.backend.apply.erased_clip(loaded.clip, erasure)
    assert warning == ""
    return clip


def apart(one: Any, prompts: list[str], other: Any, theirs: list[str]) -> float:
    """The mean squares between what two encoders give of prompts. Where prompts are of different
    lengths, of their last tokens."""
    total = 0.0
    for mine, its in zip(prompts, theirs, strict=True):
        a, b = conditioning(one, mine), conditioning(other, its)
        for key in a.keys() & b.keys() & {"cond", "pooled_output"}:
            x, y = a[key].float(), b[key].float()
            if x.shape != y.shape:
                x, y = x[:, -1], y[:, -1]
            total += float((x - y).square().mean())
    return total


def test_the_concept_is_read_as_its_anchor_and_others_as_before(
    pack: ModuleType, loaded: Loaded, tmp_path: Path
) -> None:
    import comfy.sd
    import comfy.utils

    root, patcher = loaded.clip.cond_stage_model, loaded.clip.patcher
    before = {key: weight.clone() for key, weight in root.state_dict().items()}
    erasure, named, neutral, others = unlearnt(pack, loaded, "cat", "dog")
    now = root.state_dict()
    assert all(torch.equal(now[key], weight) for key, weight in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in root.modules())
    assert erasure.deltas.keys() <= patcher.model_state_dict().keys()
    layers = [name for name, _ in comfy_model(pack, loaded).encoder_layers()]
    assert len(erasure.deltas) == len(layers)
    assert all(any(key.startswith(f"{name}.") for name in layers) for key in erasure.deltas)

    clip = erased(pack, loaded, erasure)
    before_apart = apart(loaded.clip, named, loaded.clip, neutral)
    limit = LEFT_PADDED if any(part in loaded.name for part in LONG) else LEFT
    assert apart(clip, named, loaded.clip, neutral) < limit * before_apart
    assert apart(clip, others, loaded.clip, others) < MOVED * before_apart

    erasure.save(tmp_path / "a.safetensors", torch.float32)
    tensors = comfy.utils.load_torch_file(str(tmp_path / "a.safetensors"))
    _, stock = comfy.sd.load_lora_for_models(None, loaded.clip, tensors, 0.0, 1.0)
    found, wanted = conditioning(stock, named[0]), conditioning(clip, named[0])
    for key, value in wanted.items():
        assert torch.allclose(found[key], value, atol=1e-4 * float(value.abs().max())), key


@pytest.mark.slow
def test_the_clip_alone_tells_which_layers_are_read(pack: ModuleType, loaded: Loaded) -> None:
    """All that the denoiser is given something of, and at most those behind them beside."""
    alone = pack.nodes.backend.encoder_model.ComfyEncoder(loaded.clip)
    planned = alone.prepare("encoder", "mlp", 4, 1, prompts=8)
    assert 0 < planned.needed < planned.free
    read = [name for name, _ in comfy_model(pack, loaded).encoder_layers()]
    with alone.training():
        assert {name for name, _ in alone.encoder_layers()} >= set(read)


WITHOUT_A_MODEL = ("CLIP-L and CLIP-G, SDXL", "Gemma 3, Lumina 2", "Qwen 2.5 VL, Qwen-Image")


@pytest.mark.parametrize("name", only("Gemma 3, Lumina 2", of=WITHOUT_A_MODEL))
def test_the_clip_alone_gives_the_same(pack: ModuleType, name: str) -> None:
    loaded = built(name)
    erasure, *_ = unlearnt(pack, loaded, "cat", "dog")
    closed = pack.unlearn.methods.closed_form
    alone = pack.nodes.backend.encoder_model.ComfyEncoder(loaded.clip)
    with alone.training():
        found = closed.closed_form(alone, ["cat"], closed.ClosedFormSettings(anchor="dog", **FEW))
    assert found.record["base"].items() >= erasure.record["base"].items()
    for key in erasure.deltas:
        one, other = erasure.delta(key), found.delta(key)
        assert (one - other).norm() <= 0.01 * one.norm(), key


UNPADDED = (
    "Qwen 2.5 VL, Qwen-Image",
    "Qwen 3 VL, Ideogram 4",
    "Gemma 3, Lumina 2",
    "Ministral, Ernie",
)


@pytest.mark.parametrize("name", only("Gemma 3, Lumina 2", of=UNPADDED))
@pytest.mark.parametrize(("concept", "anchor"), [("fox", "old house"), ("old red fox", "dog")])
def test_an_anchor_may_have_more_tokens_or_fewer(
    pack: ModuleType, name: str, concept: str, anchor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = built(name)
    sampler = pack.unlearn.prompts.sampler.PromptSampler
    monkeypatch.setattr(sampler, "neutral", lambda self, concept, model: self.anchors[concept])
    erasure, named, neutral, others = unlearnt(pack, loaded, concept, anchor)
    lengths = [conditioning(loaded.clip, some[0])["cond"].shape[1] for some in (named, neutral)]
    assert lengths[0] != lengths[1]
    clip = erased(pack, loaded, erasure)
    before_apart = apart(loaded.clip, named, loaded.clip, neutral)
    assert apart(clip, named, loaded.clip, neutral) < 0.1 * before_apart
    assert apart(clip, others, loaded.clip, others) < MOVED * before_apart


@pytest.mark.parametrize("name", only("Gemma 3, Lumina 2", of=("Gemma 3, Lumina 2", "Jina CLIP")))
def test_directions_stay_out_of_what_passes_a_norm(pack: ModuleType, name: str) -> None:
    """Nothing of them is left in what the last linear layers give, whatever the prompt."""
    loaded = built(name)
    erasure, *_ = unlearnt(pack, loaded, "cat", "dog", directions=2)
    last = list(erasure.deltas)[-2:]
    clip = erased(pack, loaded, erasure)
    conditioning(clip, "a painting of a fox")  # the host puts the change into the weights
    for key in last:
        out = erasure.deltas[key]["lora_up"][:, -2:]
        assert torch.allclose(out.T @ out, torch.eye(2), atol=1e-5)
        weight = clip.patcher.model_state_dict()[key].float()
        assert (out.T @ weight).norm() < 1e-4 * weight.norm()
    conditioning(loaded.clip)  # and takes it out again


def test_all_encoders_of_a_clip_lose_directions_in_their_last_layers(pack: ModuleType) -> None:
    loaded = built("CLIP-L and CLIP-G, SDXL")
    plain, *_ = unlearnt(pack, loaded, "cat", "dog")
    more, *_ = unlearnt(pack, loaded, "cat", "dog", directions=1)
    assert plain.deltas.keys() == more.deltas.keys()
    same = [key for key in plain.deltas if torch.equal(plain.delta(key), more.delta(key))]
    # Of CLIP-L two layers are read, of CLIP-G three.
    assert same == ["clip_g.transformer.text_model.encoder.layers.0.mlp.fc2.weight"]


@pytest.mark.parametrize(
    "form", only("fp8", of=("fp8", "float8_e4m3fn", "int8_tensorwise", "nvfp4"))
)
def test_an_encoder_in_few_bits_is_solved_like_any_other(pack: ModuleType, form: str) -> None:
    loaded = quantised(form)
    before = conditioning(loaded.clip)
    few = {"sentences": 4, "others": 4, "hold": 1.0, "directions": 1, "last": 1}
    erasure, named, neutral, _ = unlearnt(pack, loaded, "cat", "dog", **few)
    assert [delta["lora_up"].shape[0] for delta in erasure.deltas.values()] == [32, 32]
    assert_equal(conditioning(loaded.clip), before)
    clip = erased(pack, loaded, erasure)
    # The host stores the changed weights in as few bits as before.
    assert apart(clip, named, loaded.clip, neutral) < 0.6 * apart(
        loaded.clip, named, loaded.clip, neutral
    )


def test_in_wide_layers_it_is_solved_in_tokens_words_first(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, solver = built("T5, LTX"), pack.unlearn.methods.parts.encoder_solver
    seen = []

    def noted(inputs: list, wanted: list, held: list, *more: float) -> torch.Tensor:
        seen.append([sum(map(len, parts)) for parts in (inputs, wanted, held)])
        return pack.unlearn.methods.parts.least_squares.solve(inputs, wanted, held, *more)

    monkeypatch.setattr(solver, "solve", noted)
    monkeypatch.setattr(solver, "WIDE", FEED_FORWARD - 1)
    monkeypatch.setattr(solver, "TOKENS", 240)
    erasure, named, neutral, _ = unlearnt(pack, loaded, "cat", "dog")
    for own, wanted, held in seen:
        assert own == wanted
        assert 45 < own < 75
        assert 145 < held < 215
    # Of 192 tokens of the concept's prompts a third is seen, of the padding next to nothing.
    left = apart(erased(pack, loaded, erasure), named, loaded.clip, neutral)
    assert left < 0.6 * apart(loaded.clip, named, loaded.clip, neutral)


# What it cannot do


def test_what_a_prompt_quotes_gets_a_sentence(pack: ModuleType) -> None:
    loaded = built("Qwen 2.5 VL and ByT5, HunyuanVideo 1.5")
    with (
        comfy_model(pack, loaded).training(gradients=False) as model,
        pytest.raises(ValueError, match="leave the quotation marks out"),
    ):
        model.read(['a sign that says "cat"'])


def test_prompts_are_read_together_only_where_each_is_read_as_alone(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each alone is the same erasure, but fewer prompts."""
    loaded = built("T5, LTX")
    together, *_ = unlearnt(pack, loaded, "cat", "dog")
    monkeypatch.setattr(
        pack.unlearn.methods.parts.solve_prompts, "read_together", lambda model, prompts: False
    )
    alone, *_ = unlearnt(pack, loaded, "cat", "dog")
    for key in together.deltas:
        one, other = together.delta(key), alone.delta(key)
        assert (one - other).norm() < 0.05 * one.norm(), key
    monkeypatch.setattr(pack.unlearn.methods.parts.solve_prompts, "ALONE", 8)
    fewer, *_ = unlearnt(pack, loaded, "cat", "dog")
    assert (fewer.delta(key) - alone.delta(key)).norm() > 0.05 * alone.delta(key).norm()


def test_words_that_bring_it_back_are_sought_in_every_kind(
    pack: ModuleType, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through an encoder without a MODEL, with gradients, from inside the host's inference mode."""
    closed, rounds = pack.unlearn.methods.closed_form, pack.unlearn.methods.parts.hard_rounds
    for name, value in {"ATTACKED": 1, "STEPS": 1, "TRIES": 1, "ENOUGH": -9.0}.items():
        monkeypatch.setattr(rounds, name, value)
    settings = closed.ClosedFormSettings(anchor="owl", harden_rounds=1, **FEW)
    encoder = pack.nodes.backend.encoder_model.ComfyEncoder(loaded.clip)
    before = conditioning(loaded.clip, "a fox")
    with torch.inference_mode(), encoder.training(settings.gradients):
        if "Lens" in loaded.name:
            with pytest.raises(ValueError, match="takes no vectors at the beginning of a prompt"):
                closed.closed_form(encoder, ["fox"], settings)
        else:
            erasure = closed.closed_form(encoder, ["fox"], settings)
            assert len(erasure.record["revived"]) == 2
            assert all(torch.isfinite(erasure.delta(key)).all() for key in erasure.deltas)
    assert_equal(conditioning(loaded.clip, "a fox"), before)
