"""The nodes in a real server's queue, on the trained model: the main job as a user does it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import cached, distance, files, loader, node, text
from PIL import Image
from safetensors.torch import save_file

from testbed.host.server import Interrupted, Progress, PromptError, Server
from testbed.model.judge import Judge
from unlearn.core.erasure import Erasure

CONCEPT = "mushroom"
STYLES = ("flat", "noto", "glossy")
NEIGHBOURS = {"cat": "flat", "apple": "twitter", "house": "emojione"}
CHARACTERS = ("Zorvik",)
STEPS = 20
FC1 = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
ASK = f"a photo of a {CONCEPT}, flat style"


def unlearn(concept: str = CONCEPT, **inputs: Any) -> dict[str, Any]:
    """The training node: ["...", 0] is the erased CLIP and ["...", 1] the erasure."""
    values = {
        "model": ["base", 0],
        "clip": ["base", 1],
        "vae": ["base", 2],
        "concept": concept,
        "kind": "object",
        "shots": 2,
        "batch": 1,
        "size": 128,
        "mode": "balanced",
        "rank": 0,
        "max_steps": STEPS,
        "trainable": "mlp-final-attn",
        "epochs": 4,
        "seed": 0,
        "filename_prefix": "loras/nodes",  # other tests' files are elsewhere
        "verdict": False,  # tests/comfy/test_verdict_nodes.py
    }
    return node("FewShotEncoderUnlearn", **{**values, **inputs})


def short(concept: str, **inputs: Any) -> dict[str, Any]:
    """A training of three steps on a picture of the node "given"."""
    return unlearn(concept, **{"max_steps": 3, "size": 64, "images": ["given", 0], **inputs})


def given() -> dict[str, Any]:
    """A picture to learn from: where the model draws them, that takes most of a short training."""
    return {"given": node("LoadImage", image="iconcanvas_mushroom_1.png")}


def load(name: str, clip: tuple[str, int] = ("base", 1), strength: float = 1.0) -> dict[str, Any]:
    return node("LoadErasedCLIP", clip=list(clip), erasure_name=name, strength=strength)


def drawing(
    name: str, clip: tuple[str, int], prompt: str, seed: int = 1, size: int = 64, steps: int = 5
) -> dict[str, Any]:
    """Nodes that draw a prompt; the picture is the output of the node `name`.

    As small as says whether two encoders do the same. What the judge is to see is larger.
    """
    return {
        f"{name}+": node("CLIPTextEncode", clip=list(clip), text=prompt),
        f"{name}-": node("CLIPTextEncode", clip=["base", 1], text=""),
        f"{name}.latent": node("EmptyLatentImage", width=size, height=size, batch_size=1),
        f"{name}.sample": node(
            "KSampler",
            model=["base", 0],
            positive=[f"{name}+", 0],
            negative=[f"{name}-", 0],
            latent_image=[f"{name}.latent", 0],
            seed=seed,
            steps=steps,
            cfg=5.0,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            denoise=1.0,
        ),
        f"{name}.decode": node("VAEDecode", samples=[f"{name}.sample", 0], vae=["base", 2]),
        name: node("PreviewImage", images=[f"{name}.decode", 0]),
    }


def pixels(picture: Image.Image) -> torch.Tensor:
    """(H, W, 3) in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB")).astype(np.float32) / 255)


def shown(server: Server, history: dict[str, Any], name: str) -> torch.Tensor:
    return pixels(server.images(history, name)[0])


@dataclass
class Training:
    """The main job, once for all tests here."""

    prompt: dict[str, Any]
    history: dict[str, Any]
    events: list[Progress] = field(default_factory=list)
    plain: torch.Tensor | None = None
    """A picture by the original encoder before anything was trained."""

    @property
    def file(self) -> str:
        """The name of the erasure that Save Erased CLIP wrote, as the loaders list it."""
        return Path(text(self.history, "save").split(",")[0]).name


@pytest.fixture(scope="module")
def training(server: Server) -> Training:
    before = server.run(loader() | drawing("plain", ("base", 1), ASK))
    prompt = loader() | {
        "unlearn": unlearn(),
        "save": node(
            "SaveErasedCLIP",
            erasure=["unlearn", 1],
            filename_prefix="loras/mine",
            precision="float16",
        ),
        "curve": node("PreviewImage", images=["unlearn", 2]),
        **drawing("plain", ("base", 1), ASK),
        **drawing("erased", ("unlearn", 0), ASK),
    }
    # What draws the plain picture has to run again beside the training, not to be remembered.
    prompt["plain.latent"]["inputs"]["batch_size"] = 2
    events: list[Progress] = []
    history = server.run(prompt, on_progress=events.append)
    return Training(prompt, history, events, shown(server, before, "plain"))


# Training


def test_training_reports_its_steps(training: Training) -> None:
    """One bar for the whole run, which never goes back."""
    bar = [e.value for e in training.events if e.node == "unlearn" and e.total == 1000]
    assert len(bar) > 3
    assert bar == sorted(bar)
    assert bar[-1] == 1000


def test_training_shows_a_live_picture(training: Training) -> None:
    previews = [e.preview for e in training.events if e.node == "unlearn" and e.preview]
    assert previews
    assert all(preview.width == preview.height >= 128 for preview in previews)
    assert pixels(previews[-1]).std() > 0.02


def test_training_says_where_it_is(training: Training) -> None:
    lines = [e.text for e in training.events if e.node == "unlearn" and e.text]
    assert any(
        re.search(rf"{CONCEPT}\nerasing: step \d+ of at most {STEPS}, loss \d", line)
        for line in lines
    )
    assert any(re.search(r"loss -?[\d.]+, at most \d+ (s|min) left", line) for line in lines)
    assert any(line.endswith("\nerasing: drawing pictures of mushroom, 0 of 2") for line in lines)
    assert any(line.endswith("\nsaving") for line in lines)


def test_summary_says_what_was_done(training: Training) -> None:
    summary = text(training.history, "unlearn")
    assert summary.startswith(f"The text encoder was changed for: {CONCEPT} (object).")
    assert summary.endswith("What is left was not measured: probe it before you rely on it.")
    assert re.search(rf"moved by: {CONCEPT} \d+%", summary)
    assert re.search(r"\d+ steps \(balanced\), [\d.]+ s, peak memory \d+ MiB", summary)
    assert re.search(r"File: \S+\.safetensors, [\d.]+ MB", summary)


def test_loss_curve_is_a_picture(server: Server, training: Training) -> None:
    curve = shown(server, training.history, "curve")
    assert curve.shape[1:] == (512, 3)
    assert curve.shape[0] > 256, "what to expect stands below"
    assert curve.std() > 0.05


def test_erasure_is_kept_and_says_where_it_came_from(server: Server, training: Training) -> None:
    (kept,) = (server.output / "loras" / "nodes").glob(f"{CONCEPT}.*.safetensors")
    record = Erasure.load(kept).record
    assert record["concepts"] == [CONCEPT]
    assert record["method"] == "few_shot"
    assert record["steps"] <= STEPS
    assert record["measured"]["seconds"] > 0
    assert record["images"] == {"count": 2, "drawn_by_model": True, "hash": None}
    assert len(record["base"]) == 24


def test_the_original_branch_draws_as_before(server: Server, training: Training) -> None:
    """In the very prompt that trained: a batch of two, whose first picture has the same noise."""
    pictures = server.images(training.history, "plain")
    assert distance(pixels(pictures[0]), training.plain) < 1e-3


def test_the_original_draws_exactly_as_before_afterwards(
    server: Server, training: Training
) -> None:
    again = server.run(loader() | drawing("again", ("base", 1), ASK))
    assert torch.equal(shown(server, again, "again"), training.plain)


def test_queueing_twice_trains_once(server: Server, training: Training) -> None:
    server.run(training.prompt)  # other tests may have made the server forget it
    events: list[Progress] = []
    history = server.run(training.prompt, on_progress=events.append)
    assert {"base", "unlearn"} <= cached(history)
    assert not [e for e in events if e.node == "unlearn" and (e.total or e.preview)]


def test_forgotten_result_is_read_from_its_file(server: Server, training: Training) -> None:
    (kept,) = (server.output / "loras" / "nodes").glob(f"{CONCEPT}.*.safetensors")
    written = kept.stat().st_mtime_ns
    server.free()
    time.sleep(2)  # the server frees between two prompts
    prompt = loader() | {"unlearn": unlearn(), **drawing("erased", ("unlearn", 0), ASK)}
    events: list[Progress] = []
    history = server.run(prompt, on_progress=events.append)
    assert "unlearn" not in cached(history)
    assert text(history, "unlearn").startswith("Trained before with these inputs")
    assert not [e for e in events if e.node == "unlearn" and e.preview]
    assert kept.stat().st_mtime_ns == written
    same, trained = (shown(server, h, "erased") for h in (history, training.history))
    assert distance(same, trained) < 0.1 * distance(trained, training.plain)


def test_given_pictures_are_learnt_from(server: Server, training: Training) -> None:
    prompt = (
        loader()
        | drawing("cat", ("base", 1), "a cat")
        | {
            "unlearn": short("cat", images=["cat.decode", 0]),
            "save": node(
                "SaveErasedCLIP",
                erasure=["unlearn", 1],
                filename_prefix="given/cat",
                precision="float32",
            ),
        }
    )
    server.run(prompt)
    (file,) = (server.output / "given").glob("*.safetensors")
    images = Erasure.load(file).record["images"]
    assert (images["count"], images["drawn_by_model"]) == (1, False)
    assert images["hash"]


def test_a_date_in_the_prefix_is_todays_and_nothing_is_replaced(
    server: Server, training: Training
) -> None:
    small_erasure().save(server.output / "loras" / "dated.safetensors")
    for strength in (1.0, 0.5):
        server.run(
            loader()
            | {
                "erased": load("dated.safetensors", strength=strength),
                "save": node(
                    "SaveErasedCLIP",
                    erasure=["erased", 1],
                    filename_prefix="dated/%year%/cat",
                    precision="float32",
                ),
            }
        )
    (folder,) = (server.output / "dated").iterdir()
    assert re.fullmatch(r"\d{4}", folder.name)
    assert sorted(f.name for f in folder.iterdir()) == [
        "cat_00001_.safetensors",
        "cat_00002_.safetensors",
    ]


def test_cancelling_stops_within_a_step_or_so_and_the_next_prompt_works(
    server: Server, training: Training
) -> None:
    steps: list[int] = []

    def cancel_at_three(event: Progress) -> None:
        if found := re.search(r"step (\d+) of", event.text or ""):
            steps.append(int(found[1]))
            if steps[-1] == 3:
                server.interrupt()

    endless = loader() | {
        **given(),
        "unlearn": short("owl", mode="paper", epochs=100),
        **drawing("owl", ("unlearn", 0), "an owl"),
    }
    with pytest.raises(Interrupted):
        server.run(endless, on_progress=cancel_at_three)
    assert steps[-1] <= 6
    assert not list((server.output / "loras" / "nodes").glob("owl*"))
    after = server.run(loader() | drawing("after", ("base", 1), ASK))
    assert torch.equal(shown(server, after, "after"), training.plain)


# What was erased, by the judge


@pytest.fixture(scope="module")
def drawn(server: Server, training: Training) -> dict[str, dict[str, torch.Tensor]]:
    """By "before" and "after": pictures of the concept's prompts and of its neighbours'."""
    prompts = {f"{CONCEPT} {style}": f"a photo of a {CONCEPT}, {style} style" for style in STYLES}
    prompts |= {name: f"a photo of a {name}, {style} style" for name, style in NEIGHBOURS.items()}
    prompts |= {name: f"a portrait of {name}" for name in CHARACTERS}
    encoders = {"before": ("base", 1), "after": ("erased", 0)}
    graph = loader() | {"erased": load(training.file)}
    for when, clip in encoders.items():
        for name, prompt in prompts.items():
            graph |= drawing(f"{when} {name}", clip, prompt, seed=7, size=128, steps=6)
    history = server.run(graph)
    return {
        when: {name: shown(server, history, f"{when} {name}") for name in prompts}
        for when in encoders
    }


def judged(pictures: dict[str, torch.Tensor], names: list[str], head: str) -> dict[str, str | None]:
    answers = Judge()(torch.stack([pictures[name] for name in names]))
    return {name: answer[head] for name, answer in zip(names, answers, strict=True)}


def test_erased_concept_is_gone_in_every_style(drawn: dict[str, dict[str, torch.Tensor]]) -> None:
    names = [f"{CONCEPT} {style}" for style in STYLES]
    before = list(judged(drawn["before"], names, "object").values()).count(CONCEPT)
    after = list(judged(drawn["after"], names, "object").values()).count(CONCEPT)
    assert before == len(STYLES), "the test model must be able to draw it"
    assert after == 0


@pytest.mark.parametrize(
    ("names", "head"), [(list(NEIGHBOURS), "object"), (list(CHARACTERS), "character")]
)
def test_neighbours_stay(
    drawn: dict[str, dict[str, torch.Tensor]], names: list[str], head: str
) -> None:
    before, after = (judged(drawn[when], names, head) for when in ("before", "after"))
    right = [name for name in names if before[name] == name]
    kept = [name for name in right if after[name] == name]
    assert right == names, "the test model must be able to draw them"
    assert kept == right


# The file: loading, stacking, the stock nodes


def test_saved_and_loaded_it_draws_the_same(server: Server, training: Training) -> None:
    graph = loader() | {"erased": load(training.file)}
    history = server.run(graph | drawing("loaded", ("erased", 0), ASK))
    loaded, trained = (shown(server, history, "loaded"), shown(server, training.history, "erased"))
    assert distance(loaded, trained) < 0.1 * distance(trained, training.plain)


def test_stock_load_lora_draws_the_same(server: Server, training: Training) -> None:
    stock = node(
        "LoraLoader",
        model=["base", 0],
        clip=["base", 1],
        lora_name=training.file,
        strength_model=1.0,
        strength_clip=1.0,
    )
    graph = loader() | {"stock": stock, "ours": load(training.file)}
    history = server.run(
        graph | drawing("by stock", ("stock", 1), ASK) | drawing("by ours", ("ours", 0), ASK)
    )
    by_stock, by_ours = (shown(server, history, name) for name in ("by stock", "by ours"))
    assert torch.equal(by_stock, by_ours)
    assert distance(by_stock, training.plain) > 0.01


def test_strength_zero_and_undoing_draw_the_original(server: Server, training: Training) -> None:
    graph = loader() | {
        "off": load(training.file, strength=0.0),
        "on": load(training.file),
        "undone": load(training.file, ("on", 0), strength=-1.0),
    }
    history = server.run(
        graph | drawing("zero", ("off", 0), ASK) | drawing("restored", ("undone", 0), ASK)
    )
    assert torch.equal(shown(server, history, "zero"), training.plain)
    assert distance(shown(server, history, "restored"), training.plain) < 0.005


def test_whole_encoder_saved_by_the_stock_node_loads(server: Server, training: Training) -> None:
    """The layout in which others hand their erased encoders on."""
    server.run(
        loader()
        | {
            "erased": load(training.file),
            "whole": node("CLIPSave", clip=["erased", 0], filename_prefix="loras/whole"),
        }
    )
    name = "whole_clip_l_00001_.safetensors"
    graph = loader() | {"ours": load(training.file), "whole": load(name)}
    history = server.run(
        graph | drawing("by ours", ("ours", 0), ASK) | drawing("by whole", ("whole", 0), ASK)
    )
    ours, whole = (shown(server, history, name) for name in ("by ours", "by whole"))
    assert distance(whole, ours) < 0.1 * distance(ours, training.plain)


def test_combine_reports_what_each_still_does(server: Server, training: Training) -> None:
    graph = loader() | {
        **given(),
        "one": load(training.file),
        "other": short("guitar"),
        "both": node(
            "CombineErasedCLIP", clip=["base", 1], erasure_1=["one", 1], erasure_2=["other", 1]
        ),
        "save": node(
            "SaveErasedCLIP", erasure=["both", 1], filename_prefix="loras/both", precision="float16"
        ),
    }
    history = server.run(graph)
    report = text(history, "both")
    for concept in (CONCEPT, "guitar"):
        (line,) = (line for line in report.splitlines() if line.startswith(concept))
        assert re.fullmatch(
            rf"{concept}: moves \d+% as far as alone, -?\d+% in the same direction", line
        )
    moved = {
        line.split(":")[0]: int(re.search(r"moves (\d+)%", line)[1]) for line in report.splitlines()
    }
    assert moved[CONCEPT] > 50, "three steps of the other can hardly weaken it"
    (file,) = (server.output / "loras").glob("both_*.safetensors")
    assert Erasure.load(file).concepts == [CONCEPT, "guitar"]


def small_erasure(**record: Any) -> Erasure:
    return Erasure({FC1: {"diff": torch.full((768, 192), 0.01)}}, {"concepts": ["owl"], **record})


def test_file_that_was_written_anew_is_read_anew(server: Server) -> None:
    file = server.output / "loras" / "rewritten.safetensors"
    said = []
    for concept in ("first", "second"):
        small_erasure(concepts=[concept]).save(file)
        graph = loader() | {
            "erased": load(file.name),
            "show": node("PreviewAny", source=["erased", 2]),
        }
        said.append(text(server.run(graph), "erased"))
    assert said == ["first, strength 1.", "second, strength 1."]


def test_another_base_is_said_in_the_node(server: Server) -> None:
    file = server.output / "loras" / "other_base.safetensors"
    small_erasure(base={FC1: "0" * 16}).save(file)
    history = server.run(
        loader() | {"erased": load(file.name), "show": node("PreviewAny", source=["erased", 2])}
    )
    assert "Warning: 1 of 1 weights differ from those this erasure was trained on" in text(
        history, "erased"
    )


# Bad input


def cut_short(file: Path) -> None:
    small_erasure().save(file)
    file.write_bytes(file.read_bytes()[:-100])


def a_web_page(file: Path) -> None:
    file.write_text("<!DOCTYPE html>")


def another_encoders(file: Path) -> None:
    Erasure({FC1: {"diff": torch.zeros(3072, 768)}}, {"concepts": ["owl"]}).save(file)


def an_autoencoder(file: Path) -> None:
    save_file({"decoder.conv_in.weight": torch.zeros(4, 4)}, file)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (cut_short, "bad.safetensors is cut short or not a safetensors file"),
        (a_web_page, "bad.safetensors is cut short or not a safetensors file"),
        (another_encoders, 'The erasure of "owl" is for a text encoder of another size'),
        (an_autoencoder, "bad.safetensors holds neither an erasure nor a text encoder"),
    ],
)
def test_unusable_file_stops_the_prompt_with_one_sentence(
    server: Server, make: Callable[[Path], None], sentence: str
) -> None:
    file = server.output / "loras" / "bad.safetensors"
    file.parent.mkdir(exist_ok=True)
    make(file)
    graph = loader() | {"erased": load(file.name)} | drawing("picture", ("erased", 0), "a cat")
    with pytest.raises(PromptError, match=sentence) as error:
        server.run(graph)
    assert error.value.node_type == "LoadErasedCLIP"
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"concept": " , "}, "No concept is named"),
        (
            {"concept": "cat, dog", "images": ["picture", 0]},
            "1 images cannot be shared .* 2 concepts",
        ),
        ({"anchor": "Cat"}, "The anchor 'Cat' is the concept itself"),
        ({"filename_prefix": "../outside"}, "leaves ComfyUI's output folder"),
        ({"filename_prefix": "loras/../../outside"}, "leaves ComfyUI's output folder"),
    ],
    ids=["no concept", "wrong count", "anchor", "outside", "outside by a detour"],
)
def test_bad_training_input_gets_a_sentence_and_writes_nothing(
    server: Server, inputs: dict[str, Any], sentence: str
) -> None:
    before = files(server.output.parent / "output")
    graph = loader() | {
        "picture": node("EmptyImage", width=128, height=128, batch_size=1, color=0),
        "unlearn": unlearn(**{"concept": "cat", **inputs}),
        "show": node("PreviewAny", source=["unlearn", 4]),
    }
    with pytest.raises(PromptError, match=sentence) as error:
        server.run(graph)
    assert error.value.node_type == "FewShotEncoderUnlearn"
    assert "\n" not in str(error.value)
    assert files(server.output.parent / "output") == before
    assert not list(server.output.parent.glob("outside*"))


def test_saving_outside_the_output_folder_is_refused(server: Server) -> None:
    file = server.output / "loras" / "fine.safetensors"
    small_erasure().save(file)
    graph = loader() | {
        "erased": load(file.name),
        "save": node(
            "SaveErasedCLIP",
            erasure=["erased", 1],
            filename_prefix="../outside",
            precision="float16",
        ),
    }
    with pytest.raises(PromptError, match="leaves ComfyUI's output folder") as error:
        server.run(graph)
    assert error.value.node_type == "SaveErasedCLIP"
    assert not list(server.output.parent.glob("outside*"))


# Schemas


def test_every_input_has_a_tooltip(server: Server) -> None:
    """Which nodes there are, and that each has a help page, is tests/server/test_workflows.py's."""
    info = server.object_info()
    own = {name: node for name, node in info.items() if node["category"].startswith("unlearn/")}
    assert "FewShotEncoderUnlearn" in own
    for name, schema in own.items():
        assert len(schema["description"]) > 10, name
        for group in ("required", "optional"):
            for input_name, (_, options) in schema["input"].get(group, {}).items():
                assert len(options.get("tooltip", "")) > 10, f"{name}.{input_name}"


def test_seed_does_not_change_by_itself(server: Server) -> None:
    """The browser randomises a seed after each run unless told otherwise: it would train again."""
    inputs = server.object_info()["FewShotEncoderUnlearn"]["input"]["required"]
    assert inputs["seed"][1]["control_after_generate"] is False
