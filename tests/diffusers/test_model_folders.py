"""Diffusers folders as strangers make them: nothing in them is run, each fault has its sentence.

Every folder here would write a file if any of its code were run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import small_pipelines
import torch
from commands import sentence
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from unlearn.cli.cpdm.measure import load_clip
from unlearn.core.erasure import Erasure
from unlearn.diffusers_backend import load as diffusers_files
from unlearn.diffusers_backend import model as diffusers_model
from unlearn.diffusers_backend.load import ModelError, load_pipeline
from unlearn.diffusers_backend.model import DiffusersModel
from unlearn.diffusers_backend.model_folder import pickled

pytestmark = pytest.mark.costly

CODE = """
from pathlib import Path
Path({mark!r}).touch()
from diffusers import AutoencoderKL, DiffusionPipeline
class Thing(AutoencoderKL): pass
class Pipe(DiffusionPipeline): pass
"""
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_pipelines.write(small_pipelines.sd1, tmp_path_factory.mktemp("model") / "sd1")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What the code of a folder would write."""
    return tmp_path / "was_run"


@pytest.fixture
def folder(original: Path, mark: Path, tmp_path: Path) -> Path:
    copy = shutil.copytree(original, tmp_path / "stranger")
    for place in (copy / "evil.py", copy / "None.py", copy / "vae" / "evil.py"):
        place.write_text(CODE.format(mark=str(mark)))
    return copy


def index(**changes: object) -> Change:
    return lambda folder: settings(folder / "model_index.json", **changes)


def settings(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def part(name: str, **changes: object) -> Change:
    return lambda folder: settings(folder / name, **changes)


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def instead(name: str, make: Change) -> Change:
    """Something else under the name of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


RUN = {
    "a part": index(vae=["evil", "Thing"]),
    "an extra part": index(more=["evil", "Thing"]),
    "any module": index(scheduler=["this", "Thing"]),
    "a dotted module": index(vae=["diffusers.models", "AutoencoderKL"]),
    "a class that asks the folder": index(tokenizer=["transformers", "AutoTokenizer"]),
    "a module as class": index(vae=["diffusers", "utils"]),
    "nested": index(vae=[["diffusers", "AutoencoderKL"], "Thing"]),
    "three": index(vae=["diffusers", "AutoencoderKL", "evil"]),
    "nothing's class": index(vae=[None, "Thing"]),
    "not in Stable Diffusion": index(text_encoder=["transformers", "BertModel"]),
    "custom pipeline": index(custom_pipeline="evil"),
    "trusted": index(trust_remote_code=True),
    "auto_map of a model": part("text_encoder/config.json", auto_map={"AutoModel": "evil.Thing"}),
    "auto_map deep": part("unet/config.json", text_config={"auto_map": {"A": "evil.Thing"}}),
    "auto_map of words": part("tokenizer/tokenizer_config.json", auto_map={"A": ["evil.Thing"]}),
    "a kernel": part("text_encoder/config.json", attn_implementation="evil/kernel"),
}


@pytest.mark.parametrize("change", RUN.values(), ids=RUN)
def test_what_asks_for_code_is_refused_and_not_run(
    change: Change, folder: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)  # as if the program were started in it
    change(folder)
    with pytest.raises(ModelError, match=r"so it is not run; name|not allowed; remove"):
        load_pipeline(folder)
    assert not mark.exists()


def test_a_checkpoints_configuration_is_not_run_either(
    folder: Path, original: Path, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.safetensors"
    save_file(small_pipelines.checkpoint(small_pipelines.read(original)), file)
    monkeypatch.syspath_prepend(folder)
    index(scheduler=["evil", "Thing"])(folder)
    with pytest.raises(ModelError, match="It may be code from the folder, so it is not run"):
        load_pipeline(file, folder)
    assert not mark.exists()


def test_code_beside_a_model_is_left_alone(
    folder: Path, original: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers never sees the index, so it does not matter what a version does with it. Some run
    a None.py."""

    def seen(*given: object, **more: object) -> None:
        raise AssertionError("the index was given to diffusers")

    wanted = small_pipelines.read(original)
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", seen)
    found = load_pipeline(folder)
    assert not mark.exists()
    assert type(found) is type(wanted)
    assert found.scheduler.config == wanted.scheduler.config
    for name in ("unet", "vae", "text_encoder"):
        one, other = (getattr(pipeline, name).state_dict() for pipeline in (found, wanted))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_command_says_it_in_one_sentence(
    folder: Path, mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.safetensors"
    Erasure({"clip_l.x.weight": {"diff": torch.ones(1)}}, {"concepts": ["cat"]}).save(file)
    index(vae=["evil", "Thing"])(folder)
    said = sentence(["apply", folder, file, "-o", tmp_path / "out"], capsys)
    assert "names the class ['evil', 'Thing'] for its vae. It may be code" in said
    assert not mark.exists()


def test_the_image_encoder_of_a_measurement_is_checked_as_well(tmp_path: Path) -> None:
    settings_of_clip = {"model_type": "clip", "auto_map": {"AutoModel": "evil.Thing"}}
    (tmp_path / "config.json").write_text(json.dumps(settings_of_clip))
    with pytest.raises(ModelError, match=r"asks to run its own code \(auto_map\)"):
        load_clip(tmp_path, torch.device("cpu"))


class Harmful:
    """Whoever unpickles it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


PICKLES = {
    "unet": "diffusion_pytorch_model.bin",
    "vae": "diffusion_pytorch_model.fp16.bin",
    "text_encoder": "pytorch_model.bin",
}


@pytest.mark.parametrize(("name", "file"), PICKLES.items())
def test_pickled_weights_are_tensors_and_nothing_else(
    name: str, file: str, folder: Path, mark: Path
) -> None:
    (weights,) = (folder / name).glob("*.safetensors")
    tensors = load_file(weights)
    weights.unlink()
    torch.save({**tensors, "more": Harmful(mark)}, folder / name / file)
    with pytest.raises(ModelError, match=f"{name}/{file} cannot be read safely as a checkpoint"):
        load_pipeline(folder)
    assert not mark.exists()
    torch.save(tensors, folder / name / file)
    found = getattr(load_pipeline(folder), name).state_dict()
    assert sum(one.sum() for one in found.values()) == pytest.approx(
        sum(one.float().sum().item() for one in tensors.values()), rel=1e-4
    )


def test_links_may_not_leave_the_folder(folder: Path, original: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to(original / "unet" / weights.name)
    with pytest.raises(ModelError, match="is a link that leaves the model's folder"):
        load_pipeline(folder)


def test_a_folder_of_the_hubs_cache_is_made_of_links(original: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "models--someone--sd" / "blobs"
    shutil.copytree(original, blobs.parent / "snapshots" / "1")
    blobs.mkdir()
    for number, file in enumerate((blobs.parent / "snapshots").rglob("*.*")):
        blob = file.rename(blobs / str(number))
        file.symlink_to(
            Path("../" * len(file.relative_to(blobs.parent).parent.parts), "blobs", blob.name)
        )
    load_pipeline(blobs.parent / "snapshots" / "1")


DAMAGED = {
    "index of a list": (text("model_index.json", "[]"), "no readable model_index.json"),
    "index of nothing": (text("model_index.json", "null"), "no readable model_index.json"),
    "deep index": (text("model_index.json", "[" * 100_000), "no readable model_index.json"),
    "folder for index": (instead("model_index.json", Path.mkdir), "no readable model_index.json"),
    "list of classes": (index(_class_name=["evil", "Pipe"]), "no readable model_index.json"),
    "a module's name": (index(_class_name="utils"), "is a utils, which is not supported"),
    "unknown": (
        index(_class_name="StableDiffusionX"),
        "which this version of diffusers does not have",
    ),
    "text for a part": (index(vae="vae"), "has no vae, which a StableDiffusionPipeline needs"),
    "no part": (index(scheduler=[None, None]), "has no scheduler; use Stable Diffusion"),
    "another's class": (index(unet=["diffusers", "DDIMScheduler"]), "cannot be read as a Stable"),
    "large": (part("unet/config.json", layers_per_block=10**7), "which no real model has"),
    "endless": (part("vae/config.json", layers_per_block=float("inf")), "which no real model has"),
    "vast": (
        part("unet/config.json", conv_out_kernel=10**8 - 1),
        "needs more memory than there",
    ),
    "a ring of links": (
        instead("vae/config.json", lambda file: file.symlink_to(file)),
        "vae/config.json is not a readable settings file",
    ),
    "a dictionary without end": (
        lambda folder: os.truncate(folder / "tokenizer" / "tokenizer.json", 2**27),
        "is larger than that of any tokenizer",
    ),
    "few bits": (
        part("text_encoder/config.json", quantization_config={"quant_method": "bitsandbytes"}),
        r"text_encoder is quantised \(bitsandbytes\), so its weights can be neither trained",
    ),
    "an adapter": (text("text_encoder/adapter_config.json", "{}"), "is an adapter; fuse"),
    "outside": (
        text("unet/x.index.json", '{"weight_map": {"a": "../b.bin"}}'),
        "names weights outside its folder",
    ),
    "wide": (part("unet/config.json", block_out_channels=[32, 96]), "not have the sizes in its"),
    "wide encoder": (
        part("text_encoder/config.json", hidden_size=64),
        "not have the sizes in its",
    ),
    "no part's folder": (lambda folder: shutil.rmtree(folder / "vae"), "there is no folder .*vae"),
    "EDM": (index(scheduler=["diffusers", "EDMEulerScheduler"]), "is for flow or EDM models"),
}
for _name in ("unet/config", "vae/config", "text_encoder/config", "scheduler/scheduler_config"):
    for _text in ("null", "[]", "{", '{"a":' * 20_000):
        DAMAGED[f"{_name} {_text[:8]}"] = (
            text(f"{_name}.json", _text),
            f"{_name}.json is not a readable settings file",
        )


@pytest.mark.parametrize(("change", "said"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_folder_gets_a_sentence(change: Change, said: str, folder: Path) -> None:
    change(folder)
    with pytest.raises(ValueError, match=said) as raised:
        DiffusersModel(load_pipeline(folder))
    assert "\n" not in str(raised.value)


def empty(weights: Path) -> None:
    weights.write_bytes(b"")


def pointer(weights: Path) -> None:
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")


def cut(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-100])


def without_one(weights: Path) -> None:
    tensors = load_file(weights)
    del tensors[min(tensors)]
    save_file(tensors, weights, {"format": "pt"})


def whole_numbers(weights: Path) -> None:
    tensors = {name: one.to(torch.int8) for name, one in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (empty, "is empty; download"),
        (pointer, "git lfs pull"),
        (cut, "is cut short or not a safetensors file"),
        (without_one, "lacks 1 of its weights"),
        (whole_numbers, "is quantised"),
        (Path.unlink, "holds no weights"),
    ],
)
def test_damaged_weights_get_a_sentence(name: str, change: Change, said: str, folder: Path) -> None:
    """None is filled with chance in the place of what is missing."""
    (weights,) = (folder / name).glob("*.safetensors")
    change(weights)
    with pytest.raises(ModelError, match=said):
        load_pipeline(folder)


def test_parts_that_do_not_belong_together_get_a_sentence(folder: Path) -> None:
    pipeline = load_pipeline(folder)
    pipeline.unet.register_to_config(cross_attention_dim=48)
    with pytest.raises(ValueError, match="text of width 48, but its text encoder's width is 32;"):
        DiffusersModel(pipeline)


@pytest.mark.parametrize("half", [False, True])
def test_a_folder_of_a_variant_alone_is_read(half: bool, original: Path, tmp_path: Path) -> None:
    pipeline, folder = small_pipelines.read(original), tmp_path / "fp16"
    if half:
        pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, variant="fp16")
    assert not (folder / "unet" / "diffusion_pytorch_model.safetensors").exists()
    found = load_pipeline(folder)
    assert {weight.dtype for weight in found.unet.parameters()} == {torch.float32}
    assert torch.equal(found.unet.conv_in.weight, pipeline.unet.conv_in.weight.float())


def test_full_precision_goes_before_a_variant(folder: Path) -> None:
    (weights,) = (folder / "unet").glob("*.safetensors")
    halves = {name: torch.zeros_like(one) for name, one in load_file(weights).items()}
    save_file(halves, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert load_pipeline(folder).unet.conv_in.weight.any()


def test_libraries_that_do_not_go_together_are_not_the_models_fault(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError(
            "Failed to import diffusers.pipelines.x because of the following error (look up to see "
            "its traceback):\ncannot import name 'X' from 'transformers'"
        )

    monkeypatch.setattr(diffusers_files, "load_folder", broken)
    with pytest.raises(ModelError, match=r"are not compatible \(cannot import name 'X' from"):
        load_pipeline(folder)


def test_a_package_that_is_missing_is_named_and_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*given: object) -> None:
        raise ImportError("This scheduler requires the torchsde library")

    monkeypatch.setattr(diffusers_files, "load_folder", missing)
    with pytest.raises(ModelError, match="the torchsde library; install the missing package"):
        load_pipeline(folder)


@pytest.mark.parametrize("side", [[8], [], [8, 8, 8], "8", 8.5, [8, "8"], [0, 8], -8, [8, -8]])
def test_a_size_that_is_none_gets_a_sentence(side: object) -> None:
    network = SimpleNamespace(config=SimpleNamespace(sample_size=side))
    with pytest.raises(ValueError, match="neither a side nor a height and a width"):
        diffusers_model._own_size(network)


def test_a_size_is_a_side_or_a_height_and_a_width() -> None:
    for side, size in ((8, (64, 64)), ((4, 8), (32, 64)), (None, (512, 512))):
        network = SimpleNamespace(config=SimpleNamespace(sample_size=side))
        assert diffusers_model._own_size(network) == size


def test_weights_that_unpack_to_more_are_not_unpacked(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.bin")
    assert pickled(tmp_path / "a.bin").keys() == {"a"}
    with ZipFile(tmp_path / "a.bin") as good, ZipFile(tmp_path / "b.bin", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, good.read(name), ZIP_DEFLATED)
    damaged = bytearray((tmp_path / "a.bin").read_bytes())
    place = damaged.find(bytes(12), damaged.find(b"data/0"))  # the tensor's zeros
    damaged[place + 4] ^= 1
    (tmp_path / "c.bin").write_bytes(damaged)
    for name in ("b.bin", "c.bin"):
        with pytest.raises(ModelError, match="cannot be read safely as a checkpoint"):
            pickled(tmp_path / name)
