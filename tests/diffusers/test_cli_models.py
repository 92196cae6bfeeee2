"""python -m unlearn on the kinds of model that its page names, as folders and as files."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import small_pipelines
import torch
from commands import CPU, sentence
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from small_pipelines import read
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from unlearn.__main__ import main
from unlearn.core.conditioning import Conditioning
from unlearn.core.erasure import NETWORK, Erasure
from unlearn.diffusers_backend.apply import applied
from unlearn.diffusers_backend.load import load_pipeline
from unlearn.diffusers_backend.model import DiffusersModel

pytestmark = pytest.mark.costly

PROMPT = "a photo of a cat"
METHODS = {
    "few_shot": ["--shots", "1"],
    "key_step": ["--method", "key_step", "--mode", "paper", "--start", "0"],
}
ENCODERS = {
    "sd1": {"clip_l"},
    "sd2": {"clip_h"},
    "xl": {"clip_l", "clip_g"},
    "animatediff": {"clip_l"},
    "animatediff_xl": {"clip_l", "clip_g"},
}
Erase = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("models")
    return {
        kind: small_pipelines.write(getattr(small_pipelines, kind), parent / kind)
        for kind in ENCODERS
    }


@pytest.fixture(scope="module")
def erasure(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Erase:
    """The file of an erasure of a kind of model by a method, after two steps."""
    parent = tmp_path_factory.mktemp("erasures")

    @cache
    def file(kind: str, method: str) -> Path:
        return erase(folders[kind], parent / f"{kind}_{method}.safetensors", method)

    return file


def erase(model: Path, file: Path, method: str, *more: str) -> Path:
    options = ["--steps", "2", "--no-verdict", *METHODS[method], *CPU, *more, "-o", str(file)]
    assert main(["erase", str(model), "cat", *options]) == 0
    return file


@torch.no_grad()
def encoded(pipeline: DiffusionPipeline) -> Conditioning:
    """By the pipeline's own code."""
    if hasattr(pipeline, "text_encoder_2"):
        cross, _, pooled, _ = pipeline.encode_prompt(PROMPT, None, "cpu", 1, False)
        return Conditioning(cross, pooled)
    return Conditioning(pipeline.encode_prompt(PROMPT, "cpu", 1, False)[0])


@torch.no_grad()
def erased(pipeline: DiffusionPipeline, file: Path) -> Conditioning:
    model = DiffusersModel(pipeline)
    with applied(model, Erasure.load(file)):
        return model.encode([PROMPT])


def near(found: Conditioning, wanted: Conditioning) -> bool:
    pooled = wanted.pooled is None or torch.allclose(found.pooled, wanted.pooled, atol=1e-5)
    return pooled and torch.allclose(found.cross, wanted.cross, atol=1e-5)


def assert_only_changed(
    before: DiffusionPipeline, after: DiffusionPipeline, erasure: Erasure
) -> None:
    """Every weight of every part is what it was, the erasure's plus exactly its change."""
    keys = {id(weight): key for key, weight in DiffusersModel(before).weights.items()}
    seen = set()
    for name, part in before.components.items():
        if isinstance(part, torch.nn.Module):
            found = after.components[name].state_dict()
            assert found.keys() == part.state_dict().keys()
            for place, weight in part.named_parameters():
                key = keys.get(id(weight))
                change = erasure.delta(key).view_as(weight) if key in erasure.deltas else 0
                assert torch.equal(found[place], weight + change), (name, place)
                seen.add(key)
    assert seen >= erasure.deltas.keys()


# Folders


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("xl", "key_step"),
        pytest.param("sd2", "few_shot", marks=pytest.mark.slow),
        ("animatediff", "few_shot"),
        pytest.param("xl", "few_shot", marks=pytest.mark.slow),
        pytest.param("animatediff", "key_step", marks=pytest.mark.slow),
        pytest.param("animatediff_xl", "few_shot", marks=pytest.mark.slow),
    ],
)
def test_apply_writes_the_same_kind_of_folder_with_the_erasure_in_it(
    kind: str, method: str, folders: dict[str, Path], erasure: Erase, tmp_path: Path
) -> None:
    """Of a video model the motion modules, too, stay what they were."""
    folder, file, target = folders[kind], erasure(kind, method), tmp_path / "out"
    found = Erasure.load(file)
    parts = ENCODERS[kind] if method == "few_shot" else {NETWORK.rstrip(".")}
    assert {key.partition(".")[0] for key in found.deltas} == parts
    assert main(["apply", str(folder), str(file), "-o", str(target)]) == 0
    before, after = read(folder), read(target)
    assert type(after) is type(before)
    assert after.scheduler.config == before.scheduler.config
    assert_only_changed(before, after, found)
    if method == "few_shot":
        wanted = erased(before, file)
        assert near(encoded(after), wanted)
        assert not near(encoded(before), wanted)


@pytest.mark.parametrize("kind", ["sd2", "xl"])
def test_exported_text_encoders_are_read_in_the_place_of_the_models_own(
    kind: str, folders: dict[str, Path], erasure: Erase, tmp_path: Path
) -> None:
    file, target = erasure(kind, "few_shot"), tmp_path / "out"
    assert main(["export", str(folders[kind]), str(file), "-o", str(target)]) == 0
    own = read(folders[kind])
    wanted = erased(own, file)
    own.text_encoder = CLIPTextModel.from_pretrained(target, subfolder="text_encoder")
    if kind == "xl":
        own.text_encoder_2 = CLIPTextModelWithProjection.from_pretrained(
            target, subfolder="text_encoder_2"
        )
    assert near(encoded(own), wanted)


def test_an_xl_lora_goes_into_both_encoders(
    folders: dict[str, Path], erasure: Erase, tmp_path: Path
) -> None:
    file, lora = erasure("xl", "few_shot"), tmp_path / "lora.safetensors"
    arguments = ["export", str(folders["xl"]), str(file), "--as", "lora", "--rank", "64"]
    assert main([*arguments, "-o", str(lora)]) == 0
    own = read(folders["xl"])
    wanted = erased(own, file)
    own.load_lora_weights(tmp_path, weight_name=lora.name)
    assert near(encoded(own), wanted)


def test_sd2_is_trained_up_to_the_last_layer_of_its_folder(erasure: Erase) -> None:
    """Which has one layer less than OpenCLIP-H: nothing is passed over twice."""
    keys = Erasure.load(erasure("sd2", "few_shot")).deltas
    layers = [key.split(".layers.")[1].split(".")[:2] for key in keys]
    assert {number for number, _ in layers} == {"0", "1"}
    assert {number for number, part in layers if part == "self_attn"} == {"1"}


def test_what_sd2_predicts_is_read_as_its_own_scheduler_reads_it(folders: dict[str, Path]) -> None:
    pipeline = read(folders["sd2"])
    model, t = DiffusersModel(pipeline), torch.tensor([600.0])
    x0, noise = model.noise(2, torch.Generator().manual_seed(0)).split(1)
    scheduler, v = pipeline.scheduler, model.target(x0, noise, t)
    assert torch.allclose(v, scheduler.get_velocity(x0, noise, t.long()), atol=1e-5)
    scheduler.set_timesteps(1000)
    noisy = scheduler.add_noise(x0, noise, t.long())
    theirs = scheduler.step(v + 0.1, 600, noisy).pred_original_sample
    assert torch.allclose(
        model.predict_x0(model.add_noise(x0, noise, t), t, v + 0.1), theirs, atol=1e-4
    )


def test_an_sd2_erasure_does_the_same_in_comfyui(
    pack: ModuleType, folders: dict[str, Path], erasure: Erase
) -> None:
    """Whose encoder has the last layer, too, and passes over it."""
    import comfy.sd
    from comfy.supported_models_base import ClipTarget
    from comfy.text_encoders.sd2_clip import SD2ClipModel, SD2Tokenizer

    file, pipeline = erasure("sd2", "few_shot"), read(folders["sd2"])
    size = {"hidden_size": 1024, "intermediate_size": 64, "num_attention_heads": 16}
    options = {"clip_h_model_config": {**size, "num_hidden_layers": 3}, "dtype": torch.float32}
    with torch.inference_mode():
        clip = comfy.sd.CLIP(ClipTarget(SD2Tokenizer, SD2ClipModel), model_options=options)
        for key, weight in DiffusersModel(pipeline).weights.items():
            if key.endswith("token_embedding.weight"):
                table = clip.cond_stage_model.get_parameter(key)
                table[: len(weight) - 2], table[-2:] = weight[:-2], weight[-2:]
            elif not key.startswith(NETWORK):
                clip.cond_stage_model.get_parameter(key).copy_(weight)
        theirs, _ = pack.nodes.backend.apply.erased_clip(
            clip, pack.unlearn.core.erasure.Erasure.load(file)
        )
        own, found = (one.encode_from_tokens(one.tokenize(PROMPT)) for one in (clip, theirs))
    before = encoded(pipeline).cross
    change = erased(pipeline, file).cross - before
    assert torch.allclose(own, before, atol=1e-4)
    assert ((found - own) - change).norm() < 0.01 * change.norm()


# Files


@pytest.mark.parametrize(
    ("kind", "ending"), [("sd1", "ckpt"), ("sd2", "safetensors"), ("xl", "safetensors")]
)
def test_a_file_is_the_same_model_as_its_folder(
    kind: str, ending: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    before, file = read(folders[kind]), tmp_path / f"model.{ending}"
    tensors = small_pipelines.checkpoint(before)
    if ending == "ckpt":
        torch.save({"state_dict": tensors, "global_step": 1, "epoch": 0}, file)
    else:
        save_file(tensors, file)
    after = load_pipeline(file, folders[kind])
    assert type(after) is type(before)
    assert_only_changed(before, after, Erasure({}, {}))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_ckpt_file_is_erased_as_its_folder_is(
    zipped: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Also one from before PyTorch 1.6, which is no zip file."""
    file, folder = tmp_path / "model.ckpt", folders["sd1"]
    tensors = small_pipelines.checkpoint(read(folder))
    torch.save({"state_dict": tensors}, file, _use_new_zipfile_serialization=zipped)
    erase(folder, tmp_path / "of_folder.safetensors", "few_shot")
    erase(file, tmp_path / "of_file.safetensors", "few_shot", "--config", str(folder))
    found, wanted = (load_file(tmp_path / f"of_{one}.safetensors") for one in ("file", "folder"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


class Harmful:
    """Whoever unpickles it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_ckpt_file_is_run(
    zipped: bool,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, touched = tmp_path / "model.ckpt", tmp_path / "touched"
    content = {"state_dict": {"model.diffusion_model.x": torch.ones(1)}}
    content["callbacks"] = Harmful(touched)
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    for more in ([], ["--config", folders["sd1"]]):
        said = sentence(["erase", file, "cat", *more, "-o", tmp_path / "a.safetensors"], capsys)
        assert said == (
            "model.ckpt cannot be read safely as a checkpoint; name a .safetensors file.\n"
        )
    assert not touched.exists()


def test_a_file_with_another_kinds_configuration_gets_a_sentence(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.safetensors"
    save_file(small_pipelines.checkpoint(read(folders["sd1"])), file)
    run = ["erase", file, "cat", "-o", tmp_path / "a.safetensors", "--config"]
    for other in ("sd2", "xl"):
        said = sentence([*run, folders[other]], capsys)
        assert said.startswith("model.safetensors cannot be read as a StableDiffusionPipeline (")
        assert said.endswith(
            "); name a diffusers folder of the same kind of model with --config, or it is "
            "incomplete: download or save it again.\n"
        )


@pytest.mark.parametrize("command", ["apply", "export", "export --as lora", "export --as peft"])
def test_weights_too_large_for_their_precision_are_not_written(
    command: str,
    folders: dict[str, Path],
    erasure: Erase,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, *form = command.split()
    output = tmp_path / ("a.safetensors" if "lora" in form else "a")
    given = [name, folders["sd1"], erasure("sd1", "few_shot"), *form, "-o", output]
    large = ["--strength", "1e20", "--precision", "float16"]
    assert "too large for float16, so nothing was written" in sentence([*given, *large], capsys)
    assert not any(tmp_path.iterdir())
