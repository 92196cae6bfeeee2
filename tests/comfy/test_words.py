"""Typed words in the real encoders of both backends, in the nodes and in the commands."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import other_encoder_layouts
import pytest
import torch
from commands import CPU, sentence
from encoder_layouts import build
from layouts import Loaded
from small_erasures import of_the_encoder, run
from tiny import Cancelled

import testbed.model.pack
from testbed.model import samples
from unlearn.__main__ import main
from unlearn.core.erasure import Erasure
from unlearn.diffusers_backend.load import load_pipeline
from unlearn.diffusers_backend.model import DiffusersModel

NAME = "guitar_(music)"
SENTENCES = [f"a photo of a {NAME}", "a photo of a guitar"]
FOX = "\U0001f98a"
LONG = f'"{"fox " * 70}"'


class Vae:
    """Has what a VAE's socket asks for. It comes to be used only after what is tested."""

    first_stage_model, latent_channels, latent_dim = torch.nn.Identity(), 4, 2
    encode = decode = patcher = None


VAE = Vae()
CLIP, T5, QWEN = "IconCanvas", "T5, LTX", "Qwen 2.5, OmniGen 2"


@pytest.fixture(scope="module")
def layouts(pack: ModuleType) -> dict[str, Loaded]:
    with torch.inference_mode():
        found = {name: build(name) for name in (T5, QWEN)}
        return {CLIP: Loaded(CLIP, *testbed.model.pack.checkpoint()[:2]), **found}


@pytest.fixture(scope="module")
def folder(iconcanvas_folder: Path) -> Path:
    return iconcanvas_folder


@pytest.fixture(scope="module")
def other(folder: Path) -> DiffusersModel:
    return DiffusersModel(load_pipeline(folder))


def comfy_model(pack: ModuleType, loaded: Loaded) -> Any:
    return pack.nodes.backend.model.ComfyModel(loaded.model, loaded.clip, None, (64, 64))


def drawn_by(clip: Any, prompt: str) -> torch.Tensor:
    """The conditioning of CLIP Text Encode."""
    return clip.encode_from_tokens(clip.tokenize(prompt))


# Parentheses


@pytest.mark.parametrize("name", [CLIP, T5, QWEN])
@torch.inference_mode()
def test_parentheses_reach_the_encoder(pack: ModuleType, layouts: dict, name: str) -> None:
    """As they do in a prompt where they are escaped by hand."""
    loaded = layouts[name]
    escaped = re.sub(r"([()])", r"\\\1", SENTENCES[0])
    with comfy_model(pack, loaded).training() as model, torch.no_grad():
        found = model.encode(SENTENCES[:1]).cross
        wanted = drawn_by(loaded.clip, escaped)
        assert torch.equal(found, wanted.to(found))
        weighted = drawn_by(loaded.clip, SENTENCES[0]).to(found)
        assert found.shape != weighted.shape or not torch.equal(found, weighted)
        # Prompts of one length are encoded together: none of their words is weighted.
        together = model.encode([SENTENCES[0]] * 2).cross
        torch.testing.assert_close(together, found.expand(2, -1, -1), rtol=1e-4, atol=1e-4)
        if name != QWEN:  # its vectors are not of the words that it has alone
            vectors = model.vocabulary().of("cat")[None, None]
            filled = model.encode_with_embeddings([f"{{}} {SENTENCES[0]}"], vectors).cross
            torch.testing.assert_close(
                filled, drawn_by(loaded.clip, f"cat {escaped}").to(filled), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("name", ["Qwen 2.5 VL, LongCat", "GPT-OSS, Lens", "Gemma 2, PixelDiT"])
@torch.inference_mode()
def test_a_tokenizer_without_weights_gets_no_backslashes(pack: ModuleType, name: str) -> None:
    clip, words = other_encoder_layouts.build(name).clip, pack.nodes.backend.words
    (own,) = words.readings(clip, "cat (dog)")
    (tokens,) = words.tokenized(clip, "a photo of a cat (dog)").values()
    numbers = [int(token[0]) for token in tokens[0]]
    assert any(tuple(numbers[i : i + len(own.tokens)]) == own.tokens for i in range(len(numbers)))


@torch.inference_mode()
def test_both_backends_read_a_word_alike(
    pack: ModuleType, layouts: dict, other: DiffusersModel
) -> None:
    words = [NAME, "(fox:1.3)", "[fox]", r"AC\DC", FOX, "\u72d0", "caf\u00e9", "Fox", '"fox"']
    with comfy_model(pack, layouts[CLIP]).training() as model, torch.no_grad():
        for word in words:
            ours, theirs = (
                [(one.tokens, one.known, one.room) for one in each.readings(word)]
                for each in (model, other)
            )
            assert ours == theirs, word
        prompts = [f"a photo of a {word}" for word in words]
        assert torch.allclose(model.encode(prompts).cross, other.encode(prompts).cross, atol=1e-4)


@torch.inference_mode()
def test_how_far_a_name_moved_is_measured_by_its_letters(pack: ModuleType, layouts: dict) -> None:
    """By a training node, and by Combine."""
    clip, nodes = layouts[CLIP].clip, pack.nodes
    erased, _ = nodes.backend.apply.erased_clip(clip, of_the_encoder(pack, clip))
    before, after = (drawn_by(c, r"a photo of a guitar_\(music\)") for c in (clip, erased))
    wanted = ((after - before).norm() / before.norm()).item()
    assert nodes.results.movement(clip, erased, [NAME], "object")[NAME] == pytest.approx(wanted)
    same = nodes.erasures.conflict(clip, erased, erased, f"a photo of a {NAME}")
    assert same == pytest.approx((1.0, 1.0))


@torch.inference_mode()
def test_compare_draws_the_concept_by_its_letters_and_prompts_as_they_are_typed(
    pack: ModuleType, layouts: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare, loaded, drawn = pack.nodes.compare, layouts[CLIP], []

    def draw(model: Any, clip: Any, vae: Any, prompts: list[str], *_: Any) -> list:
        drawn.append(prompts)
        raise Cancelled

    monkeypatch.setattr(compare, "draw", draw)
    sampling = {"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}
    given = {"kind": "object", "count": 1, "seed": 0, "width": 64, "height": 64, **sampling}
    for typed in ("", "a (guitar:1.3)"):
        with pytest.raises(Cancelled):
            run(
                compare.CompareErasure,
                *(loaded.model, loaded.clip, VAE),
                concept=NAME,
                prompts=typed,
                neighbours="a (cat:1.1)",
                erased_clip=loaded.clip,
                **given,
            )
    assert drawn[0][0] == r"a photo of a guitar_\(music\)"
    assert drawn[1] == ["a (guitar:1.3)", "a (cat:1.1)"]


# What an encoder reads of them


@torch.inference_mode()
def test_each_encoder_reads_other_words(pack: ModuleType, layouts: dict) -> None:
    """CLIP no capitals, T5 neither emoji nor Chinese, a language model all."""
    typed = pack.nodes.backend.words.typed_concepts
    clips = {name: loaded.clip for name, loaded in layouts.items()}
    assert typed(clips[CLIP], "Fox, fox, owl,FOX") == ["Fox", "owl"]
    for name in (T5, QWEN):
        assert typed(clips[name], "Fox, fox, owl") == ["Fox", "fox", "owl"]
    assert typed(clips[T5], "caf\u00e9, cafe\u0301, \uff43af\u00e9") == ["caf\u00e9"]
    for word in (FOX, "\u72d0"):
        for name in (CLIP, QWEN):
            assert typed(clips[name], word) == [word]
        with pytest.raises(ValueError, match="has no token for any part of the concept") as error:
            typed(clips[T5], f"owl, {word}")
        assert "\n" not in str(error.value)
    assert typed(clips[T5], f"red {FOX}") == [f"red {FOX}"]
    long = "fox owl " * 40
    with pytest.raises(
        ValueError, match=r"80 tokens long, but a prompt .* has 75, and the sentence"
    ):
        typed(clips[CLIP], f'"{long}"')
    assert typed(clips[QWEN], f'"{long}"') == [long.strip()]
    for special in ("<|endoftext|>", "</s>"):
        name = CLIP if "|" in special else T5
        with pytest.raises(ValueError, match="has no token for any part of the concept"):
            typed(clips[name], special)


# In the nodes

ENCODER = {
    "kind": "object",
    "shots": 1,
    "size": 64,
    "mode": "balanced",
    "max_steps": 1,
    "epochs": 1,
}
STEPS = {"steps": 4, "key_steps": "by task", "start": 1, "iterations": 1}
NODES = {
    "few_shot.FewShotEncoderUnlearn": {**ENCODER, "trainable": "mlp", "rank": 0, "seed": 0},
    "key_step.KeyStepUNetUnlearn": {
        **{"task": "object", "size": 64, "mode": "balanced", "rank": 0, "seed": 0},
        **{**STEPS, "trainable": "by task"},
    },
    "domain_correction.DomainCorrectionUNetUnlearn": {
        **{"kind": "object", "pictures": 1, "size": 64, "mode": "balanced"},
        **{"iterations": 1, "rank": 0, "seed": 0},
    },
}
REFUSED = [
    ({"concept": "embedding:fox"}, "The concept holds a textual inversion"),
    ({"concept": "()"}, "The concept '()' has no letter or number"),
    ({"concept": "(fox:nan)"}, "The concept holds a weight"),
    ({"concept": "masterpiece, best quality, a fox"}, "looks like a whole prompt"),
    ({"concept": LONG}, "is 70 tokens long"),
    ({"concept": "\u200b\ufe0f"}, "No concept is named"),
    ({"concept": "<|endoftext|>"}, "has no token for any part of the concept"),
    (
        {"concept": "owl, Fox", "protect": "cat, fox"},
        "'fox' is both a concept to unlearn and a protected",
    ),
    ({"concept": "fox", "protect": "(owl:2)"}, "The protected word holds a weight"),
    ({"concept": "fox", "anchor": "F\u200bOX"}, "is the concept itself"),
    (
        {"concept": "fox", "anchor": "dog, owl"},
        "The anchor must be one word or name, but 2 are",
    ),
    ({"concept": "fox", "anchor": "..."}, "The anchor '...' has no letter"),
]


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize(("inputs", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_training_nodes_refuse_alike(
    pack: ModuleType, layouts: dict, node: str, inputs: dict, said: str
) -> None:
    module, _, name = node.partition(".")
    kind, loaded = getattr(getattr(pack.nodes, module), name), layouts[CLIP]
    with torch.inference_mode(), pytest.raises(ValueError, match=re.escape(said)) as error:
        run(kind, model=loaded.model, clip=loaded.clip, vae=VAE, **{**NODES[node], **inputs})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"concept": "embedding:fox"}, "The concept holds a textual inversion"),
        ({"concept": "fox", "synonyms": "vixen, ()"}, "The synonym '()' has no letter"),
        (
            {"concept": "fox", "translations": "<|endoftext|>"},
            "has no token for any part of the translation",
        ),
        ({"concept": "fox", "descriptions": "an animal\na (red:1.2) one"}, "The description holds"),
        ({"concept": ""}, "The concept holds a textual inversion"),
    ],
)
@torch.inference_mode()
def test_probe_node_refuses(pack: ModuleType, layouts: dict, inputs: dict, said: str) -> None:
    loaded = layouts[CLIP]
    given = {"kind": "object", "level": "quick", "seed": 0, "steps": 1, "cfg": 1.0}
    with pytest.raises(ValueError, match=re.escape(said)):
        run(
            pack.nodes.probe.ProbeErasure,
            **{"model": loaded.model, "clip": loaded.clip, "vae": VAE, **given, **inputs},
            **{"width": 64, "height": 64},
            # One whose record names what is no word.
            erasure=of_the_encoder(pack, loaded.clip, "embedding:fox"),
        )


@pytest.mark.parametrize(
    ("candidates", "said"),
    [
        ("fox, (owl:1.2)", "The candidate holds a weight"),
        ("fox, <|endoftext|>", "has no token for any part of the candidate"),
        ("Fox, fox", "There is nothing to choose from: 1 candidate"),
        ("caf\u00e9, cafe\u0301", "There is nothing to choose from: 1 candidate"),
    ],
)
@torch.inference_mode()
def test_identify_node_refuses(pack: ModuleType, layouts: dict, candidates: str, said: str) -> None:
    loaded = layouts[CLIP]
    with pytest.raises(ValueError, match=re.escape(said)):
        run(
            pack.nodes.identify.IdentifyConcept,
            loaded.model,
            loaded.clip,
            VAE,
            images=torch.zeros(1, 64, 64, 3),
            candidates=candidates,
            kind="object",
            draws=12,
            seed=0,
        )


# In the commands


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["embedding:fox"], 2, "The concept holds a textual inversion"),
        (["(fox:1.3)"], 2, "The concept holds a weight"),
        (["()"], 2, "The concept '()' has no letter or number"),
        (["\u200b"], 2, "No concept is named"),
        (["a photo of a fox, bokeh"], 2, "would be read as 2 concepts"),
        (["fox", "--anchor", "dog, owl"], 2, "The anchor must be one word or name"),
        (["fox", "--anchor", "!"], 2, "The anchor '!' has no letter"),
        (["fox", "--anchor", "Fox"], 1, "The anchor 'Fox' is the concept itself"),
        (["fox", "--protect", "owl, FOX"], 1, "'FOX' is both a concept to unlearn and a protected"),
        (["fox", "--protect", "{owl|cat}"], 2, "The protected word holds a choice"),
        ([LONG], 1, "is 70 tokens long"),
        (["<|endoftext|>"], 1, "has no token for any part of the concept"),
    ],
)
def test_erase_refuses_as_the_nodes_do(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    file = tmp_path / "a.safetensors"
    concept, *options = arguments
    assert said in sentence(["erase", folder, concept, *options, "-o", file, *CPU], capsys, code)
    assert not list(tmp_path.iterdir())


def test_a_concept_is_recorded_without_backslashes(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    typed = r"guitar_\(music\), Guitar_(music)"
    pictures = [str(samples.FOLDER / f"mushroom_{i}.png") for i in (1, 2)]
    options = ["--anchor", r"owl_\(bird\)", "--steps", "1", "--no-verdict", "--images", *pictures]
    assert main(["erase", str(folder), typed, *options, "-o", str(file), *CPU]) == 0
    record = Erasure.load(file).record
    assert record["concepts"] == [NAME]
    assert record["settings"]["anchor"] == "owl_(bird)"


def test_probe_and_identify_refuse_as_the_nodes_do(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    file = tmp_path / "a.safetensors"
    Erasure({key: {"diff": torch.zeros(768, 192)}}, {"concepts": ["fox"]}).save(file)
    probe = ["probe", folder, file, *CPU]
    for more, code, said in (
        (["--concept", "(fox:1.2)"], 2, "The concept holds a weight"),
        (["--synonyms", "()"], 2, "The synonym '()' has no letter"),
        (["--translations", "embedding:x"], 2, "The translation holds a textual inversion"),
        (["--description", "a (red:1.2) animal"], 1, "The description holds a weight"),
        (["--concept", "<|endoftext|>"], 1, "has no token for any part of the concept"),
    ):
        assert said in sentence([*probe, *more], capsys, code)
    picture = samples.FOLDER / "mushroom_1.png"
    identify = ["identify", folder, picture, *CPU, "--words"]
    assert "The candidate holds a weight" in sentence([*identify, "fox, (owl:2)"], capsys)
    assert "1 candidate is given" in sentence([*identify, "caf\u00e9, cafe\u0301"], capsys)
