"""What every node does at its door: each input wrong in turn, lists of pictures, errors."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from graphs import node
from PIL import Image
from prompts import executed, load, refused, said
from small_erasures import of_the_encoder, run

from unlearn.core.erasure import Erasure

pytestmark = pytest.mark.usefixtures("node_body", "small_runs")

NODES = (
    "IdentifyConcept",
    "ClosedFormEncoderUnlearn",
    "FewShotEncoderUnlearn",
    "KeyStepUNetUnlearn",
    "DomainCorrectionUNetUnlearn",
    "LoadErasedCLIP",
    "LoadErasedModel",
    "SaveErasedCLIP",
    "SaveErasedModel",
    "CombineErasedCLIP",
    "CompareErasure",
    "ProbeErasure",
    "CopyrightMetric",
)


@pytest.fixture
def output(host: ModuleType, tmp_path: Path) -> Iterator[Path]:
    """An output folder of its own."""
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path / "output"))
    (tmp_path / "output").mkdir()
    yield tmp_path / "output"
    folder_paths.set_output_directory(before)


class Door:
    """A node that does nothing but say what it would have worked on."""

    def __init__(self, pack: ModuleType, parts: tuple, name: str) -> None:
        import nodes

        class Idle(nodes.NODE_CLASS_MAPPINGS[name]):
            @classmethod
            def work(cls, **inputs: Any) -> dict[str, Any]:
                return inputs

        self.node, self.schema = Idle, Idle.GET_SCHEMA()
        model, clip, vae = parts
        pictures = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
        sockets = {"MODEL": model, "CLIP": clip, "VAE": vae, "IMAGE": pictures}
        sockets["ERASURE"] = of_the_encoder(pack, clip)
        sockets["CLIP_VISION"] = type("Vision", (), {"encode_image": None})()
        self.right = {}
        for one in self.schema.inputs:
            if one.get_io_type() == "COMBO":
                self.right[one.id] = [*one.options, "no file"][0]
            elif one.get_io_type() in sockets:
                self.right[one.id] = sockets[one.get_io_type()]
            else:
                self.right[one.id] = "fox" if one.id == "concept" else one.default

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        """What the node would work on, called as the host calls it."""
        given = {**self.right, **inputs}
        if self.schema.is_input_list:
            given = {k: v if isinstance(v, list) else [v] for k, v in given.items()}
        return self.node.PREPARE_CLASS_CLONE(None).execute(**given)


@pytest.fixture(scope="module", params=NODES)
def door(request: pytest.FixtureRequest, pack: ModuleType, parts: tuple) -> Door:
    return Door(pack, parts, request.param)


def wrong(one: Any, chance: random.Random) -> list[Any]:
    """Values that this input does not take."""
    anything = [object(), torch.zeros(2), {"a": 1}, b"fox"]
    kind, far = one.get_io_type(), chance.randint(10**6, 10**30)
    if kind == "INT":
        beyond = [one.min - 1, one.max + 1, -far, one.max + far, 10**5000]
        between = [one.min + chance.randrange(1, one.step)] if (one.step or 1) > 1 else []
        return [*anything, None, "4", 4.0, True, math.nan, *beyond, *between]
    if kind == "FLOAT":
        numbers = [math.nan, math.inf, -math.inf, one.min - 0.01, one.max + 0.01, -far, 10**400]
        return [*anything, None, "1.0", True, *numbers]
    if kind == "BOOLEAN":
        return [*anything, None, "true", 2, math.nan]
    if kind in ("STRING", "COMBO"):
        texts = ["fo\0x", "\ud800", "x" * 10**6]
        return [*anything, None, 5, True, *texts, *(["no such"] if kind == "COMBO" else [])]
    empty = [] if one.optional else [None]
    return [*anything[:1], *anything[2:], "fox", 5, *empty]


def test_every_input_wrong_in_turn_gets_one_sentence(door: Door) -> None:
    chance = random.Random(0)
    files, may_be_empty = door.node.FILES, door.node.MAY_BE_EMPTY
    for one in door.schema.inputs:
        for value in wrong(one, chance):
            if (one.id in files and value == "no such") or (
                value is None and one.id in may_be_empty
            ):
                continue
            with pytest.raises(ValueError, match=one.id + "|" + one.get_io_type()) as error:
                door(**{one.id: value})
            assert type(error.value) is ValueError
            assert "\n" not in str(error.value)
            assert len(str(error.value)) < 300, str(error.value)[:400]


def test_what_the_schema_allows_comes_through_as_it_is(door: Door) -> None:
    assert door().keys() == door.right.keys()
    for one in door.schema.inputs:
        kind = one.get_io_type()
        allowed = {
            "INT": lambda one: [one.min, one.max],
            "FLOAT": lambda one: [one.min, one.max, (one.min + one.max) / 3],
            "BOOLEAN": lambda one: [True, False],
            "COMBO": lambda one: one.options,
            "STRING": lambda one: ["", "ein Fuchs, \u72d0", "x" * 4000],
        }
        for value in allowed.get(kind, lambda one: [None] if one.optional else [])(one):
            assert door(**{one.id: value})[one.id] == value


# Lists of pictures, from the host's own nodes


NO_CONCEPT = "No concept is named: type the word or name to unlearn, for example: Zorvik"
PICTURES = {"a": (64, 64, "RGB"), "b": (64, 64, "L"), "c": (64, 64, "RGBA")}
SHOWS = {"show": node("PreviewAny", source=["unlearn", 4])}


@pytest.fixture(scope="module")
def base(host: ModuleType, pack: ModuleType, checkpoint: Path) -> dict[str, Any]:
    """The test model in a prompt."""
    import folder_paths

    load(host, "nodes_dataset", "nodes_preview_any", "nodes_string")
    folder_paths.add_model_folder_path("checkpoints", str(checkpoint.parent))
    return {"base": node("CheckpointLoaderSimple", ckpt_name=checkpoint.name)}


def folder(name: str, sizes: dict[str, tuple[int, int, str]] = PICTURES) -> dict[str, Any]:
    """A node that hands on a list of pictures, as ComfyUI's does."""
    import folder_paths

    place = Path(folder_paths.get_input_directory()) / name
    place.mkdir(exist_ok=True)
    for i, (picture, (width, height, mode)) in enumerate(sizes.items()):
        colour = Image.new("RGB", (width, height), (80 * i, 200 - 60 * i, 90)).convert(mode)
        colour.save(place / f"{picture}.png")
    return {name: node("LoadImageDataSetFromFolder", folder=name)}


def training(**inputs: Any) -> dict[str, Any]:
    own = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "concept": "fox"}
    values = {
        "kind": "object",
        "shots": 1,
        "size": 64,
        "mode": "paper",
        "trainable": "mlp-final-attn",
        "rank": 2,
        "max_steps": 1,
        "epochs": 1,
        "seed": 0,
        "batch": 3,
        "filename_prefix": "listed",
        "verdict": False,
    }
    return {"unlearn": node("FewShotEncoderUnlearn", **own | values | inputs)}


def test_a_list_of_pictures_is_one_set(base: dict[str, Any], output: Path) -> None:
    prompt = base | folder("several") | training(images=["several", 0]) | SHOWS
    assert not refused(prompt)
    shown, error = executed(prompt, "show")
    assert error is None
    assert len(shown["unlearn"]["text"]) == 1, "one training"
    (file,) = (output / "listed").glob("*.safetensors")
    record = Erasure.load(file).record
    assert record["images"]["count"] == 3
    assert record["concepts"] == ["fox"]


def test_pictures_of_several_sizes_are_named(base: dict[str, Any], output: Path) -> None:
    sizes = {"a": (64, 64, "RGB"), "b": (96, 64, "RGB"), "c": (64, 96, "RGB")}
    prompt = base | folder("mixed", sizes) | training(images=["mixed", 0]) | SHOWS
    _, error = executed(prompt, "show")
    assert "images holds pictures of 3 sizes, such as " in error["exception_message"]
    assert "bring them to one size" in error["exception_message"]
    assert not (output / "listed").exists()


def test_two_of_anything_else_are_refused(base: dict[str, Any], output: Path) -> None:
    """Here a list is one set of pictures, so there is no more than one run."""
    texts = {"both": node("LoadImageTextDataSetFromFolder", folder="several")}
    folder("several")
    prompt = base | texts | training(concept=["both", 1]) | SHOWS
    _, error = executed(prompt, "show")
    assert error["exception_message"].startswith("concept is a list of 3, but this node takes a")


@pytest.mark.parametrize("name", ["FewShotEncoderUnlearn", "IdentifyConcept"])
def test_pictures_of_all_channels_become_one_batch(
    pack: ModuleType, parts: tuple, name: str
) -> None:
    door = Door(pack, parts, name)
    grey, colour, clear = (torch.rand(1, 32, 32, channels) for channels in (1, 3, 4))
    batch = door(images=[grey, colour, clear])["images"]
    assert torch.equal(batch, torch.cat([grey.expand(-1, -1, -1, 3), colour, clear[..., :3]]))
    assert door(images=[clear])["images"] is clear, "a file of before is found by its pictures"
    with pytest.raises(ValueError, match="images is an empty list"):
        door(images=[])
    with pytest.raises(ValueError, match=r"this one has shape \(1, 32, 32, 2\)"):
        door(images=[colour, colour[..., :2]])
    for numbers in (torch.zeros(1, 0, 64, 3), torch.zeros(0, 64, 64, 3), colour + 0j):
        with pytest.raises(ValueError, match="Images must be a batch of shape"):
            door(images=[numbers])
    with pytest.raises(ValueError, match="model is a list of 2"):
        door(model=[parts[0], parts[0]])


def test_cpdm_takes_pictures_of_any_size(pack: ModuleType, parts: tuple) -> None:
    door = Door(pack, parts, "CopyrightMetric")
    some = [torch.rand(2, 32, 32, 3), torch.rand(1, 48, 32, 4), torch.rand(1, 8, 8, 1)]
    for name in ("originals", "generated", "generated_after"):
        found = door(**{name: some})[name]
        assert [tuple(one.shape) for one in found] == [(32, 32, 3)] * 2 + [(48, 32, 3), (8, 8, 3)]
    some[1][0, 3, 3] = math.nan
    with pytest.raises(ValueError, match="generated, number 2 of the list: Image 1 holds NaN"):
        door(generated=some)


# Errors in the face


def test_what_is_typed_wrongly_is_said_before_the_prompt_is_queued(
    base: dict[str, Any], output: Path
) -> None:
    """Once, in the one form whose words the browser puts into its message."""
    cases = [
        ({"concept": " , "}, "No concept is named"),
        ({"anchor": "Fox"}, "The anchor 'Fox' is the concept itself"),
        ({"protect": "cat, FOX"}, "is both a concept to unlearn and a protected word"),
        ({"filename_prefix": "../x"}, "leaves ComfyUI's output folder"),
        ({"filename_prefix": "a\0b"}, "filename_prefix holds a null character"),
        ({"filename_prefix": "x" * 250}, "filename_prefix has 250 bytes"),
        (
            {"filename_prefix": "a/" * 2000},
            "has 4,000 bytes and the longest name in it 1:",
        ),
    ]
    for inputs, sentence in cases:
        said()
        (error,) = refused(base | training(**inputs) | SHOWS)["unlearn"]
        assert error.startswith("Exception when validating inner node: ")
        assert sentence in error
        assert sentence in said()[-1], "on the node, too"
    assert not refused(base | training(concept=["word", 0]) | SHOWS | word("..."))


def word(text: str) -> dict[str, Any]:
    """A node that hands on a text."""
    return {"word": node("StringConcatenate", string_a=text, string_b="", delimiter="")}


def test_other_nodes_say_it_before_the_prompt_is_queued(base: dict[str, Any], output: Path) -> None:
    network = {"model": ["base", 0], "clip": ["base", 1], "concept": "fox"}
    steps = {"key_steps": "from start", "start": 60, "steps": 50}
    more = {"mode": "paper", "task": "object", "size": 64, "iterations": 1, "rank": 2, "seed": 0}
    tuned = {"unlearn": node("KeyStepUNetUnlearn", **network, **steps, **more, trainable="by task")}
    (error,) = refused(base | tuned | SHOWS)["unlearn"]
    assert "The first key step is 60, but a trajectory of 50 steps" in error
    absent = {"unlearn": node("LoadErasedCLIP", clip=["base", 1], erasure_name="gone", strength=1)}
    shows = {"show": node("PreviewAny", source=["unlearn", 2])}
    (error,) = refused(base | absent | shows)["unlearn"]
    assert "There is no gone in models/loras" in error
    parts = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2]}
    (error,) = refused(base | {"look": node("CompareErasure", **parts, concept=",")})["look"][-1:]
    assert error == "Exception when validating node: " + NO_CONCEPT
    for prefix in ("", ".", "..", "x/.hidden", " "):
        (error,) = refused({"save": node("SaveErasedCLIP", filename_prefix=prefix)})["save"]
        assert error.startswith("Exception when validating node: filename_prefix ")


@pytest.mark.parametrize("task", ["instance", "character", "nudity", "thing"])
def test_the_host_takes_a_kind_by_its_old_name(
    base: dict[str, Any], output: Path, task: str
) -> None:
    """Saved prompts say instance, which is no option any more."""
    given = {"model": ["base", 0], "clip": ["base", 1], "concept": "fox", "task": task}
    given |= {"steps": 4, "key_steps": "by task", "start": 1, "iterations": 1, "size": 64}
    given |= {"mode": "paper", "trainable": "by task", "rank": 2, "seed": 0, "verdict": False}
    prompt = base | {"unlearn": node("KeyStepUNetUnlearn", **given)} | SHOWS
    if task == "thing":
        (error,) = refused(prompt)["unlearn"]
        assert "kind (task) is 'thing': choose object, style, character, nudity." in error
        return
    assert not refused(prompt)
    if task == "instance":
        shown, error = executed(prompt, "show")
        assert error is None
        assert "The model was changed for: fox (character)." in str(shown)


def test_an_error_is_said_on_the_node_and_its_class_has_no_folder(
    base: dict[str, Any], output: Path
) -> None:
    said()
    prompt = base | training(concept=["word", 0]) | word(" , ") | SHOWS
    _, error = executed(prompt, "show")
    assert error["exception_type"] == "ValueError"
    assert error["exception_message"].startswith("No concept is named")
    assert said()[-1].startswith("Error: No concept is named: type the word")
    (output / "loras").mkdir()
    Erasure({"x": {"diff": torch.zeros(2, 2)}}, {"concepts": ["fox"]}).save(
        output / "loras" / "other.safetensors"
    )
    import folder_paths

    folder_paths.add_model_folder_path("loras", str(output / "loras"))
    other = node("LoadErasedCLIP", clip=["base", 1], erasure_name="other.safetensors", strength=1)
    shows = {"show": node("PreviewAny", source=["other", 2])}
    _, error = executed(base | {"other": other} | shows, "show")
    assert error["exception_type"] == "ValueError"
    assert said()[-1].startswith('Error: The erasure of "fox" is for another text encoder')


def test_an_error_of_a_class_of_the_packs_own_has_no_folder_in_its_name(pack: ModuleType) -> None:
    diverged = pack.unlearn.core.edit.Diverged

    class Broken(pack.nodes.key_step.KeyStepUNetUnlearn):
        @classmethod
        def work(cls, **inputs: Any) -> None:
            raise diverged(math.inf, 3, {}, [])

    assert "/" in diverged.__module__ or "_x_" in diverged.__module__
    with pytest.raises(FloatingPointError, match="The loss became inf after step 3") as error:
        Broken.PREPARE_CLASS_CLONE(None).execute()
    assert error.type is FloatingPointError


def test_pictures_that_another_node_scaled_are_said(
    pack: ModuleType, base: dict[str, Any], output: Path
) -> None:
    import folder_paths

    folder = Path(folder_paths.get_input_directory())
    for name, size in (("wide.png", (96, 64)), ("tall.png", (64, 96)), ("wider.png", (96, 64))):
        Image.new("RGB", size, "red").save(folder / name)
    loaded = {n: node("LoadImage", image=f"{n}.png") for n in ("wide", "tall", "wider")}
    mixed = {"all": node("ImageBatch", image1=["wide", 0], image2=["tall", 0])}
    alike = {"all": node("ImageBatch", image1=["wide", 0], image2=["wider", 0])}
    for batch, is_said in ((mixed, True), (alike, False)):
        prompt = base | loaded | batch | training(images=["all", 0]) | SHOWS
        shown, error = executed(prompt, "show")
        assert error is None
        warning = "2 sizes (96 x 64, 64 x 96), and the node that puts them together scaled and cut"
        assert (warning in str(shown)) is is_said


def test_a_cancelled_node_says_so_and_the_host_knows(pack: ModuleType, parts: tuple) -> None:
    import comfy.model_management as management

    class Cancelled(pack.nodes.key_step.KeyStepUNetUnlearn):
        @classmethod
        def work(cls, **inputs: Any) -> None:
            raise management.InterruptProcessingException

    clone = Cancelled.PREPARE_CLASS_CLONE({"hidden_inputs": {}})
    clone.hidden.unique_id = "7"
    said()
    with pytest.raises(management.InterruptProcessingException):
        clone.execute()
    assert said() == ["Cancelled."]


# A VAE of another model


def test_a_vae_of_another_kind_of_latents_is_refused_by_every_node(
    pack: ModuleType, parts: tuple, output: Path
) -> None:
    video = copy(parts[2])
    video.latent_dim, video.latent_channels = 3, 16
    sentence = "makes latents of video with 16 channels, and the MODEL draws in latents of pictures"
    for name in NODES:
        door = Door(pack, parts, name)
        if "vae" not in door.right:
            continue
        with pytest.raises(ValueError, match=sentence):
            run(door.node.__mro__[1], **{**door.right, "vae": video})


# Saving


SAVE = "SaveErasedCLIP"


def test_nothing_connected_is_nothing_saved_and_no_error(base: dict, output: Path) -> None:
    """The browser takes the link away where the training node is bypassed or muted."""
    prompt = {"save": node(SAVE, filename_prefix="loras/x", precision="float16")}
    assert not refused(prompt)
    shown, error = executed(prompt, "save")
    assert error is None
    assert shown["save"]["text"] == [
        "Nothing is saved: no ERASURE is connected, or its node is bypassed or muted."
    ]
    assert not list(output.iterdir())


@pytest.mark.parametrize("name", ["SaveErasedClip", "SaveErasedModel"])
def test_what_cannot_be_written_gets_a_sentence(
    pack: ModuleType, parts: tuple, output: Path, name: str
) -> None:
    erasure = of_the_encoder(pack, parts[1])
    save = getattr(pack.nodes.erasures, name)
    (output / "file").touch()
    with pytest.raises(RuntimeError, match=r"cannot be written to output/file/x"):
        run(save, erasure, "file/x", "float16")
    with (
        small_files(),
        pytest.raises(RuntimeError, match=r"cannot be written to output/x .*File too"),
    ):
        run(save, erasure, "x", "float16")
    assert [one.name for one in output.iterdir()] == ["file"]


def test_a_save_node_has_a_name_of_its_own(pack: ModuleType, parts: tuple, output: Path) -> None:
    for name, file in (("SaveErasedClip", "erased_clip"), ("SaveErasedModel", "erased_model")):
        run(getattr(pack.nodes.erasures, name), of_the_encoder(pack, parts[1]))
        assert (output / "loras" / f"{file}_00001_.safetensors").is_file()


@contextmanager
def small_files() -> Iterator[None]:
    """No file takes more than 10 kB, as on a disk that is nearly full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_date_in_the_prefix_is_todays_for_every_node(pack: ModuleType, output: Path) -> None:
    given = "a/%year%-%month%/b%day%", ["fox"], "closed_form", "0123456789"
    file, _ = pack.nodes.cache.erasure_file(*given)
    name = str(file.relative_to(output))
    assert re.fullmatch(r"a/\d{4}-\d\d/b\d\d/fox\.closed_form\.safetensors", name)
    assert not list(output.iterdir()), "asking makes no folder"
    assert pack.nodes.cache.dated("../%x%/100%") == "../%x%/100%"


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.bin"])
def test_a_file_that_is_not_offered_is_not_opened(
    pack: ModuleType, output: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A name typed into a prompt of the API, or handed on by a node."""
    import folder_paths

    (output / name).touch()
    for kind in ("loras", "text_encoders", "inception"):
        known = ([str(output)], {Path(name).suffix})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, known)
    assert folder_paths.get_full_path("loras", name)
    for node_class, inputs in (
        (pack.nodes.erasures.LoadErasedClip, {"erasure_name": name}),
        (pack.nodes.cpdm.CopyrightMetric, {"inception": [name]}),
    ):
        with pytest.raises(ValueError, match="There is no "):
            node_class.validate_inputs(**inputs)
